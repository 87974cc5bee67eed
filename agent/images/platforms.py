"""Which of an index's manifests is for this node. Called by `agent.images.incoming`."""

from __future__ import annotations

import os
from collections.abc import Iterable

from agent.images.documents import Descriptor, Platform

_ARCHITECTURES = {
    "x86_64": Platform("linux", "amd64"),
    "i686": Platform("linux", "386"),
    "aarch64": Platform("linux", "arm64", "v8"),
    "armv7l": Platform("linux", "arm", "v7"),
    "armv6l": Platform("linux", "arm", "v6"),
}
"""By `uname -m`; what is not here has the same name in Go (riscv64, s390x, ppc64le)."""
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}


def host_platform() -> Platform:
    """This node's platform."""
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, Platform("linux", machine))


def best_match(descriptors: Iterable[Descriptor], host: Platform) -> Descriptor | None:
    """The manifest that suits `host` best; the first one listed wins a tie, and one that names no platform comes last."""
    rated = [(_rating(descriptor.platform, host), descriptor) for descriptor in descriptors]
    suitable = [(rating, descriptor) for rating, descriptor in rated if rating > 0]
    return max(suitable, key=lambda pair: pair[0])[1] if suitable else None


def _normal(platform: Platform) -> Platform:
    """As Go's tools spell it; some builders write what `uname` says, and the variant that everybody has."""
    architecture = _ALIASES.get(platform.architecture, platform.architecture)
    variant = platform.variant if not platform.variant.isdecimal() else f"v{platform.variant}"
    return Platform(platform.os, architecture, "" if (architecture, variant) == ("amd64", "v1") else variant)


def runs_on(platform: Platform, host: Platform) -> bool:
    """Whether `host` can run what was built for `platform`."""
    return _rating(platform, host) > 0


def _rating(platform: Platform | None, host: Platform) -> int:
    if platform is None:
        return 1
    platform = _normal(platform)
    if (platform.os, platform.architecture) != (host.os, host.architecture):
        return 0
    if platform.variant == host.variant:
        return 100
    if host.architecture == "arm":  # a v7 runs what was made for v6 and v5, never the other way round
        if not platform.variant:
            return 2
        return 10 + ord(platform.variant[1]) if "v5" <= platform.variant <= host.variant else 0
    # arm64 says "v8" or nothing; an amd64 with a level (v2, v3) may ask for more than this machine has.
    return 50 if {platform.variant, host.variant} <= {"", "v8"} else 0

"""Linux capabilities of a container."""

from __future__ import annotations

from collections.abc import Iterable

from agent.errdefs import InvalidArgument
from agent.pods.facts import CAPABILITIES, NodeFacts
from cri.api import api_pb2 as cri

DEFAULT = (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
)  # fmt: skip
"""What unprivileged containers have had since Docker, and images rely on."""

_ALL = "ALL"


def capabilities(security: cri.LinuxContainerSecurityContext, facts: NodeFacts) -> dict[str, list[str]]:
    """The five sets. A privileged container, or one that adds ALL, gets what this node has to give.

    Raises:
        InvalidArgument: a name that Linux doesn't know.
    """
    add, drop, ambient = (
        _names(names, field)
        for names, field in (
            (security.capabilities.add_capabilities, "add_capabilities"),
            (security.capabilities.drop_capabilities, "drop_capabilities"),
            (security.capabilities.add_ambient_capabilities, "add_ambient_capabilities"),
        )
    )
    if security.privileged:
        granted = set(facts.capabilities)
    else:
        # First ALL, of both; then single names, so that "drop ALL, add one" and "add ALL, drop one" say what they seem to.
        granted = set(facts.capabilities) if _ALL in add else set(DEFAULT)
        if _ALL in drop:
            granted = set()
        granted |= add - {_ALL}
        granted |= ambient - {_ALL}
        granted -= drop
    granted &= facts.capabilities
    ambient &= granted
    ordered = [f"CAP_{name}" for name in CAPABILITIES if name in granted]
    raised = [f"CAP_{name}" for name in CAPABILITIES if name in ambient]
    return {
        "bounding": ordered,
        "effective": ordered,
        "permitted": ordered,
        # Inheritable stays what ambient needs and no more (CVE-2022-24769).
        "inheritable": raised,
        "ambient": raised,
    }


def _names(names: Iterable[str], field: str) -> set[str]:
    found = set()
    for raw in names:
        name = raw.upper().removeprefix("CAP_")
        if name != _ALL and name not in CAPABILITIES:
            raise InvalidArgument(f"capabilities.{field}: {raw!r} is not a Linux capability")
        found.add(name)
    return found

"""What network plugins keep on the node about every attachment, whichever runtime asked for it: for `orlop audit`.

Addresses that host-local leased, the results that libcni caches, and chains of iptables. Blocking; callers use a thread.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from agent.errdefs import DataLoss
from agent.network.attachment import Attachment
from agent.network.chains import Chain, Run, read_chains, run
from agent.network.leases import Lease, read_leases

_LONGEST = 1 << 20


@dataclass(frozen=True)
class CachedResult:
    """The result of one ADD, in libcni's cache. Fields are empty where its file doesn't say."""

    network: str
    sandbox: str
    netns: str
    path: Path


class Inventory:
    """Reads what is there. `run` is another one in tests only."""

    def __init__(self, run: Run = run) -> None:
        self._run = run

    def leases(self, directory: Path) -> list[Lease]:
        """As `read_leases`."""
        return read_leases(directory)

    def chains(self) -> list[Chain]:
        """As `read_chains`."""
        return read_chains(self._run)

    def results(self, directory: Path) -> list[CachedResult]:
        """All cached results in `directory`; what isn't one, or vanishes while we look, is left out.

        Raises:
            OSError: the directory is there but can't be read.
        """
        try:
            paths = sorted(directory.iterdir())
        except FileNotFoundError:
            return []
        return [result for path in paths if (result := _read(path)) is not None]


def cached_attachment(path: Path) -> Attachment:
    """What a DEL needs that gives back what this cached result's ADD took, whoever asked for that.

    Raises:
        DataLoss: the file isn't a cached result, or doesn't have all of it.
        OSError: from the kernel.
    """
    result = _read(path)
    try:
        content = json.loads(path.read_bytes())
        config = base64.b64decode(content["config"])
        return Attachment(
            sandbox=content["containerId"],
            netns=Path(result.netns if result else ""),
            network=content["networkName"],
            version=json.loads(config)["cniVersion"],
            config=config,
            args=tuple((key, value) for key, value in content.get("cniArgs") or ()),
            capabilities=dict(content.get("capabilityArgs") or {}),
            ifname=content["ifName"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataLoss(f"{path} is no cached result with all that CNI DEL needs: {error!r}") from error


def _read(path: Path) -> CachedResult | None:
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _LONGEST:
            return None
        content = json.loads(path.read_bytes())
        interfaces = (content.get("result") or {}).get("interfaces") or []
        # libcni writes down the network namespace only since 1.2; the plugins' results name it in `sandbox`.
        netns = content.get("netns") or next((name for entry in interfaces if (name := entry.get("sandbox"))), "")
        found = (content.get("networkName", ""), content.get("containerId", ""), netns)
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        return None
    return CachedResult(*found, path) if all(isinstance(text, str) for text in found) else None

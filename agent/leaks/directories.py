"""Directories and files of the agent that no ledger entry owns: each is named by the key of the entry that it should have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from agent.leaks.finding import Finding, State, Thing
from agent.leaks.look import Look
from agent.leaks.owners import KEY
from agent.leaks.paths import entries, file_target, modified
from agent.leaks.places import Places
from agent.linux import engine_files
from agent.store.ledger import Kind

Names = Callable[[Look], Set[str]]


@dataclass(frozen=True)
class Place:
    """One directory of the agent's, in which each name is a resource. Called, it is a detector."""

    kind: Thing
    directory: Callable[[Places], Path]
    owned: Names
    why: str
    releases: str
    pins: str = ""
    skips_hidden: bool = False
    key: Callable[[str], str] = str
    """The key of the entry that should own it, from its name."""

    def __call__(self, look: Look) -> Iterator[Finding]:
        unowned = [path for path in entries(self.directory(look.places)) if not (self.skips_hidden and path.name.startswith("."))]
        if not unowned:
            return
        owned = self.owned(look)
        for path in unowned:
            # What begins with a dot is on its way out, and owned until it is gone.
            key = self.key(path.name)
            if key not in owned and key.lstrip(".") not in owned:
                yield Finding(
                    self.kind,
                    str(path),
                    "orlop" if KEY.fullmatch(key) else "unknown",  # a lost+found, or what an operator keeps there
                    State.LEAKED,
                    self.why,
                    self.releases,
                    modified(path),
                    pins=self.pins,
                    targets=file_target(path),
                )


def _keys(*kinds: Kind) -> Names:
    return lambda look: look.owned.keys(*kinds)


def _sandboxes(look: Look) -> Set[str]:
    return {Path(key).name for key in look.owned.keys(Kind.SANDBOX_DIR)}


PLACES = (
    Place(
        Thing.BUNDLE,
        lambda places: places.bundles,
        _keys(Kind.SHIM, Kind.TASK),
        "the bundle of a shim or container that the ledger doesn't have",
        "`shim delete` in it, a look whether engine state, init, cgroup and mounts are gone, then its removal",
        pins="the rootfs that is mounted in it",
    ),
    Place(
        Thing.WORK_DIR,
        lambda places: places.work_dirs,
        _keys(Kind.SHIM, Kind.TASK),
        "the work directory of a shim or container that the ledger doesn't have",
        "its removal; a start of the daemon does that if there is no bundle of this name",
    ),
    Place(
        Thing.ENGINE_STATE,
        lambda places: places.engine_state,
        _keys(Kind.TASK),
        "the OCI engine's state of a container that the ledger doesn't have; its init may live",
        "`ENGINE delete --force`, then the removal of the directory",
        pins="its id, which can't be used again",
        skips_hidden=True,  # crun keeps a cache there
        key=engine_files.owner,
    ),
    Place(
        Thing.SNAPSHOT,
        lambda places: places.snapshots,
        _keys(Kind.SNAPSHOT),
        "the writable layer of a container that the ledger doesn't have",
        "its removal once nothing is mounted from it; a start of the daemon does that",
        pins="disk space, and the layers below it",
    ),
    Place(
        Thing.LAYER_UNPACK,
        lambda places: places.unpacks,
        _keys(Kind.LAYER_UNPACK),
        "a layer that was not unpacked to its end, and that no ledger entry owns",
        "its removal; a start of the daemon does that",
        pins="disk space",
    ),
    Place(
        Thing.INGEST,
        lambda places: places.ingests,
        _keys(Kind.INGEST),
        "a blob that is not complete, and that no ledger entry owns",
        "its removal; a start of the daemon does that",
        pins="disk space",
    ),
    Place(
        Thing.SANDBOX_DIR,
        lambda places: places.sandboxes,
        _sandboxes,
        "the state files of a pod that the ledger doesn't have",
        "its removal once nothing is mounted in it",
    ),
    Place(
        Thing.FIFO,
        lambda places: places.fifos,
        _keys(Kind.FIFO, Kind.EXEC),
        "the stdio FIFOs of a container or exec that the ledger doesn't have",
        "the removal of the FIFOs and their directory",
    ),
)

"""Directories of a containerd that are named by a sandbox or container which it doesn't have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.leaks.finding import Finding, State, Thing
from agent.leaks.look import Look
from agent.leaks.owners import CRI, ID, NAMESPACE, TASKS, Runtime
from agent.leaks.paths import entries, file_target, modified
from agent.leaks.suspects import Suspect, judged


@dataclass(frozen=True)
class _Place:
    kind: Thing
    below: Path
    """Of the runtime's state directory."""
    what: str
    pins: str


_PLACES = (
    _Place(Thing.BUNDLE, Path(TASKS, NAMESPACE), "the bundle", "the rootfs that is mounted in it"),
    _Place(Thing.ENGINE_STATE, Path("runc", NAMESPACE), "the OCI engine's state", "its id; its init may live"),
    _Place(Thing.SANDBOX_DIR, Path(CRI, "sandboxes"), "the state files", "the /dev/shm that is mounted in it"),
    _Place(Thing.FIFO, Path(CRI, "containers"), "the stdio FIFOs", ""),
)
"""As containerd's default configuration has them, 1.6 to 2.x. Its snapshots and content are in databases that are its alone."""


def find(look: Look) -> Iterator[Finding]:
    yield from judged(look, (suspect for runtime in look.node.runtimes if runtime.state for suspect in _of(runtime, runtime.state)))


def _of(runtime: Runtime, state: Path) -> Iterator[Suspect]:
    for place in _PLACES:
        for path in entries(state / place.below):
            if ID.fullmatch(path.name):
                yield Suspect(
                    Finding(
                        kind=place.kind,
                        what=str(path),
                        owner=runtime.owner,
                        state=State.LEAKED,
                        why=f"{place.what} of {path.name}, which {runtime} doesn't have",
                        releases="its removal, once its processes and mounts are gone",
                        since=modified(path),
                        pins=place.pins,
                        targets=file_target(path),
                    ),
                    path.name,
                    runtime,
                )

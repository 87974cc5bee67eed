"""Mounts below the agent's directories that no ledger entry owns, and those of other runtimes for containers they don't have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from agent.leaks.finding import Finding, State, Thing
from agent.leaks.look import Look
from agent.leaks.owners import CRI, ID, KEY, NAMESPACE, TASKS, Runtime
from agent.leaks.paths import modified
from agent.leaks.suspects import Suspect, judged
from agent.leaks.targets import MountTarget
from agent.linux.mountinfo import MountInfo
from agent.store.ledger import Kind

_RELEASES = "umount, in the reverse order of making; if it is busy, the end of the processes and mount namespaces that hold it"


def find(look: Look) -> Iterator[Finding]:
    """In our own mount namespace. What a container's has is that container's."""
    yield from _ours(look)
    yield from judged(look, _foreign(look))


def _ours(look: Look) -> Iterator[Finding]:
    places = look.places
    # The table has real paths; the ledger and the settings may have links in theirs.
    furniture = (
        places.state_dir, places.root_dir, places.root_dir / "snapshots", places.root_dir / "content",
        places.bundles, places.work_dirs, places.sandboxes,
    )  # fmt: skip
    ours = (_real(places.state_dir), _real(places.root_dir))
    operators = {_real(path) for path in furniture}  # who may put any of these on a disk of its own
    pins = {_real(places.pins), _real(places.netns_dir)}  # `pins` looks there
    bundles = _real(places.bundles)
    named = {_real(path) for path in (places.bundles, places.work_dirs, places.sandboxes, places.snapshots, places.unpacks, places.fifos)}
    shared_memory = {_real(Path(key)) for key in look.owned.keys(Kind.SHM)}
    for mount in look.node.mounts:
        path = mount.mount_point
        if not any(path.is_relative_to(top) for top in ours) or path in operators or path.parent in pins or path in shared_memory:
            continue
        bundle = path.relative_to(bundles).parts[0] if path.is_relative_to(bundles) else ""
        if bundle and bundle.lstrip(".") in look.owned.bundles:
            continue
        what = f"of container {bundle}, which the ledger doesn't have" if bundle else "that no ledger entry owns"
        yield Finding(
            kind=Thing.MOUNT,
            what=str(path),
            # Within a directory of a thing of ours nobody else has any business; elsewhere it may be an operator's.
            owner="orlop" if any(parent.parent in named and KEY.fullmatch(parent.name) for parent in (path, *path.parents)) else "unknown",
            state=State.LEAKED,
            why=f"a mount ({mount.fstype} of {mount.source}) below the agent's own directories, {what}",
            releases=_RELEASES,
            identity=str(mount.mount_id),
            pins=_pinned(mount.super_options),
            targets=(MountTarget(path, mount.mount_id),),
        )


def _foreign(look: Look) -> Iterator[Suspect]:
    """Mounts below another runtime's directories, in one that is named by the sandbox or container it is for."""
    tops = [(_real(runtime.state), runtime) for runtime in look.node.runtimes if runtime.state is not None]
    for mount in look.node.mounts:
        for top, runtime in tops:
            if not mount.mount_point.is_relative_to(top):
                continue
            parts = mount.mount_point.relative_to(top).parts
            if (place := next((index for index, part in enumerate(parts) if ID.fullmatch(part)), None)) is None:
                continue
            if parts[:2] == (TASKS, NAMESPACE) or parts[:1] == (CRI,):
                yield Suspect(_foreign_finding(mount, top.joinpath(*parts[: place + 1]), parts[place], runtime), parts[place], runtime)


def _foreign_finding(mount: MountInfo, directory: Path, identifier: str, runtime: Runtime) -> Finding:
    return Finding(
        kind=Thing.MOUNT,
        what=str(mount.mount_point),
        owner=runtime.owner,
        state=State.LEAKED,
        why=f"a mount ({mount.fstype} of {mount.source}) of {identifier}, which {runtime} doesn't have",
        releases=_RELEASES,
        since=modified(directory),
        identity=str(mount.mount_id),
        pins=_pinned(mount.super_options),
        targets=(MountTarget(mount.mount_point, mount.mount_id),),
    )


def _pinned(options: str) -> str:
    """The upper directory of an overlay, which is the snapshot that can't be removed."""
    upper = (option.removeprefix("upperdir=") for option in options.split(",") if option.startswith("upperdir="))
    return next(upper, "the directory it is on")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))

"""Mounts below the agent's directories that no ledger entry owns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from agent.leaks.finding import Finding, State, Thing
from agent.leaks.look import Look
from agent.store.ledger import Kind

_RELEASES = "umount, in the reverse order of making; if it is busy, the end of the processes and mount namespaces that hold it"


def find(look: Look) -> Iterator[Finding]:
    """In our own mount namespace. What a container's has is that container's."""
    places = look.places
    # The table has real paths; the ledger and the settings may have links in theirs.
    furniture = (
        places.state_dir, places.root_dir, places.root_dir / "snapshots", places.root_dir / "content",
        places.bundles, places.work_dirs, places.sandboxes,
    )  # fmt: skip
    operators = {_real(path) for path in furniture}  # who may put any of these on a disk of its own
    pins = {_real(places.pins), _real(places.netns_dir)}  # `pins` looks there
    bundles = _real(places.bundles)
    shared_memory = {_real(Path(key)) for key in look.owned.keys(Kind.SHM)}
    for mount in look.node.mounts:
        path = mount.mount_point
        if path in operators or path.parent in pins or path in shared_memory:
            continue
        bundle = path.relative_to(bundles).parts[0] if path.is_relative_to(bundles) else ""
        if bundle and bundle.lstrip(".") in look.owned.bundles:
            continue
        what = f"of container {bundle}, which the ledger doesn't have" if bundle else "that no ledger entry owns"
        yield Finding(
            kind=Thing.MOUNT,
            what=str(path),
            owner="orlop",
            state=State.LEAKED,
            why=f"a mount ({mount.fstype} of {mount.source}) below the agent's own directories, {what}; "
            f"it pins {_pinned(mount.super_options) or 'the directory it is on'}",
            releases=_RELEASES,
            identity=str(mount.mount_id),
        )


def _pinned(options: str) -> str:
    """The upper directory of an overlay, which is the snapshot that can't be removed."""
    return next((option.removeprefix("upperdir=") for option in options.split(",") if option.startswith("upperdir=")), "")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))

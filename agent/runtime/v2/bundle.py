"""Bundles: one directory per container, in which its shim and engine live (runtime-v2 section 1), and the work dir beside it.

    <bundles>/<id>/config.json          the OCI spec; `start` reads the annotations
                   rootfs/              made here, mounted by the shim
                   work                 link to the work dir
                   log                  FIFO, the shim's own log
                   shim-binary-path     of the shim that was started in it
                   bootstrap.json       where that shim listens
                   sandbox              id of the sandbox, if the container joined its shim
    <bundles>/.<id>                     being removed; swept at start

Only `cleanup` removes a bundle that a shim has seen. A bundle that is there already belongs to somebody, and is never healed
by deleting it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import failpoints
from agent.aio import in_thread
from agent.errdefs import AlreadyExists, Busy, FailedPrecondition
from agent.identifiers import validate

_MAX_NAMED = 5


@dataclass(frozen=True)
class Bundle:
    """Where things are. Says nothing about whether they exist."""

    id: str
    path: Path
    work_dir: Path

    @property
    def rootfs(self) -> Path:
        return self.path / "rootfs"

    @property
    def log(self) -> Path:
        return self.path / "log"


class Bundles:
    """All bundles and work dirs of one namespace."""

    def __init__(self, bundles: Path, work_dirs: Path) -> None:
        self._bundles = bundles
        self._work_dirs = work_dirs

    def at(self, bundle_id: str) -> Bundle:
        """Raises InvalidArgument: an id that is not fit for a path."""
        validate(bundle_id, "id")
        return Bundle(bundle_id, self._bundles / bundle_id, self._work_dirs / bundle_id)

    async def create(self, bundle_id: str, spec: Mapping[str, Any], files: Mapping[str, str] | None = None) -> Bundle:
        """Make a bundle with this OCI spec, further small files by name, and its work dir. On failure nothing is left.

        Raises:
            AlreadyExists: it is there already.
            OSError: from the kernel.
        """
        bundle = self.at(bundle_id)
        await failpoints.hit("runtime.bundle.create")
        await in_thread(_create, bundle, spec, files or {})
        return bundle

    async def exists(self, bundle: Bundle) -> bool:
        return await in_thread(bundle.path.is_dir)

    async def write(self, bundle: Bundle, name: str, text: str) -> None:
        """Put a small file into a bundle."""
        await in_thread((bundle.path / name).write_text, text)

    async def remove(self, bundle: Bundle) -> None:
        """Remove a bundle below whose `rootfs` nothing is mounted any more; the work dir stays. Gone: a no-op.

        `rootfs` is never removed with what is in it: that would be the container's files, or somebody's who mounted there.

        Raises:
            FailedPrecondition: `rootfs` has files in it though nothing is mounted there.
            Busy: something is mounted below it after all.
            OSError: from the kernel.
        """
        await in_thread(_remove, bundle)

    async def remove_work_dir(self, bundle: Bundle) -> None:
        """Remove the work dir and what is in it. Gone: a no-op. Raises Busy and OSError as `remove`."""
        await in_thread(_remove_tree, bundle.work_dir)

    async def sweep(self) -> list[str]:
        """Remove what a crash left in the middle of a removal; the names of what could not be."""
        return await in_thread(_sweep, self._bundles, self._work_dirs)

    async def ids(self) -> set[str]:
        """The bundles there are."""
        return await in_thread(_names, self._bundles)

    async def work_dir_ids(self) -> set[str]:
        return await in_thread(_names, self._work_dirs)


def _create(bundle: Bundle, spec: Mapping[str, Any], files: Mapping[str, str]) -> None:
    _make_parent(bundle.path.parent)
    _make_parent(bundle.work_dir.parent)
    try:
        bundle.path.mkdir(mode=0o700)
    except FileExistsError as error:
        raise AlreadyExists(
            f"bundle {bundle.path} is there already: it belongs to another container, or to one that is not released yet"
        ) from error
    try:
        _give_to_container_root(bundle.path, spec)
        bundle.rootfs.mkdir(mode=0o711)
        _remove_tree(bundle.work_dir)
        bundle.work_dir.mkdir(mode=0o711)
        (bundle.path / "work").symlink_to(bundle.work_dir)
        for name, text in {"config.json": json.dumps(spec), **files}.items():
            (bundle.path / name).write_text(text)
    except BaseException:
        shutil.rmtree(bundle.path, ignore_errors=True)
        shutil.rmtree(bundle.work_dir, ignore_errors=True)
        raise


def _make_parent(directory: Path) -> None:
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)


def _give_to_container_root(path: Path, spec: Mapping[str, Any]) -> None:
    """In a user namespace, container root has to pass through the bundle to its rootfs."""
    for mapping in spec.get("linux", {}).get("gidMappings", ()):
        if mapping["containerID"] == 0:
            os.chown(path, -1, mapping["hostID"])
            path.chmod(0o710)
            return


def _remove(bundle: Bundle) -> None:
    try:
        bundle.rootfs.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        names = sorted(os.listdir(bundle.rootfs))
        shown = ", ".join(names[:_MAX_NAMED]) + (" ..." if len(names) > _MAX_NAMED else "")
        raise FailedPrecondition(
            f"{bundle.rootfs} is not empty though nothing is mounted there: {shown}. It stays; look at it, and remove it by hand"
        ) from error
    _remove_tree(bundle.path)


def _remove_tree(path: Path) -> None:
    """Out of sight first, in one step, so that a crash leaves a hidden directory and never half a bundle."""
    hidden = path.parent / f".{path.name}"
    _remove_hidden(hidden)
    try:
        path.rename(hidden)
    except FileNotFoundError:
        return
    _remove_hidden(hidden)


def _remove_hidden(path: Path) -> None:
    """rm -r that never enters another file system: whatever is mounted there is not ours to empty."""
    try:
        top = path.lstat()
    except FileNotFoundError:
        return
    for directory, names, files, descriptor in os.fwalk(path, topdown=False):
        if os.fstat(descriptor).st_dev != top.st_dev:
            raise Busy(f"something is mounted at {directory}: its files are left alone, and so is {path}")
        for name in files:
            os.unlink(name, dir_fd=descriptor)
        for name in names:
            if stat.S_ISLNK(os.lstat(name, dir_fd=descriptor).st_mode):
                os.unlink(name, dir_fd=descriptor)
            else:
                os.rmdir(name, dir_fd=descriptor)
    path.rmdir()


def _sweep(*parents: Path) -> list[str]:
    failed = []
    for parent in parents:
        for path in parent.glob(".*"):
            try:
                _remove_hidden(path)
            except (OSError, Busy) as error:
                failed.append(f"{path}: {error}")
    return failed


def _names(directory: Path) -> set[str]:
    with contextlib.suppress(FileNotFoundError):
        return {name for name in os.listdir(directory) if not name.startswith(".")}
    return set()

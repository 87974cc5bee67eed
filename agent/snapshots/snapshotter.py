"""The overlay snapshotter: committed layers, and the writable snapshots of containers on top of them.

    <root>/unpack/<key>/fs             a layer being unpacked; owned by a ledger entry LAYER_UNPACK, swept at start
    <root>/layers/<hex>, <root>/l      committed layers (`layers.py`); appear by rename, complete, and on disk soon after (`settling.py`)
    <root>/containers/<key>/fs, work   upper and work directory of a container; owned by a ledger entry SNAPSHOT
    <root>/containers/<key>/chain      the chain id it stands on, then those of the container's volumes, one a line
    <root>/empty                       what is below a volume that has a single layer
    <root>/trash/<random>              layers on their way out; swept at start

Unpacking is in two steps, so that the layers of an image unpack side by side: `unpack` knows nothing of the layers below,
`commit` puts the result on top of one. Callers: `agent.images` for layers, `agent.pods` (through it) for containers. Who
needs which layer is theirs to say; only what containers stand on is remembered here.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import ParamSpec, Protocol

from agent import failpoints, log, timeouts
from agent.aio import KeyedLock, Supervisor, in_thread
from agent.errdefs import AlreadyExists, Busy, FailedPrecondition, Internal, InvalidArgument, NotFound, OrlopError, from_code
from agent.identifiers import validate
from agent.linux import files
from agent.linux.mountinfo import parse_mountinfo
from agent.linux.mounts import Mount
from agent.linux.processes import Command, Completed
from agent.snapshots import layers as layout
from agent.snapshots import lookup, volumes
from agent.snapshots.apply import Limits
from agent.snapshots.commit import Unpacked, complete
from agent.snapshots.layers import Layer
from agent.snapshots.removal import remove_tree
from agent.snapshots.settling import Settling

_log = log.get("snapshots")

MAX_USER_FILE = 4 << 20
"""Bytes of an /etc/passwd or /etc/group that are read to resolve a user's name."""
_WORKER_ENV = {"PATH": os.defpath}
_OF_THE_BUDGET = 0.75
"""Share of the budget of a measurement in which files are counted; the rest is for its start, and a directory that is slow to list."""
P = ParamSpec("P")


class Runner(Protocol):
    """What is needed of `agent.linux.processes.Processes`."""

    async def run(self, command: Command) -> Completed: ...


@dataclass(frozen=True)
class Usage:
    """Disk use of a snapshot, as it was at `time` (Unix seconds)."""

    size: int
    inodes: int
    time: float


class Snapshotter:
    """Layers and snapshots under `root`. `open()` first; one per directory.

    `parallel` unpack workers run at once, in `cgroup` (relative path, as in `Command`), which ends with the daemon. `proc` is
    another place in tests only.
    """

    def __init__(
        self,
        root: Path,
        processes: Runner,
        *,
        limits: Limits | None = None,
        parallel: int = 0,
        cgroup: str = "",
        proc: Path = Path("/proc"),
    ) -> None:
        if set(str(root)) & set(",:\\"):
            raise InvalidArgument(f"snapshot root {root}: overlay mount options can't name a path with ',', ':' or '\\' in it")
        self.root = root
        self._unpack, self._layers_dir, self._links = root / "unpack", root / "layers", root / "l"
        self._containers_dir, self._trash, self._empty = root / "containers", root / "trash", root / "empty"
        self._processes = processes
        self._proc = proc
        self._limits = limits or Limits()
        self._workers = asyncio.Semaphore(parallel or os.cpu_count() or 1)
        self._cgroup = cgroup
        self._layers: dict[str, Layer] = {}
        self._containers: dict[str, tuple[str, ...]] = {}  # the chain ids that each one needs; its own first
        self._usage: dict[str, Usage] = {}
        self._numbers = 0
        self._claims = KeyedLock()
        self._keys = KeyedLock()
        self._boot = ""
        self._settling = Settling(self._layers_dir, self._settled)
        self._supervisor = Supervisor("snapshots")

    async def open(self, known: Collection[str]) -> list[str]:
        """Learn what is on disk, and get rid of what nobody owns.

        `known` are the keys of the snapshots in the ledger. Everything in `unpack/` goes, for its workers are dead by now, and
        so do snapshots that are not known, unless they are mounted: a ledger that was lost must not cost a running container its
        files. Returns what was found, relative to the root; the files are deleted in the background.
        """
        unowned, unsettled = await in_thread(self._open, known)
        for chain_id in unsettled:
            self._settling.add(chain_id)
        self._supervisor.start(self._empty_trash(), name="empty the trash")
        return unowned

    def _open(self, known: Collection[str]) -> tuple[list[str], list[str]]:
        self._boot = files.read(f"{self._proc}/sys/kernel/random/boot_id").decode().strip()
        for directory in (self._unpack, self._layers_dir, self._links, self._containers_dir, self._trash):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        volumes.make_empty(self._empty)
        self._layers, unsettled, unowned = layout.load_layers(self._layers_dir, self._boot)
        for layer in self._layers.values():
            layout.link(self._links, layer, self._layers_dir)
            self._numbers = max(self._numbers, int(layer.short, 36) + 1)
        shorts = {layer.short for layer in self._layers.values()}
        for link in [link for link in self._links.iterdir() if link.name not in shorts]:
            link.unlink()
        unowned += self._unpack.iterdir()
        mounted = _mounted_uppers(self._proc)
        for directory in self._containers_dir.iterdir():
            mount_point = mounted.get(str(directory / "fs"))
            if mount_point is not None and directory.name not in known:
                _log.error("a snapshot that nobody owns is mounted, and kept", snapshot=directory.name, mount=mount_point)
            if mount_point is not None or directory.name in known:
                with suppress(FileNotFoundError):  # cut off before it was written: nothing stands on a layer yet
                    self._containers[directory.name] = tuple((directory / "chain").read_text().split("\n"))
            else:
                unowned.append(directory)
        for directory in unowned:
            directory.rename(self._trash / secrets.token_hex(8))
        return sorted(str(path.relative_to(self.root)) for path in unowned), unsettled

    async def _empty_trash(self) -> None:
        for directory in await in_thread(lambda: list(self._trash.iterdir())):
            try:
                await in_thread(remove_tree, directory)
            except (OSError, OrlopError) as error:  # the next start tries again
                _log.error("leftover not removed", path=str(directory), error=str(error))

    async def close(self, budget: float) -> None:
        """Wait for what is being changed on disk, `budget` seconds at the most."""
        await self._settling.close()
        await self._supervisor.stop(budget)

    # Layers

    def layer(self, chain_id: str) -> Layer | None:
        """A committed layer."""
        return self._layers.get(chain_id)

    def layers(self) -> list[Layer]:
        return list(self._layers.values())

    def claim(self, chain_id: str) -> AbstractAsyncContextManager[None]:
        """Held around "is it there? else unpack and commit it": whoever wants the same layer meanwhile waits, and finds it."""
        return self._claims.hold(chain_id)

    async def unpack(self, key: str, blob: Path, diff_id: str) -> Unpacked:
        """Unpack a stored layer blob into `unpack/<key>`, in a process of its own.

        After an error the directory may be there: the caller, whose ledger entry names the key, calls `discard`.

        Raises:
            DataLoss: the blob is damaged, or its content is not what `diff_id` says.
            InvalidArgument: the layer breaks the rules of layers, or tries to get out of its directory.
            ResourceExhausted: it is a bomb, or the disk is full.
            DeadlineExceeded: it took longer than `timeouts.UNPACK_LAYER`.
        """
        directory = self._unpack / validate(key, "unpack key")
        request = {"target": str(directory / "fs"), "layer": str(blob), "diff_id": diff_id, "limits": asdict(self._limits)}
        async with self._workers:
            await self._guarded(key, _make_unpack_directory, directory)
            await failpoints.hit("snapshots.unpack.worker")
            answer = os.memfd_create("unpack answer")
            try:
                text = json.dumps({**request, "answer": answer}).encode()
                done = await self._worker("unpack_worker", text, (answer,), timeouts.UNPACK_LAYER)
                said = os.pread(answer, os.fstat(answer).st_size, 0)
            finally:
                os.close(answer)
        return await in_thread(_unpacked, key, diff_id, said, done)

    async def commit(self, unpacked: Unpacked, parent: str) -> Layer:
        """Put an unpacked layer on top of the committed layer `parent` (empty: none). It appears at once, and complete.

        On disk it is a while later: a machine that loses power before that is without it after its next boot.
        The caller holds its claim. Raises NotFound: there is no such parent.
        """
        if parent and parent not in self._layers:
            raise NotFound(f"layer {parent} is gone, and so {unpacked.diff_id} can't be put on top of it")
        chain_id = layout.chain_id(parent, unpacked.diff_id)
        self._numbers += 1
        layer = Layer(
            chain_id=chain_id,
            parent=parent,
            diff_id=unpacked.diff_id,
            short=layout.short_name(self._numbers - 1),
            size=unpacked.size,
            inodes=unpacked.inodes,
            opaque=b"" in unpacked.opaque,
        )
        directory = self._unpack / unpacked.key
        parents = [] if layer.opaque else self._directories(parent)
        await self._guarded(unpacked.key, complete, directory, unpacked, parents)
        await failpoints.hit("snapshots.commit.rename")
        await self._guarded(unpacked.key, self._publish, directory, layer)
        self._settling.add(chain_id)
        return layer

    def _publish(self, directory: Path, layer: Layer) -> None:
        layout.write_record(directory, layer, self._boot)
        directory.rename(self._layer_directory(layer.chain_id))
        layout.link(self._links, layer, self._layers_dir)
        self._layers[layer.chain_id] = layer

    async def _settled(self, chain_id: str) -> None:
        if (layer := self._layers.get(chain_id)) is not None:
            await self._guarded(chain_id, self._write_settled, layer)

    def _write_settled(self, layer: Layer) -> None:
        if self._layers.get(layer.chain_id) is layer:  # not deleted meanwhile, nor another one in its place
            layout.write_settled_record(self._layer_directory(layer.chain_id), layer)

    async def sync(self) -> None:
        """Wait until all committed layers are on disk. Raises OSError."""
        await self._settling.sync()

    async def discard(self, key: str) -> None:
        """Remove `unpack/<key>`; nothing there: no-op. The release of a ledger entry LAYER_UNPACK."""
        await self._guarded(key, remove_tree, self._unpack / validate(key, "unpack key"))

    def unused(self, needed: Iterable[str]) -> list[str]:
        """Layers that neither `needed` (chain ids of images) nor any snapshot stands on, in an order of removal."""
        needed_closure = layout.closure(self._layers, {*needed, *chain.from_iterable(self._containers.values())})
        unused = [chain_id for chain_id in self._layers if chain_id not in needed_closure]
        return sorted(unused, key=lambda chain_id: len(layout.closure(self._layers, {chain_id})), reverse=True)

    async def delete_layer(self, chain_id: str) -> None:
        """Remove a layer that nothing stands on; not there: no-op. It disappears at once; its files take a while.

        One that can't be removed is there again when this raises: its directory is in the way of another one.

        Raises:
            FailedPrecondition: a layer or a snapshot stands on it.
        """
        layer = self._layers.get(chain_id)
        if layer is None:
            return
        users = [other.chain_id for other in self._layers.values() if other.parent == chain_id]
        users += [key for key, stands_on in self._containers.items() if chain_id in stands_on]
        if users:
            raise FailedPrecondition(f"layer {chain_id} is in use by {', '.join(users[:3])}; it stays")
        del self._layers[chain_id]  # before the first await: nobody finds it any more
        self._settling.forget(chain_id)
        async with self._claims.hold(chain_id):
            try:
                await failpoints.hit("snapshots.delete_layer.rename")
                await self._guarded(chain_id, self._delete, layer)
            except Exception:
                if await in_thread(self._layer_directory(chain_id).exists):
                    self._layers[chain_id] = layer
                raise

    def _delete(self, layer: Layer) -> None:
        trash = self._trash / secrets.token_hex(8)
        self._layer_directory(layer.chain_id).rename(trash)
        with suppress(FileNotFoundError):
            (self._links / layer.short).unlink()
        remove_tree(trash)

    # Snapshots of containers

    async def prepare(self, key: str, chain_id: str, kept: Iterable[str] = ()) -> list[Mount]:
        """Make a container's writable snapshot on a committed layer (empty: on nothing), and say how to mount it.

        `kept` are chain ids whose layers stay, too, for as long as this snapshot does; `volume` tells how to mount those.

        It is mounted with `volatile`, which overlayfs allows once in the life of an upper directory, so there is no way to
        get the mounts again: a snapshot serves one container, and a new container gets a new one. After an error the caller,
        whose ledger entry names the key, calls `remove`.

        Raises:
            NotFound: the layer, or one below it, is not there.
            AlreadyExists: the key is in use.
        """
        directory = self._containers_dir / validate(key, "snapshot key")
        lowers = self._short_names(chain_id)
        needed = (chain_id, *(other for other in kept if self._chain(other)))
        if key in self._containers:
            raise AlreadyExists(f"snapshot {key} exists")
        self._containers[key] = needed  # before the first await: from here on its layers are in use
        await failpoints.hit("snapshots.prepare.mkdir")
        await self._guarded(key, _make_snapshot, directory, needed, self._directories(chain_id)[:1])
        self._usage[key] = Usage(0, 0, time.time())  # known without a measurement: nothing is written yet
        if not lowers:
            return [Mount("bind", str(directory / "fs"), ("rbind", "rw"))]
        options = ("index=off", "volatile", f"workdir={directory / 'work'}", f"upperdir={directory / 'fs'}", f"lowerdir={':'.join(lowers)}")
        return [Mount("overlay", "overlay", options)]

    async def remove(self, key: str) -> None:
        """Remove a container's snapshot; nothing there: no-op. The release of a ledger entry SNAPSHOT.

        Raises:
            Busy: it is mounted, or something is mounted inside it. Nothing was removed.
        """
        directory = self._containers_dir / validate(key, "snapshot key")
        await failpoints.hit("snapshots.remove.rmtree")
        await self._guarded(key, self._remove, directory)
        self._containers.pop(key, None)
        self._usage.pop(key, None)

    def _remove(self, directory: Path) -> None:
        if (mount_point := _mounted_uppers(self._proc).get(str(directory / "fs"))) is not None:
            raise Busy(f"snapshot {directory.name} is mounted at {mount_point}; it is removed after that is unmounted")
        remove_tree(directory)

    def exists(self, key: str) -> bool:
        """Whether a container's snapshot is there, or being made."""
        return key in self._containers

    async def volume(self, chain_id: str, sub_path: str = "") -> Mount:
        """How to mount an image's files, or its directory `sub_path`, read-only; symlinks in it don't lead out of the image.

        For a container that keeps the layers (`prepare`). Nothing is mounted by this.

        Raises:
            NotFound: a layer is not there, or no directory at `sub_path`.
            InvalidArgument: overlayfs can't be told of that directory.
        """
        layers = self._directories(chain_id)
        return await in_thread(volumes.mount, layers, self._short_names(chain_id), self._empty, sub_path)

    async def read_file(self, chain_id: str, path: str) -> bytes | None:
        """A regular file of at most `MAX_USER_FILE` bytes, as a container would see it; None if there is none.

        Raises:
            NotFound: a layer is not there.
            ResourceExhausted: the file is longer.
        """
        return await in_thread(lookup.read_file, self._directories(chain_id), os.fsencode(path), MAX_USER_FILE)

    # Usage

    async def measure(self) -> dict[str, Usage]:
        """Measure what all containers have written, in one helper process, and remember it."""
        keys = list(self._containers)
        if not keys:
            return {}
        directories = [str(self._containers_dir / key / "fs") for key in keys]
        request = json.dumps({"directories": directories, "seconds": timeouts.SNAPSHOT_USAGE * _OF_THE_BUDGET}).encode()
        done = await self._worker("usage_worker", request, (), timeouts.SNAPSHOT_USAGE)
        now = time.time()
        try:
            for key, (size, inodes, finished) in zip(keys, json.loads(done.stdout), strict=True):
                # What was not counted to its end is at least that much, and the last measurement may know of more.
                if key in self._containers and (finished or key not in self._usage or size > self._usage[key].size):
                    self._usage[key] = Usage(size, inodes, now)
        except ValueError as error:
            raise Internal(f"the usage worker ended with {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}") from error
        return dict(self._usage)

    def usage(self, key: str) -> Usage | None:
        """What was last measured of a container's snapshot, or 0 for one that is new; None if it is of before this daemon's start."""
        return self._usage.get(key)

    def total(self) -> Usage:
        """Of all layers and, as last measured, all snapshots together."""
        parts = [(layer.size, layer.inodes) for layer in self._layers.values()]
        parts += [(usage.size, usage.inodes) for usage in self._usage.values()]
        return Usage(sum(size for size, _ in parts), sum(inodes for _, inodes in parts), time.time())

    # Inside

    def _layer_directory(self, chain_id: str) -> Path:
        return self._layers_dir / chain_id.removeprefix("sha256:")

    def _chain(self, chain_id: str) -> list[Layer]:
        try:
            return layout.chain(self._layers, chain_id)
        except KeyError as error:
            raise NotFound(f"layer {error.args[0]} is not on this node; the image has to be imported or pulled again") from None

    def _directories(self, chain_id: str) -> list[Path]:
        return [self._layer_directory(layer.chain_id) / "fs" for layer in self._chain(chain_id)]

    def _short_names(self, chain_id: str) -> list[str]:
        return [str(self._links / layer.short) for layer in self._chain(chain_id)]

    async def _guarded(self, key: str, change: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """A change of the directory of `key`: one at a time, and to its end even if the caller is cancelled meanwhile."""

        async def act() -> None:
            async with self._keys.hold(key):
                await in_thread(change, *args, **kwargs)

        await self._supervisor.detached(act(), name=f"{change.__name__} {key}")

    async def _worker(self, module: str, request: bytes, pass_fds: tuple[int, ...], budget: float) -> Completed:
        # -I: neither the working directory nor PYTHON* variables decide what runs as root.
        argv = (sys.executable, "-I", "-m", f"agent.snapshots.{module}")
        return await self._processes.run(Command(argv, Path("/"), _WORKER_ENV, request, budget, self._cgroup, pass_fds))


def _mounted_uppers(proc: Path) -> dict[str, str]:
    """Upper directories of the overlay mounts in our mount namespace, where shims make them too, and where each is mounted."""
    lines = [line for line in files.read(f"{proc}/self/mountinfo").splitlines() if b"upperdir=" in line]
    return {
        option.removeprefix("upperdir="): str(mount.mount_point)
        for mount in parse_mountinfo(b"\n".join(lines))
        for option in mount.super_options.split(",")
        if option.startswith("upperdir=")
    }


def _make_unpack_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / "fs").mkdir(mode=0o755)


def _make_snapshot(directory: Path, needed: tuple[str, ...], top: list[Path]) -> None:
    directory.mkdir(mode=0o700)
    (directory / "chain").write_text("\n".join(needed))
    upper = directory / "fs"
    upper.mkdir(mode=0o755)
    for lower in top:  # overlayfs shows the upper directory's owner and mode as the root's
        status = lower.stat()
        os.chown(upper, status.st_uid, status.st_gid)
        upper.chmod(status.st_mode & 0o7777)
    (directory / "work").mkdir(mode=0o711)


def _unpacked(key: str, diff_id: str, answer: bytes, done: Completed) -> Unpacked:
    try:
        fields = json.loads(answer)
        if "error" in fields:
            raise from_code(int(fields["code"]), f"layer {diff_id}: {fields['error']}")
        if fields["ignored_xattrs"]:
            _log.debug("extended attributes left out", layer=diff_id, count=fields["ignored_xattrs"])
        return Unpacked.from_answer(key, diff_id, fields)
    except (ValueError, KeyError, TypeError) as error:
        said = done.stderr.decode(errors="replace")[-500:]
        raise Internal(f"the worker that unpacked layer {diff_id} ended with {done.returncode}: {said}") from error

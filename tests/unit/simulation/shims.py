"""Shims of the simulated node: their short-lived actions `start` and `delete`, their sockets, and the way to them (runtime-v2 2 and 5)."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from functools import partial
from pathlib import Path

from agent.aio import Supervisor, in_thread
from agent.api.runtime.task.v3 import shim_pb2 as api
from agent.errdefs import Unavailable
from agent.linux.processes import Command
from agent.runtime.v2.bootstrap import Bootstrap
from agent.runtime.v2.config import RuntimeConfig
from tests.unit.simulation.clock import Life
from tests.unit.simulation.engine import Container, Engine
from tests.unit.simulation.generations import GENERATIONS, Generation, printed, refused
from tests.unit.simulation.node import Job, Node
from tests.unit.simulation.shim_service import ShimConnection, ShimService, timestamp

_SANDBOX, _TYPE = "io.kubernetes.cri.sandbox-id", "io.kubernetes.cri.container-type"
_NO_PID = 0xFFFFFFFF


class Shims:
    """`start` and `delete` of every generation, the sockets, and the way to a shim."""

    def __init__(self, node: Node, engine: Engine, config: RuntimeConfig) -> None:
        self.node = node
        self.engine = engine
        self.config = config
        self.engine_root = config.engine_root / config.namespace
        self.sockets: dict[str, ShimService | None] = {}
        """By address; None: a dead shim's."""
        self.deleting: set[str] = set()
        for generation in GENERATIONS:
            node.programs[generation.binary] = partial(self._action, generation)

    def live(self) -> list[ShimService]:
        return [shim for shim in self.sockets.values() if shim is not None]

    def of(self, sandbox: str) -> list[ShimService]:
        """The live shims of a pod."""
        return [shim for shim in self.live() if shim.group == sandbox or any(each.sandbox == sandbox for each in shim.containers.values())]

    def unmount(self, container: Container, *, release: bool) -> None:
        """The newest first. Raises OSError EBUSY. `release`: with what is mounted over it."""
        for mount in reversed(container.mounts):
            if release:
                mount.pinned_by = ""
            self.node.kernel.unmount(mount)
            container.mounts.remove(mount)

    async def connect(self, life: Life, bootstrap: Bootstrap, supervisor: Supervisor, budget: float) -> ShimConnection:
        await self.node.step()
        life.check()
        shim = self.sockets.get(bootstrap.address)
        if shim is None:
            raise Unavailable(f"nobody listens at {bootstrap.address}")
        return ShimConnection(shim, life)

    def remove_stale(self, address: str) -> None:
        if address in self.sockets and self.sockets[address] is None:
            del self.sockets[address]

    # ---- programs

    async def _action(self, generation: Generation, job: Job, command: Command) -> int:
        if command.argv[-1] == "start":
            return await self._start(generation, job, command)
        if command.argv[-1] == "delete":
            return await self._delete(generation, job, command)
        job.says(stderr=b"flag provided but not defined: -info")
        return 2

    async def _start(self, generation: Generation, job: Job, command: Command) -> int:
        node = self.node
        await node.step()
        if failure := refused(generation, command):
            job.says(stderr=failure)
            return 1
        mode = node.fault("shim start")
        if mode == "fails":
            job.says(stderr=b"no space left on device")
            return 1
        if mode == "hangs":
            await asyncio.Event().wait()
        name = command.argv[command.argv.index("-id") + 1]
        annotations = json.loads((command.cwd / "config.json").read_text())["annotations"]
        group = annotations[_SANDBOX] if generation.groups else name
        address = self.config.socket_addresses(group)[0]
        running = self.sockets.get(address)
        if running is None and (generation.kind != "kata" or annotations[_TYPE] == "sandbox"):
            comm = generation.binary[:15]
            argv = [part for part in command.argv if part not in ("start", "-bundle")]
            shim = ShimService(self, generation, group, address, node.kernel.spawn(comm, argv, cgroup=job.proc.cgroup))
            shim.bundle = command.cwd
            self.sockets[address] = shim
            try:
                os.close(os.open(command.cwd / "log", os.O_WRONLY | os.O_NONBLOCK))
            except OSError as error:
                if error.errno == errno.ENXIO:
                    shim.hung = True
                else:
                    shim.proc.end(1)
            if mode == "dies":
                shim.proc.end(2)
        await node.step()
        if mode == "hangs late":
            await asyncio.Event().wait()
        if mode == "garbage":
            job.says(b"panic: something\n")
            return 0
        job.says(printed(generation, address))
        return 0

    async def _delete(self, generation: Generation, job: Job, command: Command) -> int:
        """`shim delete`, in its bundle."""
        node, name, bundle = self.node, command.cwd.name, command.cwd
        if name in self.deleting:
            node.broken(f"two `shim delete` of {name} at once")
        self.deleting.add(name)
        try:
            for shim in self.live():
                known = shim.containers.get(name)
                if known is not None and known.status != "creating":
                    node.broken(f"`shim delete` of {name} while its shim lives, and knows it")
            self._insist_on_order(name)
            return await self._delete_one(generation, job, name, bundle)
        finally:
            self.deleting.discard(name)
            if not bundle.is_dir():
                node.broken(f"the bundle of {name} went while its `shim delete` ran")

    def _insist_on_order(self, name: str) -> None:
        """The containers of a pod go before its sandbox, where they are in the same shim; one whose teardown failed holds up no other."""
        if (deleted := self.engine.containers.get(name)) is not None:
            deleted.delete_tried = True
        if {
            "cleanup.identify error",
            "cleanup.identify hang",
        } & self.node.fired.keys():  # what can fail before a delete is tried
            return
        for other in self.engine.containers.values():
            if other.sandbox == name != other.id and not other.delete_tried and other.state_dir is not None and other.processes(self.node):
                self.node.broken(f"`shim delete` of the sandbox {name} before that of its container {other.id} (5)")

    async def _delete_one(self, generation: Generation, job: Job, name: str, bundle: Path) -> int:
        node = self.node
        await node.step()
        mode = node.fault("shim delete")
        if mode == "fails":
            job.says(stderr=b"context deadline exceeded")
            return 1
        if mode == "hangs":
            await asyncio.Event().wait()
        container = self.engine.containers.get(name)
        answer = api.DeleteResponse(exit_status=137, exited_at=timestamp(node.loop.time()))
        needs = {"runc": "runtime", "kata": "config.json", "gvisor": "state.json"}[generation.kind]
        if not (bundle / needs).exists() or container is None:
            if generation.delete_without_runtime:
                job.says(stderr=f"open {bundle / needs}: no such file".encode())
                return 1
            answer.pid = _NO_PID
        elif mode != "lies":
            failure = await self._take_down(generation, container)
            if failure:
                if generation.kind == "kata":
                    job.says(stderr=failure.encode())
                    return 1
                job.says(stderr=b"level=warning " + failure.encode())
            if container.init is not None:
                answer.pid = container.init.pid
        job.says(answer.SerializeToString())
        return 0

    async def _take_down(self, generation: Generation, container: Container) -> str:
        if generation.kind == "runc":
            assert container.state_dir is not None
            failure = await self.engine.delete(container.id, container.state_dir, container.cgroup)
        else:
            failure = await self.engine.end_all(container.cgroup)
        if generation.kind == "gvisor":  # loses its state and leaves the rootfs mounted
            return failure
        await self.node.step()
        try:
            self.unmount(container, release=generation.kind == "kata" and not failure)
        except OSError as error:
            failure = failure or f"failed to unmount rootfs: {error}"
        return failure


class SimSockets:
    """`agent.runtime.v2.sockets.Sockets`."""

    def __init__(self, shims: Shims) -> None:
        self._shims = shims

    async def remove_stale(self, address: str) -> None:
        await in_thread(self._shims.remove_stale, address)

"""What a runc shim does, as far as the agent relies on it: one suite, for real shims (`tests/e2e/test_shim_contract.py`) and for the
simulated ones (`tests/unit/simulation/test_contract.py`), so that the simulation can't drift from what it stands for.

Each check is a coroutine function of a `Rig`; it leaves nothing if it passes. What differs between generations is in `Traits`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from agent.aio import Supervisor
from agent.api.runtime.task.v3 import shim_pb2 as api
from agent.api.types.mount_pb2 import Mount
from agent.api.types.task import task_pb2
from agent.config.handlers import RuntimeHandler
from agent.errdefs import Closed, NotFound, OrlopError, Unimplemented, Unknown
from agent.linux.processes import Command, Completed
from agent.runtime.v2 import bootstrap, options
from agent.runtime.v2.bootstrap import Bootstrap
from agent.runtime.v2.bundle import Bundle, Bundles
from agent.runtime.v2.config import RuntimeConfig
from agent.runtime.v2.node import Cgroups, Mounts, Processes, Sockets
from agent.runtime.v2.shim_binary import ShimBinaries, arguments, environment
from agent.runtime.v2.shim_log import ShimLog
from agent.runtime.v2.transport import Connect, Connection

M = TypeVar("M", bound=Message)

POD, SECOND = "contract-pod", "contract-second"
_NEVER = 0.4
"""Seconds for which an answer that must not come is waited for."""


@dataclass(frozen=True)
class Traits:
    """In what generations differ."""

    version: int
    """Of the task service."""
    delete_without_runtime: int
    """The exit status of `delete` where Create never came so far."""


TRAITS = {"1.6": Traits(2, 1), "1.7": Traits(2, 1), "2.1": Traits(3, 0), "main": Traits(3, 0)}


@dataclass
class Rig:
    """Shims of one generation on a node, and what can be looked at there. The pod `POD` is the first container of its shim."""

    traits: Traits
    config: RuntimeConfig
    handler: RuntimeHandler
    processes: Processes
    mounts: Mounts
    cgroups: Cgroups
    sockets: Sockets
    connect: Connect
    spec: Callable[[str], dict[str, Any]]
    rootfs: Mount
    supervisor: Supervisor = field(default_factory=lambda: Supervisor("contract"))
    logs: list[ShimLog] = field(default_factory=list)
    served: list[Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bundles = Bundles(self.config.bundles, self.config.work_dirs)
        self.binaries = ShimBinaries(self.config, self.processes)

    async def bundle(self, name: str) -> Bundle:
        kind = "sandbox" if name == POD else "container"
        annotations = {"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": POD}
        return await self.bundles.create(name, {**self.spec(name), "annotations": annotations})

    async def start(self, name: str = POD) -> Bootstrap:
        """A bundle, and the shim that `start` finds or makes for it."""
        made = await self.bundle(name)
        return await self.start_in(made)

    async def start_in(self, made: Bundle) -> Bootstrap:
        leaf = self.config.shim_leaf(POD)
        await self.cgroups.create(leaf)
        self.logs.append(await ShimLog.open(made.id, made.log))
        binary = self.handler.path
        started = await self.binaries.start(binary, made, options.of_handler(self.handler, self.config), leaf)
        bootstrap.write(made.path, started)
        return started

    async def dial(self, where: Bootstrap) -> Connection:
        made = await self.connect(where, self.config.namespace, self.supervisor, 10)
        self.served.append(made)
        return made

    async def shim(self) -> Connection:
        """A shim with nothing in it."""
        return await self.dial(await self.start())

    async def call(self, connection: Connection, method: str, request: Message, response: type[M]) -> M:
        return await connection.call(f"containerd.task.v{self.traits.version}.Task", method, request, response)

    async def create(self, connection: Connection, name: str = POD, stdout: str = "") -> int:
        made = self.bundles.at(name)
        request = api.CreateTaskRequest(
            id=name, bundle=str(made.path), rootfs=[self.rootfs], stdout=stdout, stderr=stdout,
            options=options.of_handler(self.handler, self.config),
        )  # fmt: skip
        return (await self.call(connection, "Create", request, api.CreateTaskResponse)).pid

    async def run(self, connection: Connection, name: str = POD) -> int:
        pid = await self.create(connection, name)
        await self.call(connection, "Start", api.StartRequest(id=name), api.StartResponse)
        return pid

    async def kill(self, connection: Connection, name: str = POD, *, everybody: bool = True) -> None:
        await self.call(connection, "Kill", api.KillRequest(id=name, signal=signal.SIGKILL, all=everybody), Empty)

    async def wait(self, connection: Connection, name: str = POD) -> api.WaitResponse:
        return await self.call(connection, "Wait", api.WaitRequest(id=name), api.WaitResponse)

    async def delete(self, connection: Connection, name: str = POD) -> api.DeleteResponse:
        return await self.call(connection, "Delete", api.DeleteRequest(id=name), api.DeleteResponse)

    async def pid_of_shim(self, connection: Connection) -> int:
        return (await self.call(connection, "Connect", api.ConnectRequest(id="whoever"), api.ConnectResponse)).shim_pid

    async def kill_shim(self, connection: Connection) -> None:
        process = await self.processes.open(await self.pid_of_shim(connection))
        assert process is not None
        process.kill(signal.SIGKILL)
        await process.wait()
        process.close()
        await connection.wait_closed()

    async def shim_delete(self, name: str = POD) -> Completed:
        made = self.bundles.at(name)
        argv = arguments(self.config, self.handler.path, name, "delete", "-bundle", str(made.path))
        return await self.processes.run(Command(argv, made.path, environment(self.config), b"", 30))

    async def alive(self, pid: int) -> bool:
        process = await self.processes.open(pid)
        if process is not None:
            process.close()
        return process is not None

    async def left(self, name: str = POD) -> list[str]:
        """What is left of a container, its bundle apart."""
        found = []
        if await self.cgroups.processes(self.spec(name)["linux"]["cgroupsPath"]):
            found.append("processes")
        if (self.config.engine_root / self.config.namespace / name).exists():
            found.append("engine state")
        if await self.mounts.at_or_below(self.bundles.at(name).path):
            found.append("mounts")
        return found

    async def end(self) -> None:
        """Take down whatever a check has left, also a failed one."""
        for connection in self.served:
            connection.close()
        await self.cgroups.kill(self.config.shim_leaf(POD), 5)
        for name in (SECOND, POD):
            made = self.bundles.at(name)
            if made.path.is_dir():
                await self.shim_delete(name)
                await self.mounts.unmount_all(made.path)
                await self.bundles.remove(made)
                await self.bundles.remove_work_dir(made)
            await self.cgroups.remove(self.spec(name)["linux"]["cgroupsPath"])
        await self.cgroups.remove(self.config.shim_leaf(POD))
        for address in self.config.socket_addresses(POD):
            await self.sockets.remove_stale(address)
        for shim_log in self.logs:
            shim_log.close()
        await self.supervisor.stop(1)


Check = Callable[[Rig], Awaitable[None]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


@check
async def one_shim_for_a_pod(rig: Rig) -> None:
    first = await rig.start()
    second = await rig.start(SECOND)
    assert second.address == first.address
    one, other = await rig.dial(first), await rig.dial(second)
    assert await rig.pid_of_shim(one) == await rig.pid_of_shim(other)


@check
async def it_listens_where_the_agent_expects_it(rig: Rig) -> None:
    assert (await rig.start()).address == rig.config.socket_addresses(POD)[0]


@check
async def one_version_of_the_task_service(rig: Rig) -> None:
    started = await rig.start()
    assert started.version == rig.traits.version
    connection = await rig.dial(started)
    other = f"containerd.task.v{5 - rig.traits.version}.Task"
    with pytest.raises(Unimplemented):
        await connection.call(other, "Connect", api.ConnectRequest(id=POD), api.ConnectResponse)


@check
async def a_life(rig: Rig) -> None:
    connection = await rig.shim()
    pid = await rig.create(connection)
    assert await state(rig, connection) == task_pb2.CREATED
    await rig.call(connection, "Start", api.StartRequest(id=POD), api.StartResponse)
    assert await state(rig, connection) == task_pb2.RUNNING
    assert pid in {process.pid for process in (await rig.call(connection, "Pids", api.PidsRequest(id=POD), api.PidsResponse)).processes}
    assert set(await rig.left()) == {"processes", "engine state", "mounts"}
    with pytest.raises(Unknown):
        await rig.delete(connection)
    with pytest.raises(OrlopError):
        await rig.call(connection, "Start", api.StartRequest(id=POD), api.StartResponse)
    waiting = asyncio.ensure_future(rig.wait(connection))
    await rig.kill(connection)
    assert (await waiting).exit_status == 137
    assert (await rig.wait(connection)).exit_status == 137, "it is told again, until Delete"
    with pytest.raises(NotFound):
        await rig.kill(connection, everybody=False)
    with suppress(NotFound):
        await rig.kill(connection)
    deleted = await rig.delete(connection)
    assert (deleted.pid, deleted.exit_status) == (pid, 137)
    assert await rig.left() == []
    with pytest.raises(NotFound):
        await state(rig, connection)


async def state(rig: Rig, connection: Connection) -> int:
    return (await rig.call(connection, "State", api.StateRequest(id=POD), api.StateResponse)).status


@check
async def a_created_one_is_deleted_and_never_waited_for(rig: Rig) -> None:
    connection = await rig.shim()
    pid = await rig.create(connection)
    waiting = asyncio.ensure_future(rig.wait(connection))
    await asyncio.sleep(0.05)
    deleted = await rig.delete(connection)
    assert deleted.exit_status == 0
    assert deleted.exited_at.seconds <= 0
    assert not await rig.alive(pid)
    assert await rig.left() == []
    done, _ = await asyncio.wait((waiting,), timeout=_NEVER)
    assert not done
    waiting.cancel()


@check
async def unknown_ones(rig: Rig) -> None:
    connection = await rig.shim()
    with pytest.raises(NotFound):
        await state(rig, connection)
    with pytest.raises(NotFound):
        await rig.delete(connection)
    with pytest.raises(NotFound):
        await rig.kill(connection)


@check
async def shutdown_with_a_task_does_nothing(rig: Rig) -> None:
    connection = await rig.shim()
    await rig.run(connection)
    await rig.call(connection, "Shutdown", api.ShutdownRequest(id=POD), Empty)
    assert await state(rig, connection) == task_pb2.RUNNING


@check
async def shutdown_without_a_task_ends_it(rig: Rig) -> None:
    started = await rig.start()
    connection = await rig.dial(started)
    process = await rig.processes.open(await rig.pid_of_shim(connection))
    assert process is not None
    with suppress(Closed):  # its answer is lost now and then
        await rig.call(connection, "Shutdown", api.ShutdownRequest(id=POD), Empty)
    async with asyncio.timeout(5):
        await process.wait()
    process.close()
    with pytest.raises(OrlopError):
        await rig.dial(started)


@check
async def an_idle_shim_takes_the_next_create(rig: Rig) -> None:
    connection = await rig.shim()
    await rig.run(connection)
    await rig.kill(connection)
    await rig.wait(connection)
    await rig.delete(connection)
    await rig.bundle(SECOND)
    assert await rig.alive(await rig.run(connection, SECOND))


@check
async def containers_outlive_a_killed_shim(rig: Rig) -> None:
    connection = await rig.shim()
    pid = await rig.run(connection)
    waiting = asyncio.ensure_future(rig.wait(connection))
    await asyncio.sleep(0.05)
    await rig.kill_shim(connection)
    with pytest.raises(Closed):
        await waiting
    assert await rig.alive(pid)
    assert set(await rig.left()) == {"processes", "engine state", "mounts"}
    deleted = await rig.shim_delete()
    assert deleted.returncode == 0
    answer = api.DeleteResponse.FromString(deleted.stdout)
    assert (answer.pid, answer.exit_status) == (pid, 137)
    assert not await rig.alive(pid)
    assert await rig.left() == []
    assert (await rig.shim_delete()).returncode in (0, 1), "a second one does no harm"


@check
async def a_new_shim_takes_the_place_of_a_killed_one(rig: Rig) -> None:
    first = await rig.start()
    connection = await rig.dial(first)
    pid = await rig.pid_of_shim(connection)
    await rig.kill_shim(connection)
    with pytest.raises(OrlopError):
        await rig.dial(first)
    second = await rig.start_in(rig.bundles.at(POD))
    assert second.address == first.address
    assert await rig.pid_of_shim(await rig.dial(second)) != pid


@check
async def delete_where_nothing_was_created(rig: Rig) -> None:
    await rig.bundle(POD)
    deleted = await rig.shim_delete()
    assert deleted.returncode == rig.traits.delete_without_runtime
    if deleted.returncode == 0:
        assert api.DeleteResponse.FromString(deleted.stdout).pid in (0, 0xFFFFFFFF)


@check
async def delete_beside_other_containers(rig: Rig) -> None:
    """It touches one container alone, also while its shim serves others."""
    connection = await rig.shim()
    pid = await rig.run(connection)
    await rig.bundle(SECOND)
    with pytest.raises(OrlopError):
        await rig.create(connection, SECOND, stdout="/no/such/fifo")
    with pytest.raises(NotFound):
        await rig.delete(connection, SECOND)
    assert (await rig.shim_delete(SECOND)).returncode == 0
    assert await rig.left(SECOND) == []
    assert await rig.alive(pid)
    assert await state(rig, connection) == task_pb2.RUNNING


@check
async def a_create_twice(rig: Rig) -> None:
    connection = await rig.shim()
    pid = await rig.run(connection)
    with pytest.raises(OrlopError):
        await rig.create(connection)
    assert await rig.alive(pid)


def mount_of(directory: Path) -> Mount:
    """A root file system from a directory."""
    return Mount(type="bind", source=str(directory), options=["rbind", "rw"])

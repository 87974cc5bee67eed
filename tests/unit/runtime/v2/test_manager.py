"""The task manager on simulated shims: which shim a task goes into, what is in the ledger when, and what a restart finds."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from agent import failpoints, timeouts
from agent.config.handlers import RuntimeHandler
from agent.errdefs import AlreadyExists, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unavailable, Unknown
from agent.events import Event, Exchange, Exit, TaskDelete, TaskExit, TaskOOM
from agent.linux.mounts import Mount
from agent.linux.processes import Completed
from agent.runtime.v2 import bootstrap
from agent.runtime.v2.config import RuntimeConfig
from agent.runtime.v2.manager import TaskManager
from agent.runtime.v2.shim import ShimState
from agent.runtime.v2.task import CreateTask, Task
from agent.store.ledger import Intent, Kind, Ledger, State
from agent.store.release import Releases
from agent.store.store import Store
from tests.unit.runtime.v2.sim import FAILS, SimCgroups, SimNode

RUNC = RuntimeHandler("runc", path="/bin/true")
GVISOR = RuntimeHandler("gvisor", "io.containerd.runsc.v1", path="/bin/true", sandbox="task")


class Collector(Exchange):
    """Keeps what is published, without a subscription to drain."""

    def __init__(self, events: list[Event]) -> None:
        super().__init__()
        self._events = events

    def publish(self, event: Event) -> None:
        self._events.append(event)


@dataclass
class Rig:
    """A manager on a node, with a ledger; and its successors on the same node."""

    tmp: Path
    node: SimNode
    store: Store
    manager: TaskManager = field(init=False)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.releases = Releases(self.ledger, time.time)
        self.releases.register(Kind.SHIM, lambda resource: self.manager.stop_shim(resource.key))
        self.releases.register(Kind.TASK, lambda resource: self.manager.delete(resource.key))
        self.boot()

    @property
    def ledger(self) -> Ledger:
        return self.store.ledger

    def boot(self) -> None:
        config = RuntimeConfig(
            self.tmp / "run", self.tmp / "lib", "/run/orlop.sock", str(self.tmp / "events.sock"), "/bin/true", shim_cgroup="/shims"
        )
        exchange = Collector(self.events)
        self.manager = TaskManager(
            config,
            ledger=self.ledger,
            exchange=exchange,
            processes=self.node,
            mounts=self.node,
            cgroups=SimCgroups(self.node),
            connect=self.node.connect,
        )

    async def restart(self, *, during: bool = True) -> None:
        """The daemon is killed: its connections end, and nothing else."""
        for shim in self.node.shims.values():
            shim.hang_up()
        await self.manager.stop(0)
        self.node.calls.clear()
        self.node.commands.clear()
        self.boot()
        if during:
            await self.manager.load_existing_tasks()

    async def pinned(self, sandbox: str = "pod") -> None:
        await self.ledger.intend(Intent(Kind.SHIM, sandbox, sandbox))
        await self.manager.start_shim(sandbox, RUNC, {"io.kubernetes.cri.sandbox-name": "web"})

    async def create(self, name: str = "c1", sandbox: str = "pod", handler: RuntimeHandler = RUNC) -> Task:
        if self.ledger.get(Kind.TASK, name) is None:
            await self.ledger.intend(Intent(Kind.TASK, name, sandbox, "" if name == sandbox else name))
        spec: dict[str, Any] = {"linux": {"cgroupsPath": f"/pods/{name}"}, "annotations": {"mine": "kept"}}
        return await self.manager.create(CreateTask(name, sandbox, handler, spec, [Mount("bind", "/x", ("ro",))]))

    async def sandbox_task(self, handler: RuntimeHandler = RUNC) -> Task:
        await self.ledger.intend(Intent(Kind.SHIM, "pod", "pod"))
        return await self.create("pod", handler=handler)

    async def release(self) -> None:
        assert await self.releases.release_owned(sandbox="pod") == []
        assert self.ledger.all() == []
        assert self.left() == []

    def left(self) -> list[str]:
        found = [str(path) for top in ("run", "lib") for path in (self.tmp / top).glob("io.containerd.*/*/*")]
        found += [f"mount {name}" for name in self.node.mounted] + [f"cgroup {path}" for path in self.node.cgroups_made]
        return found + [f"shim {shim.group}" for shim in self.node.shims.values() if shim.process.alive()]

    def bundle(self, name: str) -> Path:
        return self.tmp / "run/io.containerd.runtime.v2.task/k8s.io" / name

    def told(self, name: str) -> list[str]:
        return [type(event).__name__ for event in self.events if event.container_id == name]


@asynccontextmanager
async def rig_in(tmp: Path) -> AsyncIterator[Rig]:
    store = await Store.open(tmp / "run", tmp / "lib", boot_id="b")
    rig = Rig(tmp, SimNode(), store)
    try:
        yield rig
    finally:
        for waiting in rig.node.hang.values():
            waiting.set()
        await rig.releases.stop(0)
        await rig.manager.stop(0)
        await store.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_in(tmp_path) as rig:
        yield rig


@pytest.fixture(autouse=True)
def failpoints_off() -> Iterator[None]:
    yield
    failpoints.configure("")


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


# ---- pinned sandboxes


async def test_a_pinned_pod(rig: Rig) -> None:
    await rig.pinned()
    held = rig.ledger.get(Kind.SHIM, "pod")
    assert held is not None
    assert held.state is State.HELD
    assert held.data["pid"] == rig.node.shim("pod").process.pid
    task = await rig.create()
    await task.start()
    assert rig.node.commands == ["start pod"], "containers join by address"
    assert [call for call in rig.node.calls if call != "Wait c1"] == ["Connect pod", "Connect pod", "Create c1", "Start c1"]
    assert (rig.bundle("c1") / "sandbox").read_text() == "pod"
    assert bootstrap.read(rig.bundle("c1")).address == "/pod"
    assert task.pid == rig.node.shim("pod").containers["c1"].process.pid
    assert rig.manager.get("c1") is task
    assert rig.manager.tasks() == [task]
    rig.node.shim("pod").containers["c1"].stop(7)
    assert (await task.wait()).status == 7
    await rig.manager.delete("c1")
    with pytest.raises(NotFound):
        rig.manager.get("c1")
    assert "Shutdown pod" not in rig.node.calls
    await rig.create("c2")
    await rig.release()
    assert rig.node.calls.count("Shutdown pod") == 1


async def test_the_spec_says_what_shims_group_by(rig: Rig) -> None:
    await rig.pinned()
    await rig.create()
    config = json.loads((rig.bundle("c1") / "config.json").read_text())
    assert config["annotations"] == {
        "mine": "kept",
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": "pod",
    }
    config = json.loads((rig.bundle("pod") / "config.json").read_text())
    assert config["annotations"]["io.kubernetes.cri.container-type"] == "sandbox"
    assert config["annotations"]["io.kubernetes.cri.sandbox-name"] == "web"


async def test_what_is_in_the_ledger_when_create_is_sent(rig: Rig) -> None:
    """Whoever dies right after it knows what there may be."""
    await rig.pinned()
    rig.node.hang["Create"] = asyncio.Event()
    creating = asyncio.ensure_future(rig.create())
    await rig.node.hanging.wait()
    held = rig.ledger.get(Kind.TASK, "c1")
    assert held is not None
    assert (held.data["create"], held.data["pid"], held.data["cgroup"], held.data["shim"]) == (True, 0, "/pods/c1", "pod")
    rig.node.hang["Create"].set()
    task = await creating
    held = rig.ledger.get(Kind.TASK, "c1")
    assert held is not None
    assert (held.data["pid"], held.data["start_time"]) == (task.pid, task.pid * 10)


async def test_a_create_that_fails_leaves_the_pod_usable(rig: Rig) -> None:
    await rig.pinned()
    await rig.create("c1")
    rig.node.fail["Create"] = FAILS
    with pytest.raises(Unknown, match="OCI runtime create failed"):
        await rig.create("c2")
    assert "delete c2" in rig.node.commands
    assert rig.ledger.get(Kind.TASK, "c2") is None
    assert not rig.bundle("c2").exists()
    assert rig.told("c2") == []
    assert [task.id for task in rig.manager.tasks()] == ["c1"]
    await rig.create("c2")
    await rig.release()


async def test_a_create_whose_caller_gives_up_goes_on(rig: Rig) -> None:
    await rig.pinned()
    rig.node.hang["Create"] = asyncio.Event()
    creating = asyncio.ensure_future(rig.create())
    await rig.node.hanging.wait()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    rig.node.hang["Create"].set()
    await rig.manager.get("c1").settled.wait()
    assert rig.manager.get("c1").pid
    await rig.release()


async def test_a_create_the_ledger_can_not_take_is_refused(rig: Rig) -> None:
    """Nothing is sent, and nothing is left."""
    await rig.pinned()
    failpoints.configure("store.hold.commit=error(disk full)")
    with pytest.raises(Exception, match="disk full"):
        await rig.create()
    failpoints.configure("")
    assert not any(call.startswith("Create") for call in rig.node.calls)
    assert rig.node.commands == ["start pod"], "what was not intended needs no `shim delete`"
    assert not rig.bundle("c1").exists()
    await rig.release()


async def test_create_twice(rig: Rig) -> None:
    await rig.pinned()
    await rig.create()
    with pytest.raises(AlreadyExists):
        await rig.create()
    await rig.release()


async def test_create_without_a_sandbox(rig: Rig) -> None:
    with pytest.raises(NotFound, match="no shim"):
        await rig.create()
    assert rig.left() == []


@pytest.mark.parametrize("name", ["", "../c1", "a/b"])
async def test_create_with_a_hostile_id(rig: Rig, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await rig.manager.create(CreateTask(name, "pod", RUNC, {}, []))


async def test_a_sandbox_that_is_being_stopped(rig: Rig) -> None:
    """Its Shutdown waits for the create in flight; a new one is refused."""
    await rig.pinned()
    rig.node.hang["Create"] = asyncio.Event()
    creating = asyncio.ensure_future(rig.create())
    await rig.node.hanging.wait()
    stopping = asyncio.ensure_future(rig.manager.stop_shim("pod"))
    await until(lambda: not rig.manager._gate("pod").is_open)
    with pytest.raises(FailedPrecondition, match="being stopped"):
        await rig.create("c2")
    assert "Shutdown pod" not in rig.node.calls
    rig.node.hang["Create"].set()
    await creating
    with pytest.raises(FailedPrecondition, match="c1"):
        await stopping
    await rig.ledger.drop(Kind.TASK, "c2")
    await rig.release()


async def test_a_second_shim_for_a_sandbox(rig: Rig) -> None:
    await rig.pinned()
    with pytest.raises(AlreadyExists):
        await rig.manager.start_shim("pod", RUNC, {})
    await rig.release()


# ---- starting


async def test_a_start_that_fails_leaves_nothing(rig: Rig) -> None:
    rig.node.start_says = Completed(1, b"", b"no such thing")
    with pytest.raises(Unknown, match="no such thing"):
        await rig.pinned()
    assert rig.left() == []
    assert rig.manager._shims == {}
    await rig.release()


async def test_a_shim_that_dies_at_once_is_told_with_its_log(rig: Rig) -> None:
    def panic(shim: Any) -> None:
        (rig.bundle("pod") / "log").write_bytes(b"panic: no such plugin\n")
        shim.die()

    rig.node.hang["Connect"] = asyncio.Event()
    starting = asyncio.ensure_future(rig.pinned())
    await rig.node.hanging.wait()
    await asyncio.to_thread(panic, rig.node.shim("pod"))
    with pytest.raises(Unavailable, match="panic: no such plugin"):
        await starting
    del rig.node.hang["Connect"]
    await rig.release()


async def test_a_shim_binary_that_is_not_there(rig: Rig) -> None:
    await rig.ledger.intend(Intent(Kind.SHIM, "pod", "pod"))
    with pytest.raises(NotFound, match="/no/such/shim"):
        await rig.manager.start_shim("pod", replace(RUNC, path="/no/such/shim"), {})
    assert rig.left() == []
    await rig.release()


async def test_an_upgraded_binary_says_another_version_than_the_shim_speaks(rig: Rig) -> None:
    rig.node.printed_version = 3
    await rig.pinned()
    assert bootstrap.read(rig.bundle("pod")).version == 2
    await rig.restart()
    assert rig.node.calls[0] == "Connect pod"
    await rig.create()
    assert bootstrap.read(rig.bundle("c1")).version == 2
    await rig.release()


# ---- the sandbox as a task


async def test_a_pod_with_a_sandbox_task(rig: Rig) -> None:
    sandbox = await rig.sandbox_task()
    task = await rig.create()
    assert rig.node.commands == ["start pod"], "runc's shims group, whatever their version"
    assert task.shim is sandbox.shim
    await rig.manager.delete("c1")
    assert rig.node.calls.count("Shutdown pod") == 1
    assert rig.node.shim("pod").process.alive()
    await rig.release()


async def test_a_first_create_that_fails_ends_the_shim(rig: Rig) -> None:
    rig.node.fail["Create"] = FAILS
    with pytest.raises(Unknown):
        await rig.sandbox_task()
    assert not rig.node.shim("pod").process.alive()
    assert rig.ledger.get(Kind.TASK, "pod") is None
    await rig.release()


async def test_shims_that_do_not_group(rig: Rig) -> None:
    """gVisor without grouping: a shim for each container, which lives and goes with it."""
    rig.node.groups = False
    await rig.sandbox_task(GVISOR)
    task = await rig.create(handler=GVISOR)
    assert rig.node.commands == ["start pod", "start c1"]
    assert task.shim.id == "c1"
    held = rig.ledger.get(Kind.TASK, "c1")
    assert held is not None
    assert held.data["own_shim"]["pid"] == rig.node.shim("c1").process.pid
    await rig.restart()
    await rig.manager.delete("c1")
    assert not rig.node.shim("c1").process.alive()
    assert rig.node.shim("pod").process.alive()
    assert list(rig.manager._shims) == ["pod"]
    await rig.release()


async def test_a_start_that_leads_to_the_shim_that_runs(rig: Rig) -> None:
    """gVisor with grouping, Kata: `start` is run, and prints the sandbox's address."""
    sandbox = await rig.sandbox_task(GVISOR)
    task = await rig.create(handler=GVISOR)
    assert rig.node.commands == ["start pod", "start c1"]
    assert task.shim is sandbox.shim
    assert rig.node.cgroups_made == {"/shims/pod"}
    await rig.release()


async def test_a_shim_of_the_third_version_is_joined(rig: Rig) -> None:
    rig.node.printed_version = rig.node.served_version = 3
    await rig.sandbox_task(GVISOR)
    await rig.create(handler=GVISOR)
    assert rig.node.commands == ["start pod"]
    await rig.release()


# ---- a shim dies


async def test_a_dead_shim_is_replaced(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    old = rig.node.shim("pod")
    old.die()
    assert (await task.wait()).reason == "Unknown"
    await until(lambda: rig.node.shims["/pod"] is not old and rig.manager._shims["pod"].state is ShimState.CONNECTED)
    assert rig.node.commands == ["start pod", "delete c1", "start pod"]
    assert rig.told("c1") == ["TaskExit", "TaskDelete"]
    held = rig.ledger.get(Kind.SHIM, "pod")
    assert held is not None
    assert held.data["pid"] == rig.node.shim("pod").process.pid
    await rig.ledger.intend(Intent(Kind.TASK, "c2", "pod", "c2"))
    await rig.create("c2")
    await rig.release()


async def test_a_create_after_a_death_that_nobody_noticed_yet(rig: Rig) -> None:
    await rig.pinned()
    await rig.create("c1")
    rig.node.shim("pod").die()
    task = await rig.create("c2")
    assert task.shim is rig.manager._shims["pod"]
    assert rig.node.commands == ["start pod", "delete c1", "start pod"]
    await rig.release()


async def test_a_shim_dies_under_a_create(rig: Rig) -> None:
    await rig.pinned()
    rig.node.hang["Create"] = asyncio.Event()
    creating = asyncio.ensure_future(rig.create())
    await rig.node.hanging.wait()
    rig.node.shim("pod").die()
    with pytest.raises(Exception, match=r"lost|closed|gone"):
        await creating
    del rig.node.hang["Create"]
    assert rig.node.commands.count("delete c1") == 1
    assert rig.ledger.get(Kind.TASK, "c1") is None
    assert rig.manager.tasks() == []
    await rig.create("c1")
    await rig.release()


async def test_a_replacement_that_fails_is_tried_again_by_the_next_create(rig: Rig) -> None:
    await rig.pinned()
    rig.node.start_says = Completed(1, b"", b"not now")
    rig.node.shim("pod").die()
    await until(lambda: rig.node.commands.count("start pod") == 2)
    await until(lambda: rig.manager._shims["pod"].state is ShimState.CLEANED)
    await rig.create()
    assert rig.node.commands.count("start pod") == 3
    await rig.release()


async def test_no_replacement_for_a_sandbox_that_is_being_stopped(rig: Rig) -> None:
    await rig.pinned()
    rig.manager._gate("pod").close()
    rig.node.shim("pod").die()
    await until(lambda: rig.manager._shims["pod"].state is ShimState.CLEANED)
    await rig.release()
    assert rig.node.commands == ["start pod"]


async def test_kill_shim(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    old = rig.node.shim("pod")
    await rig.manager.kill_shim("pod")
    assert not old.process.alive()
    exit_ = await task.wait()
    assert "was killed" in exit_.message
    with pytest.raises(NotFound):
        rig.manager.get("c1")
    await until(lambda: rig.manager._shims["pod"].state is ShimState.CONNECTED)
    await rig.release()


async def test_a_shim_that_drops_us_is_redialled(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    rig.node.shim("pod").hang_up()
    await until(lambda: rig.node.calls.count("Wait c1") == 2)
    rig.node.shim("pod").containers["c1"].stop(4)
    assert (await task.wait()).status == 4
    assert rig.node.commands == ["start pod"]
    await rig.release()


async def test_a_shim_that_drops_us_for_good_is_killed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "SHIM_SILENT", 0.01)
    await rig.pinned()
    task = await rig.create()
    shim = rig.node.shim("pod")
    shim.deaf = True
    shim.hang_up()
    exit_ = await task.wait()
    assert "could not be reached" in exit_.message
    assert not shim.process.alive()
    await rig.release()


# ---- events


async def test_an_exit_that_an_event_tells_is_told_once(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    rig.manager.exited("c1", "", Exit(9, 5, task.pid))
    rig.node.shim("pod").containers["c1"].stop(4)
    assert (await task.wait()).status == 9
    rig.manager.exited("unknown", "", Exit(9, 5, 1))
    await rig.release()
    assert rig.told("c1") == ["TaskExit", "TaskDelete"]


async def test_an_exec(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    process = await task.exec("e1", {"args": ["true"]}, "", "/out", "/err")
    with pytest.raises(AlreadyExists):
        await task.exec("e1", {"args": ["true"]}, "", "", "")
    await process.start()
    await process.kill(9)
    assert (await process.wait()).status == 3
    await process.delete()
    assert task.execs == {}
    assert rig.told("c1") == []
    await rig.release()


async def test_an_exec_whose_exit_an_event_tells(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    process = await task.exec("e1", {"args": ["true"]}, "", "", "")
    await process.start()
    rig.manager.exited("c1", "e1", Exit(6, 5, process.pid))
    rig.manager.exited("c1", "unknown", Exit(6, 5, 1))
    assert (await process.wait()).status == 6
    await rig.release()


async def test_an_exec_in_a_shim_that_dies(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    process = await task.exec("e1", {"args": ["true"]}, "", "", "")
    await process.start()
    rig.node.shim("pod").die()
    exit_ = await process.wait()
    assert (exit_.status, exit_.reason) == (255, "Unknown")
    await rig.release()


async def test_an_exec_that_the_engine_refuses(rig: Rig) -> None:
    await rig.pinned()
    task = await rig.create()
    rig.node.fail["Exec"] = Unknown("no")
    with pytest.raises(Unknown):
        await task.exec("e1", {"args": ["true"]}, "", "", "")
    assert task.execs == {}
    await rig.release()


async def test_out_of_memory(rig: Rig) -> None:
    await rig.pinned()
    await rig.create()
    rig.manager.out_of_memory("c1")
    rig.manager.out_of_memory("unknown")
    assert rig.events == [TaskOOM("c1")]
    await rig.release()


# ---- deleting


async def test_delete_during_create_waits_for_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.pinned()
    rig.node.hang["Create"] = asyncio.Event()
    creating = asyncio.ensure_future(rig.create())
    await rig.node.hanging.wait()
    monkeypatch.setattr(timeouts, "TASK_DELETE", 0.01)
    with pytest.raises(DeadlineExceeded, match="end of Create"):
        await rig.manager.delete("c1")
    monkeypatch.undo()
    deleting = asyncio.ensure_future(rig.manager.delete("c1"))
    rig.node.hang["Create"].set()
    await creating
    await deleting
    assert rig.told("c1") == ["TaskExit", "TaskDelete"]
    await rig.release()


async def test_three_deletes_at_once(rig: Rig) -> None:
    await rig.pinned()
    await rig.create()
    await asyncio.gather(*(rig.manager.delete("c1") for _ in range(3)))
    assert rig.node.calls.count("Delete c1") == 1
    await rig.release()


async def test_release_of_what_is_not_there(rig: Rig) -> None:
    await rig.manager.delete("nobody")
    await rig.manager.stop_shim("nobody")


# ---- restart


async def test_a_restart(rig: Rig) -> None:
    await rig.pinned()
    await (await rig.create("runs")).start()
    await (await rig.create("ends")).start()
    shim = rig.node.shim("pod")
    shim.containers["ends"].stop(3)
    await rig.restart()
    assert rig.node.commands == []
    ends, runs = rig.manager.get("ends"), rig.manager.get("runs")
    assert (await ends.wait()).status == 3
    assert runs.exited is None
    assert runs.pid == shim.containers["runs"].process.pid
    await rig.create("c3")
    await rig.release()
    assert {event.container_id for event in rig.events if isinstance(event, TaskDelete)} == {"runs", "ends", "c3"}


async def test_the_shim_died_meanwhile(rig: Rig) -> None:
    await rig.pinned()
    await rig.create()
    rig.node.shim("pod").process.ended.set()
    await rig.restart()
    exits = [event.exit for event in rig.events if isinstance(event, TaskExit)]
    assert [(exit_.status, exit_.reason) for exit_ in exits] == [(255, "Unknown")]
    assert "while the agent was away" in exits[0].message
    await until(lambda: rig.manager._shims["pod"].state is ShimState.CONNECTED)
    assert rig.node.commands == ["delete c1", "start pod"]
    await rig.release()


async def test_a_mute_shim_delays_the_start_by_its_budget_and_keeps_its_containers(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.pinned()
    await rig.create()
    shim = rig.node.shim("pod")
    shim.mute = True
    monkeypatch.setattr(timeouts, "SHIM_LOAD", 0.02)
    monkeypatch.setattr(timeouts, "SHIM_SILENT", 0.0)
    await rig.restart()
    task = rig.manager.get("c1")
    assert task.exited is None
    assert task.shim.state is ShimState.LOST
    await until(lambda: rig.node.calls.count("Connect pod") > 3)
    assert shim.process.alive(), "a timeout isn't death"
    shim.mute = False
    await task.shim.wait_connected()
    shim.containers["c1"].stop(5)
    assert (await task.wait()).status == 5
    await rig.release()


async def test_a_task_that_its_shim_does_not_know(rig: Rig) -> None:
    """The previous daemon died between Delete and the rest."""
    await rig.pinned()
    await rig.create()
    del rig.node.shim("pod").containers["c1"]
    await rig.restart()
    exit_ = await rig.manager.get("c1").wait()
    assert (exit_.status, exit_.reason) == (255, "Unknown")
    await rig.release()


async def test_a_daemon_that_dies_in_the_middle_of_a_create(rig: Rig) -> None:
    await rig.pinned()
    rig.node.hang["Create"] = asyncio.Event()
    creating = asyncio.ensure_future(rig.create())
    await rig.node.hanging.wait()
    await rig.manager._supervisor.stop(0)
    with pytest.raises(asyncio.CancelledError):
        await creating
    del rig.node.hang["Create"]
    await rig.restart()
    assert rig.manager.get("c1").exited is None
    await rig.release()
    assert "delete c1" in rig.node.commands
    assert rig.told("c1") == []


async def test_a_daemon_that_dies_right_after_create(rig: Rig) -> None:
    """The pid never got into the ledger; the shim tells it."""
    await rig.pinned()
    failpoints.configure("runtime.task.hold=hang")
    creating = asyncio.ensure_future(rig.create())
    await until(lambda: "Wait c1" in rig.node.calls)
    await rig.manager._supervisor.stop(0)
    with pytest.raises(asyncio.CancelledError):
        await creating
    failpoints.configure("")
    await rig.restart()
    task = rig.manager.get("c1")
    assert task.pid == rig.node.shim("pod").containers["c1"].process.pid
    held = rig.ledger.get(Kind.TASK, "c1")
    assert held is not None
    assert held.data["pid"] == task.pid
    await rig.release()
    assert rig.told("c1") == ["TaskExit", "TaskDelete"]


async def test_a_daemon_that_dies_before_anything_was_made(rig: Rig) -> None:
    await rig.pinned()
    await rig.ledger.intend(Intent(Kind.TASK, "c1", "pod", "c1", {"handler": "runc"}))
    await rig.restart()
    await rig.release()
    assert "delete c1" not in rig.node.commands


async def test_a_daemon_that_dies_while_a_shim_starts(rig: Rig) -> None:
    await rig.ledger.intend(Intent(Kind.SHIM, "pod", "pod", data={"handler": "runc"}))
    failpoints.configure("runtime.shim.start=hang")
    starting = asyncio.ensure_future(rig.manager.start_shim("pod", RUNC, {}))
    await until((rig.bundle("pod") / "log").exists)
    await rig.manager._supervisor.stop(0)
    with pytest.raises(asyncio.CancelledError):
        await starting
    failpoints.configure("")
    await rig.restart()
    await rig.release()


async def test_a_sandbox_task_whose_start_was_cut_off(rig: Rig) -> None:
    await rig.ledger.intend(Intent(Kind.SHIM, "pod", "pod"), Intent(Kind.TASK, "pod", "pod"))
    failpoints.configure("runtime.shim.start=hang")
    starting = asyncio.ensure_future(rig.create("pod"))
    await until((rig.bundle("pod") / "log").exists)
    await rig.manager._supervisor.stop(0)
    with pytest.raises(asyncio.CancelledError):
        await starting
    failpoints.configure("")
    await rig.restart()
    await rig.release()


async def test_a_stop_that_had_begun_lets_nothing_in_after_a_restart(rig: Rig) -> None:
    await rig.pinned()
    held = rig.ledger.get(Kind.SHIM, "pod")
    assert held is not None
    rig.ledger.releasing([held])
    await rig.restart()
    with pytest.raises(FailedPrecondition):
        await rig.create()
    await rig.ledger.drop(Kind.TASK, "c1")
    await rig.release()


async def test_leftovers_of_a_removal_and_of_another_boot(rig: Rig) -> None:
    work_dirs = rig.tmp / "lib/io.containerd.runtime.v2.task/k8s.io"
    (rig.bundle(".c9")).mkdir(parents=True)
    (work_dirs / "of-another-boot").mkdir(parents=True)
    await rig.pinned()
    await rig.restart()
    await rig.manager.cleanup_work_dirs()
    assert not rig.bundle(".c9").exists()
    assert [path.name for path in work_dirs.iterdir()] == ["pod"]
    await rig.release()


async def test_stop_lets_go_and_leaves_all_running(rig: Rig) -> None:
    await rig.manager.start()
    await rig.pinned()
    await rig.create()
    async with asyncio.timeout(1):
        await rig.manager.stop(5)
    assert rig.node.shim("pod").process.alive()
    assert rig.node.shim("pod").containers["c1"].process.alive()
    await rig.restart()
    await rig.release()

"""Plays a schedule on a node of its own, watched by an `Oracle`, and ends with an empty node.

The client is a kubelet of a few lines: it knows its pods by their names alone, and looks up their ids in the lists. A daemon that was
killed is started again by the next call.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from structlog._config import BoundLoggerLazyProxy

from agent.errdefs import OrlopError
from agent.leaks.finding import Finding, State, Thing
from agent.pods.container import ContainerState
from agent.pods.registry import Container as LiveContainer
from agent.pods.registry import Sandbox
from agent.pods.sandbox import SandboxState
from agent.runtime.v2 import bundle
from cri.api import api_pb2 as cri
from tests.unit.simulation import render
from tests.unit.simulation.clock import DeadlockError, simulated
from tests.unit.simulation.daemon import IMAGE, Daemon
from tests.unit.simulation.disk import Disk
from tests.unit.simulation.failures import Failpoints, installed
from tests.unit.simulation.harm import Harm, container_of, sandbox_of
from tests.unit.simulation.oracle import Oracle
from tests.unit.simulation.schedule import HARMS, Op, Schedule
from tests.unit.simulation.world import World, make_binaries, remove

_CALLS, _FEWEST_CALLS = 22, 20
"""After so many, the last ones included, the rest of a schedule is left out. If some of the last aren't needed, there are fewer."""
_PATIENCE = 60.0
"""Seconds that the kubelet waits for an answer before it goes on."""
_REST = 900.0
"""Seconds within which a node without faults has to be empty."""
_LOOKED_AT = 0.2
"""Of how many nodes the leak detectors are asked."""
_HOST_PIDS = 2.0
"""The number of an operation by which its container shares the node's PID namespace."""
_STEPS_TO_ANYTHING = 4
_IN_A_POD = frozenset({"create", "start", "stop", "exec"})
_RUNS = frozenset({"stop", "exec", "start"})
"""Calls that want a container that runs, or one that can be started."""


@dataclass
class Outcome:
    """What came of a schedule."""

    problems: list[str] = field(default_factory=list)
    at: str = ""
    """The step at which the first problem was seen."""
    trace: list[str] = field(default_factory=list)
    fired: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    crashes: int = 0


class Player:
    """One schedule on one node."""

    def __init__(self, world: World, points: Failpoints, outcome: Outcome, choices: random.Random) -> None:
        self._world = world
        self._node = world.node
        self._points = points
        self._outcome = outcome
        self._choices = choices
        self._oracle = Oracle(world)
        self._calls: dict[asyncio.Task[Any], str] = {}
        self._attempts: Counter[int] = Counter()
        self._harm = Harm(world, self._oracle)
        points.crash = world.crash
        world.node.fired = points.fired

    async def play(self, schedule: Schedule) -> None:
        for number, op in enumerate(schedule):
            if self._outcome.calls + 2 * self._sandboxes() >= _CALLS:  # the last ones take down what there is
                break
            self._note(f"--- {number} {op!r}")
            await self._do(op)
            self._world.loop.slow_calls = self._choices.choice((0.0, 0.3, 0.8))
            await asyncio.sleep(0)
            if self._look(f"step {number}, {op!r}"):
                return
        self._note("--- rest")
        await self._end()

    def _sandboxes(self) -> int:
        daemon = self._world.daemon
        return 0 if daemon is None or not daemon.recovered.is_set() else len(daemon.pods.registry.sandboxes)

    def _look(self, where: str) -> bool:
        found = self._oracle.look()
        if found:
            self._outcome.problems, self._outcome.at = found, where
        return bool(found)

    def _note(self, line: str) -> None:
        self._outcome.trace.append(f"{self._world.loop.time():10.3f} {line}")

    # ---- the client

    async def _do(self, op: Op) -> None:
        match op.what:
            case "pass":
                await asyncio.sleep(op.number)
            case "crash":
                self._world.crash()
            case "power cut":
                await self._world.power_cut()
                self._node.hits["power cut"] += 1
            case "restart":
                if self._world.running and self._world.daemon is not None:
                    await self._world.daemon.stop()
                    await self._world.bury()
                await self._boot()
            case "failpoint":
                self._oracle.disturbed |= op.how != "crash"
                self._points.arm(op.text, op.how, int(op.number))  # type: ignore[arg-type]  # one of ACTIONS
            case "fault":
                self._oracle.disturbed = True
                self._node.arm(op.text, op.how)
            case "end":
                self._harm.init_ends(op)
            case what if what in HARMS:
                self._harm.do(op)
            case _:
                await self._call(op)

    async def _boot(self) -> Daemon:
        if self._world.running and self._world.daemon is not None:
            return self._world.daemon
        daemon = await self._world.boot()
        self._oracle.watch(daemon)
        recovered = asyncio.ensure_future(daemon.recovered.wait())
        await self._or_dead(daemon, recovered, _PATIENCE)
        recovered.cancel()
        return daemon

    async def _call(self, op: Op) -> None:
        for _ in range(_STEPS_TO_ANYTHING):
            daemon = await self._boot()
            if daemon.life.dead:
                return
            verb, request, wanted = self._request(daemon, op)
            if wanted:
                break
            await self._or_dead(daemon, self._begin(daemon, verb, request), _PATIENCE)
            await self._or_dead(daemon, asyncio.ensure_future(asyncio.sleep(0)), 1)
        if self._world.daemon is not daemon or daemon.life.dead:
            return
        tasks = [self._begin(daemon, verb, request) for _ in range(2 if op.how == "twice" else 1)]
        if op.how in ("wait", "twice"):
            for task in tasks:
                await self._or_dead(daemon, task, _PATIENCE)
        else:
            await self._or_dead(daemon, tasks[0], op.number)
            if op.how == "cancel":
                tasks[0].cancel()

    def _begin(self, daemon: Daemon, verb: str, request: Any) -> asyncio.Task[Any]:
        self._outcome.calls += 1
        task = daemon.call(verb, request)
        self._calls[task] = verb
        task.add_done_callback(self._answered)
        return task

    def _answered(self, task: asyncio.Task[Any]) -> None:
        verb = self._calls.pop(task)
        error = None if task.cancelled() else task.exception()
        self._note(f"{verb}: {'cancelled' if task.cancelled() else error or 'done'}")
        if error is not None and not isinstance(error, OrlopError | OSError):
            self._node.broken(f"{verb} fails with {error!r}")

    async def _or_dead(self, daemon: Daemon, task: asyncio.Future[Any], patience: float) -> None:
        """Wait for the answer, for some time, unless the daemon dies."""
        death = asyncio.ensure_future(daemon.gone.wait())
        await asyncio.wait((task, death), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        death.cancel()
        if daemon.life.dead:
            self._note("the daemon is dead")
            await self._world.bury()

    def _request(self, daemon: Daemon, op: Op) -> tuple[str, Any, bool]:
        """The next call: the wanted one, about the pod or container that there is now, or one that has to come before it."""
        sandbox = sandbox_of(daemon, op.slot)
        if op.what == "run" or sandbox is None or (sandbox.record.state is not SandboxState.READY and op.what in _IN_A_POD):
            if sandbox is None or sandbox.record.state is not SandboxState.READY:
                self._attempts[op.slot] += 1
            pod = self._pod(op.slot, self._attempts[op.slot])
            return "RunPodSandbox", cri.RunPodSandboxRequest(config=pod, runtime_handler=op.text), op.what == "run"
        sandbox_id = sandbox.record.id
        if op.what == "stop pod":
            self._oracle.asked.add(sandbox_id)
            return "StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=sandbox_id), True
        if op.what == "remove pod":
            self._oracle.asked.add(sandbox_id)
            return "RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id), True
        live = container_of(daemon, sandbox_id, op.container)
        if op.what == "create" or live is None or (live.record.state is ContainerState.EXITED and op.what in _RUNS):
            return "CreateContainer", self._container_request(op, sandbox, live), op.what == "create"
        container_id = live.record.id
        if op.what == "start" or (live.record.state is ContainerState.CREATED and op.what in _RUNS):
            return "StartContainer", cri.StartContainerRequest(container_id=container_id), op.what == "start"
        if op.what == "exec":
            return "ExecSync", cri.ExecSyncRequest(container_id=container_id, cmd=["true"], timeout=int(op.number) + 1), True
        self._oracle.asked.add(container_id)
        if op.what == "stop":
            return "StopContainer", cri.StopContainerRequest(container_id=container_id, timeout=int(op.number * 5)), True
        return "RemoveContainer", cri.RemoveContainerRequest(container_id=container_id), True

    def _container_request(self, op: Op, sandbox: Sandbox, live: LiveContainer | None) -> cri.CreateContainerRequest:
        attempt = 0 if live is None else live.record.config.metadata.attempt
        if live is not None and live.record.state is ContainerState.EXITED:
            attempt += 1
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=f"c{op.container}", attempt=attempt),
            image=cri.ImageSpec(image=IMAGE),
            log_path=f"{op.slot}-{op.container}.log",
        )
        config.linux.security_context.namespace_options.pid = cri.NODE if op.number == _HOST_PIDS else cri.CONTAINER
        return cri.CreateContainerRequest(pod_sandbox_id=sandbox.record.id, config=config, sandbox_config=sandbox.record.config)

    def _pod(self, slot: int, attempt: int) -> cri.PodSandboxConfig:
        metadata = cri.PodSandboxMetadata(name=f"pod{slot}", namespace="default", uid=f"u{slot}", attempt=attempt)
        config = cri.PodSandboxConfig(metadata=metadata, hostname=f"pod{slot}", log_directory=str(self._node.top / "logs"))
        config.linux.security_context.namespace_options.pid = cri.CONTAINER
        return config

    def bundle_goes(self, goes: bundle.Bundle) -> None:
        self._oracle.bundle_goes(goes)

    # ---- the end

    async def _end(self) -> None:
        """Everything is well again; after a while the kubelet removes all its pods; then nothing may be left."""
        if self._world.disk.full and not self._oracle.disturbed and not self._harm.done:
            await self._remove_all()  # which needs no disk (11)
            if self._found([f"left with a full disk: {thing} (11)" for thing in self._oracle.left()], "a full disk"):
                return
        self._heal()
        if not self._world.crashes:
            self._world.crash()
        await self._world.bury() if not self._world.running else None
        daemon = await self._boot()
        await self._rest(daemon)
        if self._look("at rest"):
            return
        if self._found(list(self._oracle.at_rest(daemon)) + await self._leaks(daemon), "at rest"):
            return
        await self._start_in_those_without_shim(daemon)
        if self._look("shims that were missing"):
            return
        daemon = await self._remove_all()
        while self._outcome.calls < _FEWEST_CALLS:  # a kubelet that asks once more for the end of what has ended
            gone = cri.RemovePodSandboxRequest(pod_sandbox_id=self._choices.choice(sorted(self._oracle.asked) or ["never-there"]))
            await self._or_dead(daemon, self._begin(daemon, "RemovePodSandbox", gone), _PATIENCE)
        left = self._oracle.left()
        left += [f"ledger {resource.id} {resource.state} {resource.error}" for resource in daemon.store.ledger.all()]
        left += [f"listed {live.record.id}" for live in (*daemon.pods.registry.sandboxes, *daemon.pods.registry.containers)]
        left += [f"call {verb}" for verb in self._calls.values()]
        if self._look("the empty node") or self._found([f"left: {thing}" for thing in left], "the empty node"):
            return
        if self._found(await self._leaks(daemon), "the empty node"):
            return
        await daemon.stop()
        self._look("the daemon's end")

    async def _start_in_those_without_shim(self, daemon: Daemon) -> None:
        """A shim that couldn't take a dead one's place, since something was made to fail, is started by the pod's next container."""
        for record in self._oracle.without_shim(daemon):
            config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="next"), image=cri.ImageSpec(image=IMAGE), log_path="next.log")
            config.linux.security_context.namespace_options.pid = cri.CONTAINER
            create = cri.CreateContainerRequest(pod_sandbox_id=record.id, config=config, sandbox_config=record.config)
            begun = self._begin(daemon, "CreateContainer", create)
            await self._or_dead(daemon, begun, _PATIENCE)
            if begun.done() and begun.exception() is None:
                start = cri.StartContainerRequest(container_id=begun.result().container_id)
                await self._or_dead(daemon, self._begin(daemon, "StartContainer", start), _PATIENCE)
            if not self._world.shims.of(record.id):
                self._node.broken(f"sandbox {record.id} is ready, and gets no shim with its next container (10)")

    async def _leaks(self, daemon: Daemon) -> list[str]:
        """What the detectors say, of some nodes: they take their time. All that there is is somebody's, and all entries are right."""
        if self._choices.random() > _LOOKED_AT:
            return []
        found = await render.findings(self._world, daemon.store.ledger.all())
        return [
            f"{each.kind} {each.what} is {each.state}, say the detectors: {each.why}" for each in found if not self._known(daemon, each)
        ]

    def _known(self, daemon: Daemon, finding: Finding) -> bool:
        """What harm that was done, and never made good, still shows; so does what a full disk didn't take before a crash. It is told as
        MISSING, and repaired when the pod goes: that nothing is left then is looked at. As LEAKED or UNKNOWN nothing may ever be told.

        The shim of a sandbox that isn't ready any more, because that shim was its task's, stays in the ledger until it is stopped.
        """
        sandbox = daemon.pods.registry.sandboxes.find(finding.what)
        if finding.kind is Thing.SHIM and sandbox is not None and sandbox.record.state is not SandboxState.READY:
            return True
        disturbed = bool(self._oracle.unpinned) or self._oracle.disturbed or bool(self._world.disk.refused)
        return finding.state is State.PENDING or (finding.state is State.MISSING and disturbed)

    def _found(self, problems: list[str], where: str) -> bool:
        if problems and not self._outcome.problems:
            self._outcome.problems, self._outcome.at = problems, where
        return bool(problems)

    async def _remove_all(self) -> Daemon:
        """As the kubelet does, again and again, until there is nothing, or for a quarter of an hour."""
        deadline = self._world.loop.time() + _REST
        while True:
            daemon = await self._boot()
            sandboxes = list(daemon.pods.registry.sandboxes)
            for sandbox in sandboxes:
                self._oracle.asked.add(sandbox.record.id)
                request = cri.StopPodSandboxRequest(pod_sandbox_id=sandbox.record.id)
                await self._or_dead(daemon, self._begin(daemon, "StopPodSandbox", request), 2 * _PATIENCE)
                removal = cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox.record.id)
                await self._or_dead(daemon, self._begin(daemon, "RemovePodSandbox", removal), 2 * _PATIENCE)
                if self._look("removing all"):
                    return daemon
            await asyncio.sleep(1)
            empty = not sandboxes and not daemon.store.ledger.all() and not self._node.jobs and not self._oracle.left()
            if (empty and not daemon.life.dead) or self._world.loop.time() > deadline:
                return daemon
            await asyncio.sleep(4)

    async def _rest(self, daemon: Daemon) -> None:
        """Wait until nothing is under way any more, or for a minute. It is looked at twice: between two steps of a teardown nothing is."""
        calm = 0
        for _ in range(30):
            await asyncio.sleep(2)
            busy = self._calls or self._node.jobs or any(resource.state != "held" for resource in daemon.store.ledger.all())
            changing = any(live.record.state is ContainerState.STARTING for live in daemon.pods.registry.containers)
            settled = not busy and not changing and len(self._world.shims.live()) >= len(daemon.pods.registry.sandboxes)
            calm = calm + 1 if settled else 0
            if calm == 2:
                break

    def _heal(self) -> None:
        self._points.disarm()
        self._node.next_faults.clear()
        self._world.disk.full = False
        self._harm.let_go()
        for cgroup in list(self._node.kernel.cgroups):
            self._node.kernel.thaw(cgroup)
        for proc in list(self._node.kernel.procs.values()):
            proc.go_on()


def play(seed: int, schedule: Schedule, directory: Path, *, verbose: bool = False) -> Outcome:
    """Play a schedule; `seed` decides whatever it doesn't say. `directory` is this process's own, for nodes and binaries."""
    outcome = Outcome()
    choices = random.Random(f"play {seed}")
    top = directory / f"node-{seed}"
    points, disk = Failpoints(), Disk()
    original = bundle._remove
    with simulated(seed) as loop, installed(points), disk.installed(), _logs(outcome, verbose):

        async def work() -> None:
            world = World(loop, top, make_binaries(directory / "bin"), disk, v2=choices.random() < 0.7)
            player = Player(world, points, outcome, choices)
            bundle._remove = partial(_checked, player, original)
            try:
                await player.play(schedule)
            except DeadlockError as error:
                outcome.problems.append(str(error))
            finally:
                await world.end()
                outcome.faults, outcome.crashes = world.node.hits, world.crashes

        try:
            loop.run_until_complete(work())
        finally:
            bundle._remove = original
            remove(top)
    outcome.fired = points.fired
    return outcome


def _checked(player: Player, original: Callable[[bundle.Bundle], None], goes: bundle.Bundle) -> None:
    player.bundle_goes(goes)
    original(goes)


@contextmanager
def _logs(outcome: Outcome, verbose: bool) -> Iterator[None]:
    """What the agent logs goes into the trace; a task that fails by a mistake in it is a problem."""
    before = structlog.get_config()

    def keep(_: Any, level: str, event: MutableMapping[str, Any]) -> str:
        error = event.pop("exc_info", None)
        if event.get("event") in _MISTAKES and isinstance(error, BaseException) and not isinstance(error, OrlopError | OSError):
            outcome.problems.append(f"{event['event']} {event.get('task', '')}: {error!r}")
        if verbose:
            outcome.trace.append(f"           {level}: {event}")
        raise structlog.DropEvent

    level = 10 if verbose else 40
    structlog.configure(processors=[keep], wrapper_class=structlog.make_filtering_bound_logger(level), cache_logger_on_first_use=False)
    made = BoundLoggerLazyProxy.__getattr__
    if not verbose:  # a logger would be made for each line, and drop it

        def only_errors(proxy: BoundLoggerLazyProxy, name: str) -> Any:
            return _unheard if name in ("debug", "info", "warning") else made(proxy, name)

        BoundLoggerLazyProxy.__getattr__ = only_errors  # type: ignore[method-assign]
    try:
        yield
    finally:
        BoundLoggerLazyProxy.__getattr__ = made  # type: ignore[method-assign]
        structlog.configure(**before)


def _unheard(*_: Any, **fields: Any) -> None:
    pass


_MISTAKES = frozenset({"task failed", "event not acted on", "could not be checked", "no event"})
"""What is logged where an exception ends that nobody awaited."""

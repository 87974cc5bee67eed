"""SIGKILL of who works for the agent: the shim, the engine, network plugins, the log copier, while a pod is made and while it ends.

At 50 points each; a point at which there was nobody to kill isn't counted. The pods are those of all three generations of shims in turn.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import CNI_PLUGINS
from tests.e2e.faults import Rig, handler_of
from tests.e2e.matrix import slices
from tests.e2e.matrix.judge import Judge
from tests.e2e.matrix.strikes import AtCall, AtFailpoint, Find, Moment, spread
from tests.e2e.matrix.table import Case, Matrix, by_kind
from tests.e2e.node import Process
from tests.e2e.stories import ANYWHERE
from tests.e2e.toolbox import PAIRS, Pair

pytestmark = [pytest.mark.e2e, one_pair, pytest.mark.timeout(1800)]  # one daemon, whose pods have any shim

TIMEOUTS = "RELEASE_RETRY=1;EXIT_AFTER_KILL=1"  # the engine is killed while it kills, too
WANTED = 50 if slices.WHOLE else 2
TRIES = 20
"""Of the kubelet, for a call; with a pause of as many tenths of a second as there were before."""
DELAYS = (0.0, 0.004, 0.012, 0.03)  # seconds that the agent has gone on for
WITHIN = tuple(number * 0.0015 for number in range(20))  # seconds that a program was seen to run for
CALLS = 2
"""Of an engine, or of network plugins, in one half of a pod's life; at least."""
ROUNDS = 6
ENGINES = {str(pair.engine_path) for pair in PAIRS}


class Life:
    """A pod with a container: its making, and its end."""

    def __init__(self, rig: Rig, pair: Pair) -> None:
        self._kubelet = rig.kubelet
        self._handler = handler_of(pair)
        ports = [cri.PortMapping(container_port=80, host_port=8080)]
        self._config = rig.kubelet.pod_config(log_directory=rig.log_directory(), port_mappings=ports)
        self._config.linux.cgroup_parent = ""

    def create(self) -> None:
        pod = self._kubelet.run_again(self._config, handler=self._handler)
        self._kubelet.run_container(pod, ["sh", "-c", "echo begun; exec sleep 1000000"])

    def delete(self) -> None:
        """As the kubelet does it, which repeats each call until it succeeds."""
        kubelet = self._kubelet
        pods = [pod.id for pod in kubelet.pods() if pod.metadata.uid == self._config.metadata.uid]
        for container in [container.id for container in kubelet.containers() if container.pod_sandbox_id in pods]:
            insist(partial(kubelet.stop, container))
            insist(partial(kubelet.remove, container))
        for pod in pods:
            insist(partial(kubelet.stop_pod, pod))
            insist(partial(kubelet.remove_pod, pod))


def insist(call: Callable[[], object]) -> None:
    for tries in range(TRIES):
        try:
            call()
        except grpc.RpcError as error:
            check(error)
        else:
            return
        time.sleep(tries / 10)
    call()


def check(error: grpc.RpcError) -> None:
    """A call may fail when its helper is killed; but it says so: it isn't without an answer, and the agent's own fault it's not either."""
    assert error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL), error
    assert error.details(), error


Half = Callable[[Life], None]
Choose = Callable[[list[str]], list[Moment]]
"""The moments to be tried, in their order, from the failpoints that are passed."""


def while_it_lives(passed: list[str]) -> list[Moment]:
    """For what serves all the time."""
    nths: Counter[str] = Counter()
    hits = []
    for point in passed:
        nths[point] += 1
        hits.append((point, nths[point]))
    return [AtFailpoint(point, nth, delay) for point, nth in hits for delay in DELAYS]


def from_its_start(passed: list[str]) -> list[Moment]:
    """For the shim, which is there from some point on; at those before it nobody would be found."""
    start = "runtime.shim.start"
    before = len(while_it_lives(passed[: passed.index(start)])) if start in passed else 0
    return while_it_lives(passed)[before:]


def while_it_runs(passed: list[str]) -> list[Moment]:
    """For programs that are called and end; sooner and sooner, if they end too soon to be killed that late."""
    return [AtCall(nth, within / 2**sooner) for sooner in range(ROUNDS) for within in WITHIN for nth in range(1, CALLS + 1)]


def is_shim(process: Process) -> bool:
    return bool(process.argv) and Path(process.argv[0]).name.startswith("containerd-shim-")


def is_engine(process: Process) -> bool:
    """Also the init that an engine is before it becomes the container's program."""
    return bool(process.argv) and process.argv[0] in ENGINES


def is_plugin(process: Process) -> bool:
    return bool(process.argv) and process.argv[0].startswith(f"{CNI_PLUGINS}/")


def is_copier(process: Process) -> bool:
    return "agent.logs.copier" in process.argv


@pytest.mark.field_fault("12", "M5")
@pytest.mark.parametrize("half", [Life.create, Life.delete], ids=["create", "delete"])
@pytest.mark.parametrize(
    ("victim", "is_victim", "choose"),
    [
        ("shim", is_shim, from_its_start),
        ("engine", is_engine, while_it_runs),
        ("network plugin", is_plugin, while_it_runs),
        ("log copier", is_copier, while_it_lives),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_it_is_killed(rig: Rig, victim: str, is_victim: Find, choose: Choose, half: Half, matrix: Matrix) -> None:
    def find(process: Process) -> bool:
        return is_victim(process) and rig.pod.id not in process.argv

    judge = Judge(rig, matrix)
    with ExitStack() as stack:
        if is_victim is is_copier:
            stack.enter_context(rig.frozen_bystander())
        left = WANTED
        for number, moment in enumerate(spread(choose(passed(rig, half)), WANTED, slices.NUMBER)):
            pair = slices.PAIRS[(slices.NUMBER + number) % len(slices.PAIRS)]
            case = Case("somebody is killed", victim, half.__name__, str(pair), detail=str(moment))
            struck = True  # also if the case fails
            with judge.trying(case):
                struck = killed(rig, Life(rig, pair), half, moment, find, case)
            if not struck:
                matrix.cases.remove(case)
            left -= struck
            if not left:
                break
    judge.verdict()
    assert not left, f"at {left} points less than {WANTED} there was somebody to kill"


def passed(rig: Rig, half: Half) -> list[str]:
    """The failpoints of one half, when nothing is amiss."""
    life = Life(rig, slices.PAIRS[-1])
    if half is Life.delete:
        life.create()
    rig.daemon.failpoints(ANYWHERE)
    half(life)
    points = rig.daemon.failpoints("")
    life.delete()
    rig.assert_clean()
    return points


def killed(rig: Rig, life: Life, half: Half, moment: Moment, find: Find, case: Case) -> bool:
    """Kills somebody at that moment, and lets the kubelet go on; whether there was somebody to kill."""
    if half is Life.delete:
        life.create()
    moment.arm(rig)
    with ThreadPoolExecutor(1) as pool:
        doing: Future[object] = pool.submit(half, life)
        struck = moment.strike(rig, doing, find)
        case.at = by_kind(rig.on_node())
    if isinstance(error := doing.exception(), grpc.RpcError):
        case.refused = True
        check(error)
    elif error is not None:
        raise error
    life.delete()
    return struck

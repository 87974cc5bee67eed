"""What the fault tests share: a daemon that is done harm, and a pod beside that must not notice.

A test works with pods of its own, and ends with `Rig.assert_clean()`: nothing is left of them, neither on the node nor in the ledger, and
the bystander runs on as if nothing had been. The daemon may have been killed and started any number of times meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, Pod, until
from tests.e2e.daemon import CNI_PLUGINS, Daemon
from tests.e2e.node import NodeSnapshot, Process, processes, shims
from tests.e2e.registry import DockerRegistry
from tests.e2e.toolbox import PAIRS, Pair

LOG_SETTINGS = 'level = "debug"\nformat = "json"'
COUNTER = "mkfifo /tmp/f; exec 3<>/tmp/f; i=0; until [ -e /tmp/stop ]; do echo $i; i=$((i+1)); read -t 0.02 x <&3; done; exit 0"
"""Prints numbers, some fifty a second, without a process of its own for each pause."""
_CRASH = re.compile(rb"^failpoint (\S+): crash$", re.MULTILINE)


GATE = """\
#!/bin/sh
# Stands for {program}. What a test wants is done to its calls that matter: another program instead, or a wait, before it does
# anything or when it has done it and not said so.
{matters} || exec {program} "$@"
[ ! -e {home}/instead ] || PROGRAM={program} exec sh {home}/instead "$@"
if [ -e {home}/before ]; then : > {home}/reached; while [ -e {home}/before ]; do sleep 0.02; done; fi
[ -e {home}/after ] || exec {program} "$@"
{program} "$@"
status=$?
: > {home}/reached
while [ -e {home}/after ]; do sleep 0.02; done
exit $status
"""
HANDLERS = """
[runtimes.task]
path = "{pair.shim_path}"
engine = "{pair.engine_path}"
sandbox = "task"

[runtimes.gated]
path = "{shim.path}"
engine = "{engine.path}"

[runtimes.missing]
path = "/no/such/shim"
"""

PAIR_HANDLER = """
[runtimes.{name}]
path = "{pair.shim_path}"
engine = "{pair.engine_path}"
"""


def handler_of(pair: Pair) -> str:
    return str(pair).replace(".", "-")


class Gate:
    """A program that a test can hold up, or replace, while it is called; another's otherwise. Each in a directory of its own."""

    def __init__(self, home: Path, program: Path, matters: str) -> None:
        """`matters` is a shell command that is true of the calls in question."""
        home.mkdir()
        self._home = home
        self.path = home / program.name
        self.path.write_text(GATE.format(home=home, program=program, matters=matters))
        self.path.chmod(0o755)

    @contextmanager
    def shut(self, moment: str) -> Iterator[None]:
        """Inside, each call waits, `before` or `after` its work."""
        (self._home / moment).touch()
        try:
            yield
        finally:
            (self._home / moment).unlink()
            (self._home / "reached").unlink(missing_ok=True)

    def reached(self) -> bool:
        """Whether a call waits at the gate."""
        return (self._home / "reached").exists()

    @contextmanager
    def replaced(self, script: str) -> Iterator[None]:
        """Inside, each call runs this shell script instead, with the program in $PROGRAM."""
        (self._home / "instead").write_text(script)
        try:
            yield
        finally:
            (self._home / "instead").unlink()

    def processes(self) -> list[Process]:
        """Who runs the program, or what stands for it."""
        return [process for process in processes() if any(word.startswith(f"{self._home}/") for word in process.argv)]


def faulty_daemon(home: Path, pair: Pair, timeouts: str) -> tuple[Daemon, Gates]:
    """A daemon, not started, whose bridge plugin has a gate, as have shim and engine of the handler `gated`."""
    gates = Gates(
        shim=Gate(home / "shim", pair.shim_path, 'case " $* " in *" start ") true ;; *) false ;; esac'),
        engine=Gate(home / "engine", pair.engine_path, 'case " $* " in *" create "*) true ;; *) false ;; esac'),
        add=Gate(home / "plugins", CNI_PLUGINS / "bridge", '[ "$CNI_COMMAND" = ADD ]'),
        delete=Gate(home / "other-plugins", home / "plugins" / "bridge", '[ "$CNI_COMMAND" = DEL ]'),
    )
    handlers = HANDLERS.format(pair=pair, shim=gates.shim, engine=gates.engine)
    handlers += "".join(PAIR_HANDLER.format(name=handler_of(other), pair=other) for other in PAIRS)
    daemon = Daemon(home, pair, log_settings=LOG_SETTINGS, handler_settings=handlers, timeouts=timeouts)
    (home / "conf.d").mkdir()
    bin_dirs = json.dumps([str(gates.delete.path.parent), str(CNI_PLUGINS)])
    (home / "conf.d" / "cni.toml").write_text(f"[cni]\nbin_dirs = {bin_dirs}\n")
    return daemon, gates


@dataclass(frozen=True)
class Gates:
    shim: Gate
    """`start` of the shim of the handler `gated`."""
    engine: Gate
    """`create` of its engine."""
    add: Gate
    """ADD of the bridge plugin."""
    delete: Gate
    """DEL of the bridge plugin."""


class Rig:
    """One daemon and its bystander. Made by the fixture `rig`, once for a module and pair."""

    def __init__(self, daemon: Daemon, gates: Gates, logs: Path) -> None:
        self.daemon = daemon
        self.gates = gates
        self._logs = logs
        self._stack = ExitStack()
        self.kubelet: Client = daemon.client
        config = self.kubelet.pod_config("bystander", log_directory=self.log_directory())
        config.linux.cgroup_parent = ""  # below the agent's own, which stays once it is made
        self.pod: Pod = self.kubelet.run_again(config)
        """Where tests may also put containers of their own."""
        self.counter = self.kubelet.run_container(self.pod, ["sh", "-c", COUNTER], name="counter")
        self._init = init_of(self.counter)
        self._ips = self.kubelet.pod_status(self.pod).network
        until(lambda: self.kubelet.logs(self.counter), what="the bystander counts")
        self._ledger = self._owned()
        self._node = NodeSnapshot.take(daemon.root)

    def log_directory(self) -> Path:
        """A new one for a pod."""
        return Path(tempfile.mkdtemp(dir=self._logs))

    @cached_property
    def image(self) -> str:
        """The name of an image, of two layers that are nobody else's, in a registry that serves until the end."""
        registry = self._stack.enter_context(DockerRegistry(self._logs / "registry"))
        registry.push_image("some/image", [{"one": b"1" * 5000}, {"two": b"2" * 5000}], "v1")
        return f"{registry.address}/some/image:v1"

    def with_each_pair(self, work: Callable[[str], None]) -> None:
        """Does `work` with the handler of each pair, all at the same time: for what mostly waits."""
        with ThreadPoolExecutor(len(PAIRS)) as pool:
            works = {pair: pool.submit(work, handler_of(pair)) for pair in PAIRS}
        for pair, done in works.items():
            if (failure := done.exception()) is not None:
                failure.add_note(f"with {pair}")
                raise failure

    # ---- the daemon's end

    def dies(self, act: Callable[[], object]) -> str:
        """Does `act`, in which the daemon may die at a failpoint: the name of that one, or "" if it lives."""
        begin = self.daemon.log.stat().st_size
        try:
            act()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        else:
            return ""
        code = self.daemon.wait_gone()
        said = self.log_since(begin)
        found = _CRASH.search(said)
        assert code == -signal.SIGKILL, f"the daemon ended with {code}"
        assert found, "the daemon was killed, but not by a failpoint"
        return found[1].decode()

    def starts(self, failpoints: str = "") -> str:
        """Starts the daemon, which may die at a failpoint before it has taken down what it found: the name of that one, or ""."""
        self.daemon.start(failpoints=failpoints, wait=False)
        return self.dies(self._settle)

    def _settle(self) -> None:
        deadline = time.monotonic() + 30
        while not self.daemon.ended() and time.monotonic() < deadline:
            with contextlib.suppress(grpc.RpcError):
                self.daemon.wait_recovered()
                if all(entry.state == "held" for entry in self.kubelet.ledger()):
                    self.daemon.failpoints("")
                    return
            time.sleep(0.02)
        self.kubelet.ledger()  # which the daemon can't answer: it is dead

    @contextmanager
    def paused(self, point: str, act: Callable[[], object], nth: int = 0) -> Iterator[Future[object]]:
        """Does `act` in the background; the block runs while the agent waits at a failpoint, after it `act` goes on.

        With `nth` it is held up the n-th time only.
        """
        self.daemon.failpoints(f"{point}={nth}*pause" if nth else f"{point}=pause")
        with ThreadPoolExecutor(1) as pool:
            doing = pool.submit(act)
            try:
                until(lambda: self.daemon.failpoints().count(point) >= max(nth, 1), what=f"the agent comes to {point}")
                yield doing
            finally:
                self.daemon.failpoints("")

    @contextmanager
    def frozen_bystander(self) -> Iterator[None]:
        """Inside, the bystander prints nothing: for harm to the log copier, after which lines may be there twice."""
        [(pid, _)] = init_of(self.counter)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    # ---- the check

    def serve(self) -> None:
        """Has the daemon running, without failpoints, whatever a test did to it."""
        if self.daemon.runs and self.daemon.ended():
            self.daemon.wait_gone()
        if not self.daemon.runs:
            self.daemon.start()
        self.daemon.failpoints("")

    def tidy(self) -> None:
        """Removes whatever there is beside the bystander, as a kubelet does with what it doesn't want."""
        for pod in self.kubelet.pods():
            if pod.id != self.pod.id:
                self.kubelet.stop_pod(pod.id)
                self.kubelet.remove_pod(pod.id)
        for container in self.kubelet.containers():
            if container.id != self.counter:
                self.kubelet.stop(container.id)
                self.kubelet.remove(container.id)
        if "image" in vars(self):
            self.kubelet.remove_image(self.image)

    def assert_clean(self, *, within: float = 15) -> None:
        """Nothing is left but the bystander, and that one runs on."""
        until(lambda: not self.left(), what="nothing is left", within=within, detail=self.left)
        assert init_of(self.counter) == self._init, "the bystander's container is not the one that it was"
        assert self.kubelet.status(self.counter).state == cri.CONTAINER_RUNNING
        status = self.kubelet.pod_status(self.pod)
        assert (status.state, status.network) == (cri.SANDBOX_READY, self._ips)
        assert self.kubelet.exec_sync(self.counter, "echo", "on").stdout == b"on\n"

    def left_in_the_end(self) -> list[str]:
        """What stays, for good, when a daemon serves and all but the bystander is removed."""
        self.serve()
        self.tidy()
        deadline = time.monotonic() + 10
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def left(self) -> list[str]:
        """What there is, on the node and in the ledger, beside the bystander."""
        entries = [f"in the ledger: {entry}" for key, entry in self._owned().items() if key not in self._ledger]
        return entries + self.on_node()

    def on_node(self) -> list[str]:
        """What there is on the node beside the bystander; the daemon may be dead."""
        pid = self.daemon.pid if self.daemon.runs else 0
        mine = re.compile(rf"process ({pid} .*|.* agent\.logs\.copier .*|\d+ docker-registry .*)")  # all may have come since
        return [thing for thing in self._node.diff() if not mine.fullmatch(thing)]

    def end(self) -> None:
        """Stops the counter, whose log has to be whole, and removes the bystander."""
        self.kubelet.exec_sync(self.counter, "touch", "/tmp/stop")
        assert self.kubelet.wait_exit(self.counter).exit_code == 0
        assert_counted(self.kubelet, self.counter)
        self.kubelet.stop_pod(self.pod)
        self.kubelet.remove_pod(self.pod)
        self._stack.close()

    def _owned(self) -> dict[tuple[str, str], str]:
        return {(entry.kind, entry.key): f"{entry.kind} {entry.key}, {entry.state} {entry.error}" for entry in self.kubelet.ledger()}

    # ---- the daemon's log

    def log_since(self, begin: int) -> bytes:
        with self.daemon.log.open("rb") as log:
            log.seek(begin)
            return log.read()

    def events(self, begin: int) -> Iterator[dict[str, Any]]:
        """What the daemon logged from the offset `begin` on."""
        for line in self.log_since(begin).splitlines():
            if line.startswith(b"{"):
                yield json.loads(line)

    def steps(self, begin: int) -> list[tuple[str, str]]:
        """The steps of teardown that were made since then, as (step, id of the container or shim), in their order."""
        return [(event["step"], event["id"]) for event in self.events(begin) if event["event"] == "teardown step"]


def init_of(container: str) -> list[tuple[int, int]]:
    """Pid and start time of a container's first process, as a list of one; empty if it doesn't run."""
    return [(process.pid, process.start_time) for process in processes() if is_init(process, container)]


def is_init(process: Process, container: str) -> bool:
    """Whether it is process 1 of its PID namespace, in the container's cgroup."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        cgroup = Path(f"/proc/{process.pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    numbers = re.search(r"^NSpid:\s+(.*)$", status, re.MULTILINE)
    return container in cgroup and numbers is not None and numbers[1].split()[1:] == ["1"]


def assert_counted(kubelet: Client, container: str) -> None:
    """The log of COUNTER has every number once, in order."""
    numbers = [line.text for line in kubelet.logs(container)]
    assert numbers == [str(number) for number in range(len(numbers))]
    assert numbers


def shim_of(pod: Pod) -> Process:
    [shim] = shims(pod.id)
    return shim


def wait_for_new_shim(pod: Pod, old: Process) -> None:
    until(lambda: [shim.pid for shim in shims(pod.id)] not in ([], [old.pid]), what="the pod has a new shim")


def release(container: str) -> None:
    """Makes /tmp/go in a container, behind the agent's back."""
    [(pid, _)] = init_of(container)
    Path(f"/proc/{pid}/root/tmp/go").touch()

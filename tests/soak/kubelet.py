"""What a kubelet does for one pod while everything around it is being killed: looks, does what is missing, and comes back.

One `PodLife` per pod, in a thread of `tests.soak.soak`. No call may be lost and none may be final: whatever fails is looked at
again a moment later, as the kubelet's next sync does, with the attempt counted up where something is there already.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, Pod

PATIENCE = 240.0
"""Seconds that a pod may need to come, or to go; then it is stuck."""
SYNC = 0.15
"""Seconds between two looks; the kubelet takes one or two."""
LINES = 20
LATE = 100
"""Looks at a log that is not whole."""

T = TypeVar("T")


@dataclass
class Tally:
    """What was seen, by all pods together. The threads only add to it."""

    calls: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    """Calls that failed and were repeated, as "VERB CODE"."""
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Sentences about what must not be."""


@dataclass(frozen=True)
class Work:
    """What a container is for: it counts and ends, or it runs until it is stopped, after a command in it if `asked`."""

    name: str
    ends: bool
    asked: bool
    grace: int

    @classmethod
    def some(cls, number: int, dice: random.Random) -> Work:
        return cls(f"c{number}", dice.random() < 0.5, dice.random() < 0.5, dice.choice((0, 0, 1)))

    @property
    def command(self) -> list[str]:
        return ["seq", "1", str(LINES)] if self.ends else ["sleep", "1000000"]


class PodLife:
    """A pod of one or two containers, chosen by `dice`."""

    def __init__(self, kubelet: Client, tally: Tally, logs: Path, name: str, dice: random.Random) -> None:
        self._kubelet = kubelet
        self._tally = tally
        self._logs = logs / name
        self._config = kubelet.pod_config(name, log_directory=self._logs)
        if dice.random() < 0.3:
            self._config.linux.cgroup_parent = ""
        self._works = [Work.some(number, dice) for number in range(dice.choice((1, 2)))]
        self._done: set[str] = set()

    def live(self) -> None:
        """Comes, works, goes. What goes wrong for good is in the tally."""
        self._logs.mkdir()
        if self._until(self._worked, "done its work") and self._until(self._gone, "gone"):
            self._tally.seen["pods"] += 1
        shutil.rmtree(self._logs)

    def _until(self, sync: Callable[[], bool], what: str) -> bool:
        deadline = time.monotonic() + PATIENCE
        last = ""
        while time.monotonic() < deadline:
            try:
                if sync():
                    return True
            except grpc.RpcError as error:
                last = f"{error.code()}: {error.details()}"
            time.sleep(SYNC)
        self._tally.wrong.append(
            f"pod {self._config.metadata.name} is not {what} after {PATIENCE:g} s; the last failure was: {last or 'none'}"
        )
        return False

    # ---- it is wanted

    def _worked(self) -> bool:
        """One sync: whether all containers have done what they are for."""
        missing = [work for work in self._works if work.name not in self._done]
        if missing:
            pod = self._sandbox()
            for work in missing:
                self._container(pod, work)
        return len(self._done) == len(self._works)

    def _sandbox(self) -> Pod:
        mine = self._sandboxes()
        newest = max(mine, key=lambda pod: pod.metadata.attempt, default=None)
        if newest is not None and newest.state == cri.SANDBOX_READY:
            return Pod(newest.id, self._config)
        if newest is not None:
            self._config.metadata.attempt = newest.metadata.attempt + 1
        return self._call("RunPodSandbox", lambda: self._kubelet.run_again(self._config))

    def _container(self, pod: Pod, work: Work) -> None:
        mine = [container for container in self._containers(pod.id) if container.metadata.name == work.name]
        newest = max(mine, key=lambda container: container.metadata.attempt, default=None)
        if newest is not None and newest.state == cri.CONTAINER_RUNNING:
            if not work.ends:
                self._use(newest.id, work)
        elif newest is not None and newest.state == cri.CONTAINER_EXITED and self._ended_well(newest.id, work):
            self._done.add(work.name)
        else:
            attempt = newest.metadata.attempt + 1 if newest is not None else 0
            new = self._call("CreateContainer", lambda: self._kubelet.create_container(pod, work.command, name=work.name, attempt=attempt))
            self._call("StartContainer", lambda: self._kubelet.start(new))

    def _use(self, container: str, work: Work) -> None:
        if work.asked:
            answer = self._call("ExecSync", lambda: self._kubelet.exec_sync(container, "echo", "on"))
            if answer.exit_code != 0 or answer.stdout != b"on\n":  # its process was killed
                self._tally.seen["commands that did not say what they should"] += 1
                return
        self._call("StopContainer", lambda: self._kubelet.stop(container, work.grace))
        self._done.add(work.name)

    def _ended_well(self, container: str, work: Work) -> bool:
        """Whether it ended by itself; then all that it wrote is in its log, or will be in a moment."""
        status = self._call("ContainerStatus", lambda: self._kubelet.status(container))
        if not work.ends or status.exit_code != 0:
            self._tally.seen["containers that were killed and run again"] += 1
            return False
        whole = [str(number) for number in range(1, LINES + 1)]
        for late in range(LATE):
            lines = [line.text for line in self._kubelet.logs(container)]
            if list(dict.fromkeys(lines)) == whole:
                self._tally.seen["logs that were whole only after the exit, of log copiers that were killed"] += late > 0
                break
            time.sleep(SYNC)  # an exit waits for the log only so long; a copier that was killed goes on when it is there again
        else:
            self._tally.wrong.append(f"the log of {work.name} of pod {self._config.metadata.name} is not whole: {lines}")
        self._tally.seen["lines there twice, of log copiers that were killed"] += len(lines) - len(set(lines))
        return True

    # ---- it is not wanted any more

    def _gone(self) -> bool:
        """One sync: whether nothing is listed of it."""
        for pod in self._sandboxes():
            self._call("StopPodSandbox", partial(self._kubelet.stop_pod, pod.id))
            for container in self._containers(pod.id):
                self._call("RemoveContainer", partial(self._kubelet.remove, container.id))
            self._call("RemovePodSandbox", partial(self._kubelet.remove_pod, pod.id))
        return not self._sandboxes()

    # ---- calls

    def _sandboxes(self) -> list[cri.PodSandbox]:
        pods = self._call("ListPodSandbox", self._kubelet.pods)
        return [pod for pod in pods if pod.metadata.uid == self._config.metadata.uid]

    def _containers(self, sandbox: str) -> list[cri.Container]:
        containers = self._call("ListContainers", self._kubelet.containers)
        return [container for container in containers if container.pod_sandbox_id == sandbox]

    def _call(self, verb: str, call: Callable[[], T]) -> T:
        self._tally.calls[verb] += 1
        try:
            return call()
        except grpc.RpcError as error:
            self._tally.failed[f"{verb} {error.code().name}"] += 1
            raise

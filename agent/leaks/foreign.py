"""What the other runtimes on the node say they have: each is asked at its CRI socket before anything of it is called a leak.

A pod that is listed in any state is theirs, with all that it has: ready, stopped, created and not started. One that is just
being made is not listed yet, so nothing young is judged (`Look.grace`). One that doesn't answer leaves all of its things unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from agent import timeouts
from agent.errdefs import OrlopError
from agent.leaks.owners import Runtime
from cri.api import api_pb2 as cri
from cri.client import Client


class Life(StrEnum):
    """Whether a sandbox or container is somebody's."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Answer:
    """What one runtime said."""

    runtime: Runtime
    ids: frozenset[str] = frozenset()
    """Sandboxes and containers, in any state."""
    uids: frozenset[str] = frozenset()
    """The kubelet's, of pods: they are in the names of cgroups."""
    problem: str = ""
    """Why it didn't answer."""


@dataclass(frozen=True)
class Foreign:
    """All answers, and the signs of runtimes that there is no socket of to ask."""

    answers: Sequence[Answer] = ()
    unasked: Sequence[str] = ()
    running: frozenset[str] = frozenset()
    """What runs that no CRI lists: containers of Docker, nerdctl and Podman, by their shims and monitors."""

    def life(self, identifier: str, runtime: Runtime | None) -> Life:
        """Of a sandbox or container, or of a pod's uid; `runtime` if it is known whose it would be."""
        if identifier in self.running or any(identifier in answer.ids or identifier in answer.uids for answer in self.answers):
            return Life.ALIVE
        return Life.UNKNOWN if self.problem(runtime) else Life.GONE

    def problem(self, runtime: Runtime | None) -> str:
        """Why `runtime` can't say what it has; for None any of them. Empty: what it doesn't have is gone."""
        silent = [answer for answer in self.answers if answer.problem and runtime in (None, answer.runtime)]
        reasons = [f"{answer.runtime} doesn't say what it has: {answer.problem}" for answer in silent]
        if runtime is None:
            reasons += [f"there is no socket to ask {sign}" for sign in self.unasked]
        return "; ".join(reasons)


async def ask(runtimes: Sequence[Runtime]) -> list[Answer]:
    """Ask all of them at once, each within `timeouts.FOREIGN_LIST`. Never raises for one that doesn't answer."""
    return list(await asyncio.gather(*map(_ask, runtimes)))


async def _ask(runtime: Runtime) -> Answer:
    try:
        async with Client(str(runtime.socket)) as client, asyncio.timeout(timeouts.FOREIGN_LIST):
            pods = (await client.call("ListPodSandbox", cri.ListPodSandboxRequest())).items
            containers = (await client.call("ListContainers", cri.ListContainersRequest())).containers
    except TimeoutError:
        return Answer(runtime, problem=f"no answer within {timeouts.FOREIGN_LIST:g} s")
    except OrlopError as error:
        return Answer(runtime, problem=str(error))
    ids = frozenset(item.id for item in (*pods, *containers))
    return Answer(runtime, ids, frozenset(pod.metadata.uid for pod in pods))

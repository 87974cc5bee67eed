"""The log copier of the simulated node: what the daemon's client hears from it. What it writes is no part of the simulation."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

from agent.errdefs import Closed, NotFound
from agent.logs import protocol
from tests.unit.simulation.clock import Life
from tests.unit.simulation.kernel import Proc
from tests.unit.simulation.node import Node

COPIER_CGROUP = "/shims/log-copier"


class Copier:
    """The copier's process, if one runs, and what it copies. It outlives daemons."""

    def __init__(self, node: Node, at_end: Callable[[str], bool]) -> None:
        """`at_end` tells whether nobody is left who could write."""
        self.node = node
        self.at_end = at_end
        self.proc: Proc | None = None
        self.copied: dict[str, dict[str, Any]] = {}
        self.connections: list[CopierConnection] = []

    def start(self) -> None:
        self.node.kernel.make_cgroup(COPIER_CGROUP)
        self.proc = self.node.kernel.spawn("log-copier", ("python", "-m", "agent.logs.copier"), cgroup=COPIER_CGROUP)
        self.proc.at_end.append(self._ended)

    def _ended(self) -> None:
        self.proc = None
        self.copied.clear()
        for connection in list(self.connections):
            connection.close()

    def kill(self) -> None:
        if self.proc is not None:
            self.proc.kill()

    def end_if_idle(self) -> None:
        """Without a container and a daemon it ends itself."""
        if self.proc is not None and not self.copied and not self.connections:
            self.proc.end(0)

    async def answer(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        node, name = self.node, fields.get("id", "")
        await node.step()
        while self.proc is not None and self.proc.stopped:
            await self.proc.continued.wait()
        match op:
            case "open":
                if fields["strict"] and node.fault("log open"):
                    raise NotFound(f"log directory of {name} doesn't exist")
                self.copied[name] = fields
            case "close":
                if node.fault("log close"):
                    await asyncio.sleep(30)
                self.copied.pop(name, None)
            case "reopen":
                if name not in self.copied:
                    raise NotFound(name)
            case "drain":
                deadline = node.loop.time() + fields["budget_ms"] / 1000
                while not self.at_end(name):
                    if node.loop.time() >= deadline:
                        return {"result": "timeout", "bytes": 1, "dropped": 0}
                    await asyncio.sleep(0.5)
                return {"result": "eof", "bytes": 1, "dropped": 0}
            case _:
                return {"version": protocol.VERSION}
        return {}


class CopierConnection:
    """`agent.logs.connection.Connection`."""

    def __init__(self, copier: Copier, life: Life) -> None:
        self._copier = copier
        self._life = life
        self._gone = asyncio.Event()
        self._calls: dict[asyncio.Task[Any], asyncio.Future[Any]] = {}
        copier.connections.append(self)

    async def call(self, op: str, descriptors: Sequence[int] = (), **fields: Any) -> protocol.Message:
        self._life.check()
        if self._gone.is_set():
            raise Closed("gone")
        for descriptor in descriptors:
            os.fstat(descriptor)  # they are open
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        serving = self._copier.node.world(self._copier.answer(op, fields))
        self._calls[serving] = answer
        serving.add_done_callback(self._answered)
        made: protocol.Message = await answer
        self._life.check()
        return made

    def _answered(self, serving: asyncio.Task[Any]) -> None:
        answer = self._calls.pop(serving, None)
        error = Closed("gone") if serving.cancelled() else serving.exception()
        if answer is None or answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(serving.result())

    async def wait_closed(self) -> None:
        await self._gone.wait()

    def close(self) -> None:
        if self._gone.is_set():
            return
        self._gone.set()
        self._copier.connections.remove(self)
        calls, self._calls = self._calls, {}
        for serving, answer in calls.items():
            if self._copier.proc is None:  # else it carries out what it has got
                serving.cancel()
            if not answer.done():
                answer.set_exception(Closed("gone"))
                answer.exception()


class SimLauncher:
    """`agent.logs.launcher.Launcher`."""

    def __init__(self, copier: Copier, life: Life) -> None:
        self._copier = copier
        self._life = life

    async def connect(self) -> CopierConnection:
        await self._copier.node.step()
        self._life.check()
        copier = self._copier
        if copier.proc is not None and copier.proc.stopped:  # a mute one is killed
            await asyncio.sleep(10)
            self._life.check()
            if copier.proc is not None and copier.proc.stopped:
                copier.proc.kill()
        if copier.proc is None:
            copier.start()
        return CopierConnection(copier, self._life)

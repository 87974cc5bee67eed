"""The workers of `agent.snapshots` inside the test's own process: the same code, without namespaces and chroot."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable

from agent.errdefs import OrlopError
from agent.linux.processes import Command, Completed
from agent.snapshots.apply import Limits
from agent.snapshots.unpack_worker import unpack
from agent.snapshots.usage_worker import measure


class InProcessRunner:
    """Stands in for `Processes`. `before` is called with the request of each unpack, and may fail or wait."""

    def __init__(self) -> None:
        self.unpacked: list[str] = []
        self.seconds = 0.0
        """How long measurements of usage may take, if not as long as they are told."""
        self.say: Callable[[dict[str, object]], bytes | None] = lambda request: None
        """What a worker answers instead of unpacking, if it isn't None."""

    async def run(self, command: Command) -> Completed:
        request = json.loads(command.stdin)
        if command.argv[-1] == "agent.snapshots.usage_worker":
            return Completed(0, json.dumps(measure(request["directories"], self.seconds or request["seconds"])).encode(), b"")
        assert command.argv[-1] == "agent.snapshots.unpack_worker"
        self.unpacked.append(request["diff_id"])
        answer = self.say(request)
        if answer is None:
            answer = json.dumps(self._unpack(request)).encode()
        os.write(request["answer"], answer)
        return Completed(0, b"", b"the worker's last words")

    def _unpack(self, request: dict[str, str]) -> dict[str, object]:
        try:
            with io.BufferedReader(io.FileIO(request["layer"])) as layer:
                return unpack(layer, request["target"], request["diff_id"], Limits())
        except OrlopError as error:
            return {"code": error.code, "error": str(error)}

"""The agent's end of the events that shims forward: `Events.Forward` at `TTRPC_ADDRESS`, which each shim keeps for life.

Events are hints that come early, late, twice or never (runtime-v2 section 4): exits have `Wait` beside them, and after a
restart every task is asked. An OOM kill is told by an event alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from agent import log
from agent.api.events.task_pb2 import TaskExit, TaskOOM
from agent.api.services.ttrpc.events.v1.events_pb2 import ForwardRequest
from agent.api.types.event_pb2 import Envelope
from agent.errdefs import InvalidArgument
from agent.events import Exit
from agent.runtime.v2 import exits
from agent.ttrpc import Metadata, Server

_log = log.get("runtime")

SERVICE = "containerd.services.events.ttrpc.v1.Events"


class Sink(Protocol):
    """Who acts on events. Must neither wait nor fail: the shim sends its next event when this one is accepted."""

    def exited(self, container_id: str, exec_id: str, exit_: Exit) -> None:
        """A process ended; `exec_id` is empty for the init."""

    def out_of_memory(self, container_id: str) -> None: ...


class EventServer:
    """Serves `Events.Forward`."""

    def __init__(self, namespace: str, sink: Sink) -> None:
        self._namespace = namespace
        self._sink = sink
        self._server = Server()
        self._server.register(SERVICE, "Forward", ForwardRequest, self._forward)

    async def serve(self, path: Path) -> None:
        """Listen; raises as `agent.ttrpc.Server.serve`."""
        await self._server.serve(path)

    async def stop(self) -> None:
        await self._server.stop(budget=0)

    async def _forward(self, request: ForwardRequest, _: Metadata) -> Empty:
        envelope = request.envelope
        if envelope.namespace != self._namespace:
            raise InvalidArgument(f"an event of namespace {envelope.namespace!r}; the agent's is {self._namespace!r}")
        try:
            self._dispatch(envelope)
        except DecodeError as error:
            raise InvalidArgument(f"the event {envelope.topic} is not a {envelope.event.type_url}: {error}") from error
        return Empty()

    def _dispatch(self, envelope: Envelope) -> None:
        match envelope.topic:
            case "/tasks/exit":
                event = TaskExit.FromString(envelope.event.value)
                exec_id = "" if event.id == event.container_id else event.id
                self._sink.exited(event.container_id, exec_id, exits.known(event.exit_status, event.exited_at, event.pid))
            case "/tasks/oom":
                self._sink.out_of_memory(TaskOOM.FromString(envelope.event.value).container_id)
            case topic:
                _log.debug("event", topic=topic)

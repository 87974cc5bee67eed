"""What every verb works with, and how verbs run.

A verb is one async function in a file named after it. It gets the `Pods` of the daemon, whose members are the layers
below, and runs in a task of its own: the kubelet's cancellation ends the kubelet's waiting, not the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from agent.aio import KeyedLock, Supervisor
from agent.config.handlers import RuntimeHandler
from agent.errdefs import InvalidArgument
from agent.events import Exchange
from agent.images.service import ImageService
from agent.linux.cgroups import Cgroups
from agent.linux.mounts import Mounts
from agent.linux.namespaces import Namespaces
from agent.linux.systemd import Systemd
from agent.logs.client import LogCopier
from agent.network.network import Network
from agent.pods.event_feed import EventFeed
from agent.pods.facts import NodeFacts
from agent.pods.registry import Registry
from agent.runtime.v2.features import HandlerFeatures
from agent.runtime.v2.manager import TaskManager
from agent.stats import Sampler
from agent.store.ledger import Ledger
from agent.store.release import Releases

T = TypeVar("T")


@dataclass
class Pods:
    """The collaborators of the pods layer. `state_dir` is boot-scoped (/run/orlop), `netns_dir` is /run/netns; `features` says what
    each of `handlers` can do.
    """

    state_dir: Path
    netns_dir: Path
    pod_cgroup: str
    handlers: dict[str, RuntimeHandler]
    features: dict[str, HandlerFeatures]
    default_handler: str
    sandbox_image: str
    facts: NodeFacts
    registry: Registry
    ledger: Ledger
    releases: Releases
    tasks: TaskManager
    images: ImageService
    network: Network
    logs: LogCopier
    namespaces: Namespaces
    mounts: Mounts
    cgroups: Cgroups
    systemd: Systemd
    exchange: Exchange
    supervisor: Supervisor
    stats: Sampler
    events: EventFeed = field(default_factory=EventFeed)
    locks: KeyedLock = field(default_factory=KeyedLock)
    unsettled: dict[str, asyncio.Event] = field(default_factory=dict)
    """Sandboxes that a restart found, until each is sorted out (`recovery`): what changes one waits for that."""
    _running: dict[str, asyncio.Task[Any]] = field(default_factory=dict)

    async def once(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `work` detached from the caller; a second call with the same key joins the first and gets its result.

        So a kubelet that timed out and asks again doesn't find "name is reserved" (field-faults 20, 21).
        """
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = self.supervisor.start_awaited(work(), name=key)
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return cast(T, await self.supervisor.join(task))

    def handler(self, name: str) -> RuntimeHandler:
        """The runtime handler `name`; the empty name is the default one.

        Raises:
            InvalidArgument: no such handler is configured.
        """
        handler = self.handlers.get(name or self.default_handler)
        if handler is None:
            raise InvalidArgument(f"runtime_handler {name!r} is not configured; there are {sorted(self.handlers)}")
        return handler

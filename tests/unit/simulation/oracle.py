"""What must hold, on a simulated node, at every moment and after every step. The numbers are those of the invariants in the design.

Some of it is noticed where it happens (`Node.broken`): two CNI operations at once, a `shim delete` beside a living shim, a bundle that
goes while its `shim delete` runs, a child that is cut off before its time. The rest is here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from agent.events import Event, TaskDelete, TaskExit
from agent.pods import container_status, sandbox_status
from agent.pods.container import REASON_START_ERROR, REASON_UNKNOWN, ContainerRecord, ContainerState
from agent.pods.registry import Container as LiveContainer
from agent.pods.registry import Sandbox as LiveSandbox
from agent.pods.sandbox import SandboxRecord, SandboxState
from agent.pods.wire import element
from agent.runtime.v2.bundle import Bundle
from agent.store.kinds import Kind
from agent.store.resource import Resource
from cri.api import api_pb2 as cri
from tests.unit.simulation.daemon import Daemon
from tests.unit.simulation.kernel import Proc
from tests.unit.simulation.world import World


class Oracle:
    """Watches one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._node = world.node
        self.asked: set[str] = set()
        """Containers and sandboxes that a client has asked to be stopped or removed."""
        self.harmed: set[str] = set()
        """Sandboxes whose shim has dropped its connections, and containers whose processes can't be killed as others."""
        self.unpinned: set[Path] = set()
        self.disturbed = False
        """Something was made to fail."""
        self._seen: dict[str, tuple[object, bytes]] = {}
        """By id, the record whose wire bytes were found to be right, and these. Records don't change, others take their place."""
        self._exits: dict[str, tuple[int, int]] = {}
        self._told: Counter[tuple[str, str]] = Counter()
        self._node.on_kill = self._killed
        self._node.on_release_pin = self._released_pin

    # ---- at the moment

    def watch(self, daemon: Daemon) -> None:
        """Hear the events of a new incarnation."""
        self._exits.clear()
        self._told.clear()
        self._seen.clear()
        publish = daemon.exchange.publish

        def heard(event: Event) -> None:
            self._event(event)
            publish(event)

        daemon.exchange.publish = heard  # type: ignore[method-assign]

    def _event(self, event: Event) -> None:
        if isinstance(event, TaskExit | TaskDelete):
            kind = type(event).__name__
            self._told[kind, event.container_id] += 1
            if self._told[kind, event.container_id] > 1:
                self._node.broken(f"{kind} of {event.container_id} is told twice (4)")
            if isinstance(event, TaskDelete) and not self._told["TaskExit", event.container_id]:
                self._node.broken(f"TaskDelete of {event.container_id} before its TaskExit (4)")

    def _killed(self, proc: Proc) -> None:
        """The daemon kills a process: has it a reason? (10, 12)"""
        for shim in self._world.shims.live():
            if shim.proc is proc:
                pod = self._pod_of(shim.group)
                # One that is mute is not dead. One with nothing in it may have been on its way to take a dead one's place, or to a pod that
                # isn't one yet, when the daemon died or the start failed: who comes next doesn't know it, and begins anew.
                half_started = not shim.containers and (self._world.starts > 1 or self.disturbed)
                healthy = not (half_started or shim.hung or pod in self.harmed)
                if healthy and not self._may_end(pod):
                    self._node.broken(f"the shim of {pod} is killed, though it is well and nobody asked for it (12)")
                return
        container = self._world.engine.containers.get(proc.owner)
        if container is None or container.init is not proc or not container.started:
            return
        served = any(container.id in shim.containers for shim in self._world.shims.live())
        if served and not self._may_end(container.sandbox):
            self._node.broken(f"the init of {container.id} is killed, though its shim lives and nobody asked for it (10)")

    def bundle_goes(self, bundle: Bundle) -> None:
        """The daemon is about to remove a bundle: is there nothing any more that needs it? (1)"""
        for mount in self._node.kernel.mounts_below(bundle.path):
            self._node.broken(f"the bundle of {bundle.id} is removed, though {mount.path} is mounted (1)")
        for shim in self._world.shims.live():
            if shim.bundle == bundle.path:
                self._node.broken(f"the bundle of {bundle.id} is removed, though the shim that was started in it lives (2)")
        container = self._world.engine.containers.get(bundle.id)
        if container is None or container.bundle != bundle.path:
            return
        if processes := container.processes(self._node):
            self._node.broken(f"the bundle of {bundle.id} is removed, though {processes} of it run (1)")
        if container.state_dir is not None and container.state_dir.exists():
            self._node.broken(f"the bundle of {bundle.id} is removed, though the engine has its state (1)")
        if bundle.id in self._world.shims.deleting:
            self._node.broken(f"the bundle of {bundle.id} is removed, while its `shim delete` runs (1)")

    def _pod_of(self, group: str) -> str:
        container = self._world.engine.containers.get(group)
        return group if container is None else container.sandbox

    def _may_end(self, sandbox_id: str) -> bool:
        """Whether somebody asked for the end of the pod or of something in it, or it is only just coming to be."""
        daemon = self._world.daemon
        if daemon is None or sandbox_id in self.asked:
            return True
        live = daemon.pods.registry.sandboxes.find(sandbox_id)
        if live is None:
            return True
        containers = daemon.pods.registry.containers_of(sandbox_id)
        known = {each.record.id for each in containers}
        begun = any(each.record.state in (ContainerState.STARTING, ContainerState.EXITED) for each in containers)
        mine = {each.id for each in self._world.engine.containers.values() if each.sandbox == sandbox_id}
        return begun or bool(mine & self.asked) or bool(mine & self.harmed) or bool(mine - known - {sandbox_id})

    def _released_pin(self, path: Path) -> None:
        kernel = self._node.kernel
        inode = kernel.pins.get(path)
        if inode is None or kernel.kinds[inode] != "net":
            return
        if inside := kernel.in_network(inode):
            self._node.broken(f"network namespace {path.name} is released with {inside} in it (6)")
        if sandboxes := [sandbox for sandbox, where in self._world.network.interfaces.items() if where == inode]:
            self._node.broken(f"network namespace {path.name} is released before CNI DEL of {sandboxes} (6)")

    # ---- after each step

    def look(self) -> list[str]:
        """What doesn't hold now."""
        found = list(self._node.violations)
        self._node.violations.clear()
        found += self._of_node()
        daemon = self._world.daemon
        if daemon is not None and not daemon.life.dead and daemon.recovered.is_set():
            found += self._of_daemon(daemon)
        return found

    def _of_node(self) -> Iterator[str]:
        for mount in self._node.kernel.mounts:
            if not os.path.isdir(mount.text):
                yield f"{mount.path} was removed under a mount (1)"
            if mount.source.startswith("/") and not os.path.exists(mount.source):
                yield f"the source of the mount at {mount.path} was removed (7)"
        for container in self._world.engine.containers.values():
            if container.buried:
                continue
            if not os.path.exists(container.bundle):
                if left := container.processes(self._node):
                    yield f"the bundle of {container.id} is gone, but {left} of it run (1)"
                if container.state_dir is not None and container.state_dir.exists():
                    yield f"the bundle of {container.id} is gone, but the engine has its state (1)"
                container.buried = True

    def _of_daemon(self, daemon: Daemon) -> Iterator[str]:
        registry = daemon.pods.registry
        for sandbox in registry.sandboxes:
            if self._is_old(sandbox):
                yield f"the wire bytes of sandbox {sandbox.record.id} are old (14)"
            if sandbox.record.state is SandboxState.READY and sandbox.record.id not in self.asked:
                yield from self._ready(sandbox)
        for live in registry.containers:
            if self._is_old(live):
                yield f"the wire bytes of container {live.record.id} are old (14)"
            yield from self._exited(live.record)
            if live.record.sandbox_id not in registry.sandboxes:
                yield f"container {live.record.id} is listed without its sandbox"
        for resource in daemon.store.ledger.all():
            if resource.kind is Kind.TASK and "held by" in resource.error:
                yield from self._names_holders(resource)
        yield from self._at_once(daemon)

    def _names_holders(self, resource: Resource) -> Iterator[str]:
        """What can't be unmounted says who held it when that was last tried. Kata's own mounts make one busy, and nobody is seen."""
        container = self._world.engine.containers.get(resource.key)
        if container is None or container.state_dir is None:
            return
        holders = [proc for mount in container.mounts for proc in mount.holders]
        if holders and "held by process " not in resource.error:
            yield f"the rootfs of {resource.key} is held by {holders}, of whom nothing is said: {resource.error} (9)"

    def _is_old(self, live: LiveSandbox | LiveContainer) -> bool:
        record, item = live.record, live.item
        seen = self._seen.get(record.id)
        if seen is not None and seen[0] is record and seen[1] is item:
            return False
        self._seen[record.id] = record, item
        return item != element(1, record.to_item().SerializeToString())

    def _ready(self, sandbox: LiveSandbox) -> Iterator[str]:
        record = sandbox.record
        for kind, pin in record.pins.items():
            path = path_of(pin.path)
            if path not in self.unpinned and self._node.kernel.pins.get(path) != pin.inode:
                yield f"sandbox {record.id} is ready, but its {kind} namespace is not there (10)"
        if not os.path.isdir(record.directory):
            yield f"sandbox {record.id} is ready, but its directory is gone (10)"
        if record.ips and self._world.network.lease_of(record.id) != record.ips[0]:
            yield f"sandbox {record.id} is ready, but its address {record.ips[0]} isn't leased to it (10)"
        shared = f"{record.directory}/shm"
        if "ipc" in record.pins and not any(mount.text == shared for mount in self._node.kernel.mounts):
            yield f"sandbox {record.id} is ready, but its /dev/shm is not mounted (10)"

    def _exited(self, record: ContainerRecord) -> Iterator[str]:
        if record.state is not ContainerState.EXITED:
            return
        told = (record.exit_code, record.finished_at)
        if self._exits.setdefault(record.id, told) != told:
            yield f"the exit of {record.id} was {self._exits[record.id]} and is {told} now (4)"
        container = self._world.engine.containers.get(record.id)
        # One whose start failed is told at once; its init, which never became the container, is the release's to end.
        if container is not None and container.started and container.init is not None and container.init.alive:
            yield f"container {record.id} is told to have ended, but its init {container.init} is there (4)"

    def _at_once(self, daemon: Daemon) -> Iterator[str]:
        """List and Status answer without a wait (14): one of them, another one each time."""
        pods, choices = daemon.pods, self._node.random
        sandbox, live = next(iter(pods.registry.sandboxes), None), next(iter(pods.registry.containers), None)
        verbose = choices.random() < _VERBOSE
        verb = choices.choice(("ListPodSandbox", "ListContainers", "PodSandboxStatus", "ContainerStatus"))
        call: Coroutine[Any, Any, Any]
        if verb == "ListPodSandbox":
            call = sandbox_status.list_pod_sandbox(pods, cri.ListPodSandboxRequest())
        elif verb == "ListContainers":
            call = container_status.list_containers(pods, cri.ListContainersRequest())
        elif verb == "PodSandboxStatus" and sandbox is not None:
            request = cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox.record.id, verbose=verbose)
            call = sandbox_status.pod_sandbox_status(pods, request)
        elif verb == "ContainerStatus" and live is not None:
            wanted = cri.ContainerStatusRequest(container_id=live.record.id, verbose=verbose)
            call = container_status.container_status(pods, wanted)
        else:
            return
        with suppress(StopIteration):
            call.send(None)
            yield f"{verb} waits (14)"
        call.close()

    # ---- when all has come to rest

    def at_rest(self, daemon: Daemon) -> Iterator[str]:
        """Nothing is under way, and nothing is wrong any more: what is told is what is."""
        for live in daemon.pods.registry.containers:
            yield from self._is_as_told(live)
        if not self.disturbed and not self._world.disk.refused:
            yield from (f"sandbox {record.id} is ready, and has no shim (10)" for record in self.without_shim(daemon))

    def without_shim(self, daemon: Daemon) -> list[SandboxRecord]:
        """Sandboxes that are ready and have no shim. One whose replacement failed gets it with its next container."""
        ready = [live.record for live in daemon.pods.registry.sandboxes if live.record.state is SandboxState.READY]
        return [record for record in ready if not self._world.shims.of(record.id)]

    def _is_as_told(self, live: LiveContainer) -> Iterator[str]:
        record, container = live.record, self._world.engine.containers.get(live.record.id)
        processes = container.processes(self._node) if container is not None else []
        match record.state:
            case ContainerState.RUNNING:
                if container is None or container.status != "running":
                    yield f"container {record.id} is told to run, but is {container and container.status} (4)"
            case ContainerState.STARTING:
                # A create hangs until somebody stops its container; in most shims, those that come after it wait for it.
                hung = [self._world.engine.containers.get(job.proc.argv[-1]) for job in self._node.jobs if job.proc.comm == "runc"]
                if any(other is not None and other.sandbox == record.sandbox_id for other in hung):
                    return
                yield f"container {record.id} is still starting (10)"
            case _:
                if processes:
                    yield f"container {record.id} is {record.state}, but {processes} of it run (4)"
        if record.state is ContainerState.EXITED and record.reason not in (REASON_UNKNOWN, REASON_START_ERROR):
            assert container is not None
            if record.exit_code != container.exit_status:
                yield f"container {record.id} has ended with {container.exit_status}, told is {record.exit_code} (4)"

    def left(self) -> list[str]:
        """What there is on a node that should be empty."""
        node, world = self._node, self._world
        kernel = node.kernel
        found = [f"process {proc}" for proc in kernel.procs.values() if proc.comm != "log-copier"]
        found += [f"mount {mount.path}" for mount in kernel.mounts]
        found += [f"pin {path}" for path in kernel.pins] + [f"file {path}" for path in node.netns_dir.iterdir()]
        found += [f"cgroup {path}" for path in kernel.cgroups if path not in _FURNITURE and not path.startswith("/daemon-")]
        found += world.network.left()
        found += [f"socket {address}" for address in world.shims.sockets]
        for directory in _EMPTY:
            with suppress(FileNotFoundError):
                found += [f"file {path.relative_to(node.top)}" for path in (node.top / directory).iterdir()]
        return found


@lru_cache(256)
def path_of(text: str) -> Path:
    """The path, which is asked for again and again."""
    return Path(text)


_VERBOSE = 0.2
"""How many of the requests for a status ask for all."""
_FURNITURE = frozenset({"/shims", "/shims/log-copier", "/pods"})
_EMPTY = (
    "run/io.containerd.runtime.v2.task/k8s.io",
    "lib/io.containerd.runtime.v2.task/k8s.io",
    "run/runc/k8s.io",
    "run/sandboxes",
    "run/namespaces",
    "run/io",
    "lib/snapshots/containers",
    "lib/snapshots/trash",
    "cni/results",
)
"""Directories in which nothing is left."""

"""What is done to a simulated node at once: to shims, containers, mounts, the disk, the log copier."""

from __future__ import annotations

from pathlib import Path

from agent.pods.registry import Container as LiveContainer
from agent.pods.registry import Sandbox
from tests.unit.simulation.daemon import Daemon
from tests.unit.simulation.engine import Container
from tests.unit.simulation.kernel import Proc
from tests.unit.simulation.oracle import Oracle
from tests.unit.simulation.schedule import Op
from tests.unit.simulation.shim_service import ShimService
from tests.unit.simulation.world import World


def sandbox_of(daemon: Daemon, slot: int) -> Sandbox | None:
    """The newest sandbox of the pod in a slot, by the daemon's list."""
    mine = [live for live in daemon.pods.registry.sandboxes if live.record.config.metadata.name == f"pod{slot}"]
    return max(mine, key=lambda live: live.record.config.metadata.attempt, default=None)


def container_of(daemon: Daemon, sandbox_id: str, number: int) -> LiveContainer | None:
    """The newest container of that number in a sandbox, by the daemon's list."""
    mine = [live for live in daemon.pods.registry.containers_of(sandbox_id) if live.record.config.metadata.name == f"c{number}"]
    return max(mine, key=lambda live: live.record.config.metadata.attempt, default=None)


class Harm:
    """Does what the steps of a schedule say, where there is something that it can be done to."""

    def __init__(self, world: World, oracle: Oracle) -> None:
        self._world = world
        self._node = world.node
        self._oracle = oracle
        self._holders: list[Proc] = []
        self.done = False
        """Something was done, beside filling the disk."""

    def init_ends(self, op: Op) -> None:
        """A container's main process ends by itself."""
        for container in self._containers(op):
            if container.status == "running" and container.init is not None:
                container.init.end(int(op.number))

    def let_go(self) -> None:
        """Whoever holds a rootfs ends."""
        for holder in self._holders:
            holder.end(0)
        self._holders.clear()

    def do(self, op: Op) -> None:
        """One of `schedule.HARMS`."""
        match op.what:
            case "kill shim" | "stop shim" | "continue shim" | "hang up":
                done = self._to_shims(op)
            case "kill init" | "freeze" | "thaw" | "state D" | "no state D":
                done = self._to_inits(op)
            case "hold rootfs":
                done = self._hold(op)
            case "let go":
                done = bool(self._holders)
                self.let_go()
            case "fill disk" | "empty disk":
                done = True
                self._world.disk.full = op.what == "fill disk"
            case "kill copier" | "stop copier":
                done = self._to_copier(op)
            case _:
                done = self._unpin(op)
        self.done |= op.what not in ("fill disk", "empty disk")
        if done:
            self._node.hits[op.what] += 1

    def _to_shims(self, op: Op) -> bool:
        shims = self._shims(op)
        for shim in shims:
            match op.what:
                case "kill shim":
                    shim.proc.kill()
                case "stop shim":
                    shim.proc.stop()
                case "continue shim":
                    shim.proc.go_on()
                case _:
                    self._oracle.harmed.update({shim.group, *(each.sandbox for each in shim.containers.values())})
                    shim.hang_up()
        return bool(shims)

    def _to_inits(self, op: Op) -> bool:
        kernel = self._node.kernel
        inits = [each.init for each in self._containers(op) if each.init is not None and each.init.alive]
        for init in inits:
            match op.what:
                case "kill init":
                    init.kill()
                    continue
                case "freeze":
                    kernel.cgroups[init.cgroup] = True
                case "thaw":
                    kernel.thaw(init.cgroup)
                case "state D":
                    init.uninterruptible = True
                case _:
                    init.go_on()
            self._oracle.harmed.add(init.owner)
        return bool(inits)

    def _hold(self, op: Op) -> bool:
        """Somebody of the host works in a rootfs."""
        kernel = self._node.kernel
        mounts = [mount for container in self._containers(op) for mount in container.mounts if mount in kernel.mounts]
        for mount in mounts:
            holder = kernel.spawn("tail")
            mount.holders.append(holder)
            self._holders.append(holder)
        return bool(mounts)

    def _to_copier(self, op: Op) -> bool:
        proc = self._world.copier.proc
        if proc is None:
            return False
        if op.what == "kill copier":
            proc.kill()
        else:
            proc.stop()
        return True

    def _unpin(self, op: Op) -> bool:
        """A script of the node unmounts a pod's network namespace."""
        sandbox = self._sandbox(op)
        pin = None if sandbox is None else sandbox.record.pins.get("network")
        if pin is None or Path(pin.path) not in self._node.kernel.pins:
            return False
        self._oracle.unpinned.add(Path(pin.path))
        self._node.kernel.unpin(Path(pin.path))
        return True

    # ---- to what

    def _sandbox(self, op: Op) -> Sandbox | None:
        daemon = self._world.daemon
        return None if daemon is None or not hasattr(daemon, "pods") else sandbox_of(daemon, op.slot)

    def _containers(self, op: Op) -> list[Container]:
        """The containers of the slot and number that there are on the node."""
        sandbox, daemon = self._sandbox(op), self._world.daemon
        if sandbox is None or daemon is None:
            return []
        live = container_of(daemon, sandbox.record.id, op.container)
        container = None if live is None else self._world.engine.containers.get(live.record.id)
        return [] if container is None else [container]

    def _shims(self, op: Op) -> list[ShimService]:
        sandbox = self._sandbox(op)
        return [] if sandbox is None else self._world.shims.of(sandbox.record.id)

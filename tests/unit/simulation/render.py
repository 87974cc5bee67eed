"""The simulated node as the leak detectors read it: a /proc, cgroup hierarchies and sockets, as directories; and what they find there."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agent.leaks.audit import audit
from agent.leaks.finding import Finding
from agent.leaks.owned import LedgerRead
from agent.leaks.places import Places
from agent.network.inventory import Inventory
from agent.store.resource import Resource
from tests.unit.simulation.clock import EPOCH
from tests.unit.simulation.daemon import POD_CGROUP, runtime_config
from tests.unit.simulation.kernel import Proc
from tests.unit.simulation.world import World

_HIERARCHIES = ("memory", "pids")
"""Of a v1 node."""


async def findings(world: World, ledger: Sequence[Resource]) -> list[Finding]:
    """What `orlop audit` says of the node as it is now."""
    places = _places(world)
    _draw(world, places)

    async def read() -> LedgerRead:
        return LedgerRead(ledger, served=True)

    try:
        return await audit(read, places, Inventory(lambda _: ""), settle=0, clock=lambda: EPOCH + world.loop.time())
    finally:
        shutil.rmtree(_top(world))


def _top(world: World) -> Path:
    return world.node.top / "seen"


def _sockets(world: World) -> Path:
    return _top(world) / "sockets"


def _places(world: World) -> Places:
    node, config = world.node, runtime_config(world.node)
    made = Places.of(config, netns_dir=node.netns_dir, pod_cgroup=POD_CGROUP)
    return replace(
        made,
        shim_sockets=lambda shim: [_sockets(world) / Path(address).name for address in config.socket_addresses(shim)],
        leases=node.cni_dir / "networks",
        results=node.cni_dir / "results",
        proc=_top(world) / "proc",
        cgroup_root=_top(world) / "cgroup",
        other_runtimes=(),
    )


def _draw(world: World, places: Places) -> None:
    kernel, proc = world.node.kernel, places.proc
    hierarchies = [places.cgroup_root] if kernel.v2 else [places.cgroup_root / name for name in _HIERARCHIES]
    for hierarchy in hierarchies:
        for path in ("", *kernel.cgroups):
            (hierarchy / path.strip("/")).mkdir(parents=True, exist_ok=True)
        (hierarchy / ("cgroup.controllers" if kernel.v2 else "cgroup.procs")).touch()
    (proc / "self" / "ns").mkdir(parents=True, exist_ok=True)
    (proc / "self" / "ns" / "net").touch()
    (proc / "net").mkdir(exist_ok=True)
    (proc / "stat").write_text(f"btime {round(EPOCH)}\n")
    lines = [
        f"{mount.number} 1 0:{mount.number} / {mount.path} rw - {mount.fstype} {mount.fstype} {_options(mount.fstype, mount.source)}"
        for mount in kernel.mounts
    ]
    (proc / "self" / "mountinfo").write_text("\n".join(["1 0 8:1 / / rw - ext4 /dev/sda rw", *lines]) + "\n")
    _sockets(world).mkdir()
    bound = []
    for address, shim in world.shims.sockets.items():
        socket = _sockets(world) / Path(address).name
        os.mknod(socket, stat.S_IFSOCK | 0o700)
        bound += [f"0000: 2 0 10000 1 1 1 {socket}"] if shim is not None else []
    (proc / "net" / "unix").write_text("\n".join(["Num RefCount Protocol Flags Type St Inode Path", *bound, ""]))
    for each in kernel.procs.values():
        _draw_process(world, each, proc / str(each.pid), places)


def _draw_process(world: World, each: Proc, directory: Path, places: Places) -> None:
    (directory / "ns").mkdir(parents=True)
    (directory / "fd").mkdir()
    (directory / "stat").write_text(f"{each.pid} ({each.comm}) S {each.parent} {' 0' * 17} {each.identity.start_time} 0 0\n")
    (directory / "cmdline").write_text("".join(f"{argument}\0" for argument in each.argv))
    controllers = [""] if world.node.kernel.v2 else list(_HIERARCHIES)
    rows = [f"{number}:{name}:{each.cgroup or '/'}\n" for number, name in enumerate(controllers)]
    (directory / "cgroup").write_text("".join(rows))
    root = "ext4 /dev/sda rw"
    if each.owner:
        root = f"overlay overlay rw,lowerdir=/l/0,upperdir={places.snapshots / each.owner / 'fs'},workdir=/w"
    (directory / "ns" / "mnt").symlink_to(f"mnt:[{each.owner or 1}]")
    (directory / "ns" / "net").symlink_to(f"net:[{each.netns}]")
    (directory / "mountinfo").write_text(f"1 0 8:1 / / rw - {root}\n")
    container = world.engine.containers.get(each.owner)
    if container is not None and container.state_dir is not None and each.comm.startswith("runc:["):
        (directory / "fd" / "3").symlink_to(container.state_dir / "exec.fifo")


def _options(fstype: str, source: str) -> str:
    return f"rw,lowerdir=/l/0,upperdir={source},workdir=/w" if fstype == "bind" else "rw"

"""The simulated shims do what real ones do: see `tests.shim_contract`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.shim_contract import CHECKS, TRAITS, Check, Rig, mount_of
from tests.unit.simulation.clock import Life, simulated
from tests.unit.simulation.daemon import SHIM_CGROUP, handlers, runtime_config
from tests.unit.simulation.disk import Disk
from tests.unit.simulation.node import daemon_cgroup
from tests.unit.simulation.shims import SimSockets
from tests.unit.simulation.syscalls import SimCgroups, SimMounts, SimProcesses
from tests.unit.simulation.world import World, make_binaries


def spec(name: str) -> dict[str, Any]:
    return {"linux": {"cgroupsPath": f"/pods/{name}", "namespaces": [{"type": "mount"}, {"type": "pid"}]}}


@pytest.mark.field_fault("15")
@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
@pytest.mark.parametrize("generation", TRAITS)
def test_contract(generation: str, check: Check, directory: Path) -> None:
    with simulated(check.__name__) as loop:

        async def work() -> None:
            world = World(loop, directory / "node", make_binaries(directory / "bin"), Disk(), v2=True)
            node, life = world.node, Life(1)
            node.kernel.make_cgroup(daemon_cgroup(life))
            (node.top / "rootfs").mkdir()
            rig = Rig(
                traits=TRAITS[generation],
                config=runtime_config(node),
                handler=handlers(node)[generation],
                processes=SimProcesses(node, life),
                mounts=SimMounts(node),
                cgroups=SimCgroups(node),
                sockets=SimSockets(world.shims),
                connect=lambda bootstrap, _, supervisor, budget: world.shims.connect(life, bootstrap, supervisor, budget),
                spec=spec,
                rootfs=mount_of(node.top / "rootfs"),
            )
            assert rig.config.shim_cgroup == SHIM_CGROUP
            try:
                await check(rig)
                await rig.end()
                assert node.violations == []
            finally:
                await world.end()

        loop.run_until_complete(work())

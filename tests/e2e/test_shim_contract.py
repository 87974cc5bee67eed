"""Real shims do what the simulated ones do: see `tests.shim_contract`. So does the failpoint shim, as long as it is told nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config.handlers import RuntimeHandler
from agent.linux.cgroups import Cgroups
from agent.linux.mounts import Mounts
from agent.linux.processes import Processes
from agent.runtime.v2 import transport
from agent.runtime.v2.config import RuntimeConfig
from agent.runtime.v2.sockets import Sockets
from tests.e2e.failshim.install import FailShim
from tests.e2e.node import CGROUP_PARENT
from tests.e2e.tasks import STATE, furnished, spec
from tests.e2e.toolbox import Pair
from tests.shim_contract import CHECKS, TRAITS, Check, Rig, mount_of

pytestmark = pytest.mark.e2e


@pytest.fixture
def home(tmp_path: Path, node_is_clean: None) -> Iterator[Path]:
    with furnished(tmp_path / "root") as root:
        yield root


every_check = pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])


@every_check
async def test_contract(pair: Pair, home: Path, check: Check) -> None:
    await hold(pair, pair.shim_path, home, check)


@every_check
@pytest.mark.parametrize("pair", [Pair("1.6", "runc"), Pair("2.1", "crun")], indirect=True, ids=str)
async def test_contract_of_the_failpoint_shim(pair: Pair, home: Path, check: Check) -> None:
    await hold(pair, FailShim(home / "failshim", pair).path, home, check)


async def hold(pair: Pair, shim: Path, home: Path, check: Check) -> None:
    config = RuntimeConfig(
        state_dir=STATE,
        root_dir=home / "lib",
        address=str(STATE / "orlop.sock"),
        ttrpc_address=str(STATE / "events.sock"),
        publish_binary=sys.executable,
        shim_cgroup=f"{CGROUP_PARENT}/shims",
    )
    processes = Processes()
    rig = Rig(
        traits=TRAITS[pair.shim],
        config=config,
        handler=RuntimeHandler("runc", path=str(shim), engine=str(pair.engine_path)),
        processes=processes,
        mounts=Mounts(),
        cgroups=Cgroups(),
        sockets=Sockets(),
        connect=transport.connect,
        spec=lambda name: spec(name, ["sleep", "1000"]),
        rootfs=mount_of(home / "rootfs"),
    )
    try:
        await check(rig)
    finally:
        await rig.end()
        await processes.stop()

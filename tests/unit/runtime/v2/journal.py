"""What the journal of a `World` says where all goes well, and how things go wrong: shared by the tests of teardown."""

from __future__ import annotations

import asyncio
import shutil

from tests.unit.runtime.v2.world import LEAF, Container, World

SHIM_IS_DEAD = ["shim has ended", f"cgroup kill {LEAF}"]
SHIM_IS_GONE = ["socket", f"cgroup remove {LEAF}"]


def freed(name: str) -> list[str]:
    """The rows behind `verify`, where all goes well."""
    return [f"unmount {name}", f"engine state {name}", f"cgroup remove /pods/{name}", f"bundle {name}", f"work dir {name}"]


def deleted(name: str) -> list[str]:
    """The rows of one container, by `shim delete`."""
    return [f"shim delete {name}", f"look {name}", *freed(name)]


def told(name: str, status: int = 255) -> list[str]:
    return [f"TaskExit {name} {status}", f"TaskDelete {name}"]


def bundles(world: World) -> str:
    return str(world.config.bundles.relative_to(world.config.bundles.parents[2]))


def work_dirs(world: World) -> str:
    return str(world.config.work_dirs.relative_to(world.config.work_dirs.parents[2]))


def nothing(_: World, __: Container) -> None:
    pass


def forget_state(world: World, container: Container) -> None:
    shutil.rmtree(world.engine_state(container.id))
    container.mounted = False


def fork(world: World, container: Container) -> None:
    """Something in it forks faster than it is killed."""
    container.runs = True


async def several_turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def value(metric: object) -> float:
    return metric._value.get()  # type: ignore[attr-defined,no-any-return]  # prometheus_client has no public way to read one


class Broken:
    """`Sockets.remove_stale`, that fails until it is mended."""

    def __init__(self, world: World, text: str) -> None:
        self.mended = False
        self._text = text
        self._works = world.node.sockets.remove_stale

    async def __call__(self, address: str) -> None:
        if not self.mended:
            raise OSError(self._text)
        await self._works(address)

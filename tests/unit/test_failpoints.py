"""The little language of failpoints, and what each action does. `crash` is tried in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agent import failpoints
from agent.errdefs import Internal, InvalidArgument


@pytest.fixture(autouse=True)
def off_afterwards() -> Iterator[None]:
    yield
    failpoints.configure("")


async def test_a_pause_ends_with_the_next_configuration() -> None:
    failpoints.configure("a.b=pause")
    paused = asyncio.ensure_future(failpoints.hit("a.b"))
    await asyncio.sleep(0)
    assert failpoints.passed() == ["a.b"]
    assert not paused.done()
    failpoints.configure("")
    await paused


async def test_off_nothing_happens() -> None:
    failpoints.configure("")
    await failpoints.hit("a.b")


async def test_an_error_has_the_points_name_and_text() -> None:
    failpoints.configure("a.b=error(no space);c=error")
    with pytest.raises(Internal, match=r"^failpoint a\.b: no space$"):
        await failpoints.hit("a.b")
    with pytest.raises(Internal, match=r"^failpoint c: error$"):
        await failpoints.hit("c")
    await failpoints.hit("other")


async def test_only_the_nth_time() -> None:
    failpoints.configure("a=2*error")
    await failpoints.hit("a")
    with pytest.raises(Internal):
        await failpoints.hit("a")
    await failpoints.hit("a")


async def test_every_point_that_is_not_named() -> None:
    failpoints.configure("*=error;a=2*error")
    await failpoints.hit("a")
    with pytest.raises(Internal, match="failpoint b"):
        await failpoints.hit("b")


async def test_a_delay() -> None:
    failpoints.configure("a=delay(0.01)")
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await failpoints.hit("a")
    assert loop.time() - begun >= 0.009


async def test_a_hang_ends_with_its_task() -> None:
    failpoints.configure("a=hang")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await failpoints.hit("a")


async def test_what_was_passed_is_told_while_one_is_on() -> None:
    failpoints.configure("z=error")
    await failpoints.hit("a")
    await failpoints.hit("b")
    assert failpoints.passed() == ["a", "b"]
    failpoints.configure("")
    await failpoints.hit("c")
    assert failpoints.passed() == []


async def test_a_new_configuration_replaces_the_old_one_as_a_whole() -> None:
    failpoints.configure("a=error")
    failpoints.configure(" b=error ; ")
    await failpoints.hit("a")
    with pytest.raises(Internal):
        await failpoints.hit("b")


@pytest.mark.parametrize(
    "text", ["a", "=error", "a=bang", "a=error(", "a=0*error", "a=x*error", "a=*error", "a=delay", "a=delay(soon)", "a=delay()", "a=hang x"]
)
async def test_what_is_not_in_the_language_changes_nothing(text: str) -> None:
    failpoints.configure("b=error")
    with pytest.raises(InvalidArgument, match="failpoint"):
        failpoints.configure(f"c=error;{text}")
    with pytest.raises(Internal):
        await failpoints.hit("b")
    await failpoints.hit("c")


CRASH = """
import asyncio
from agent import failpoints

try:
    asyncio.run(failpoints.hit("a"))
finally:
    print("ended in order")
"""


def test_a_crash_is_a_sigkill_from_the_environment() -> None:
    environment = {**os.environ, "ORLOP_FAILPOINTS": "a=crash"}
    done = subprocess.run([sys.executable, "-c", CRASH], env=environment, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == -signal.SIGKILL
    assert (done.stdout, done.stderr) == ("", "failpoint a: crash\n")

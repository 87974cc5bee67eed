"""Children and pidfds, with real processes; what needs root is in tests/e2e/test_linux_processes.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.aio import in_thread
from agent.errdefs import DeadlineExceeded
from agent.linux import procfs
from agent.linux.children import OUTPUT_LIMIT
from agent.linux.processes import Command, Identity, Process, Processes

ENV = {"PATH": os.environ["PATH"]}


def shell(script: str, *arguments: str, stdin: bytes = b"", budget: float = 20) -> Command:
    return Command(("sh", "-c", script, "sh", *arguments), Path("/"), ENV, stdin=stdin, budget=budget)


@pytest.fixture
async def processes() -> AsyncIterator[Processes]:
    before = set(os.listdir("/proc/self/fd"))
    processes = Processes()
    yield processes
    await processes.stop()
    assert set(os.listdir("/proc/self/fd")) == before, "descriptors are left"


def number_in(path: Path) -> int | None:
    text = path.read_text() if path.exists() else ""
    return int(text) if text.endswith("\n") else None


async def written_pid(path: Path) -> int:
    while (pid := number_in(path)) is None:
        await asyncio.sleep(0.005)
    return pid


def reaped(pid: int) -> bool:
    return not Path(f"/proc/{pid}").is_dir()


def children() -> list[int]:
    return [row.pid for row in procfs.scan(Path("/proc")) if row.ppid == os.getpid()]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as child:
        yield child
        child.kill()


@pytest.fixture
def zombie() -> Iterator[int]:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        yield child.pid


async def test_output_status_directory_and_environment(processes: Processes, tmp_path: Path) -> None:
    command = Command(("sh", "-c", 'pwd; echo "$X" >&2; exit 7'), tmp_path, {**ENV, "X": "é"})
    done = await processes.run(command)
    assert (done.returncode, done.stdout, done.stderr) == (7, f"{tmp_path}\n".encode(), "é\n".encode())


async def test_a_signal_is_a_negative_status(processes: Processes) -> None:
    assert (await processes.run(shell("kill -TERM $$"))).returncode == -signal.SIGTERM


async def test_input_larger_than_a_pipe_goes_through(processes: Processes) -> None:
    data = os.urandom(300_000)
    assert (await processes.run(shell("cat", stdin=data))).stdout == data


async def test_input_that_the_child_does_not_want_is_no_error(processes: Processes) -> None:
    assert (await processes.run(shell("exec <&-; exit 3", stdin=bytes(300_000)))).returncode == 3


async def test_without_input_stdin_is_empty(processes: Processes) -> None:
    assert (await processes.run(shell("cat; echo end"))).stdout == b"end\n"


async def test_output_is_capped_and_the_child_still_ends(processes: Processes) -> None:
    done = await processes.run(shell(f"head -c {3 * OUTPUT_LIMIT} /dev/zero; echo last >&2"))
    assert (len(done.stdout), done.stderr, done.returncode) == (OUTPUT_LIMIT, b"last\n", 0)


async def test_a_grandchild_with_the_pipes_does_not_hold_us(processes: Processes, tmp_path: Path) -> None:
    """A shim inherits the pipes of its start helper and lives for hours."""
    done = await processes.run(shell('sleep 1000 & echo $! > "$1"; echo address; exit 0', str(tmp_path / "pid")))
    assert (done.returncode, done.stdout) == (0, b"address\n")
    os.kill(await written_pid(tmp_path / "pid"), signal.SIGKILL)


async def test_a_grandchild_that_writes_for_ever_does_not_hold_us(processes: Processes, tmp_path: Path) -> None:
    done = await processes.run(shell('yes & echo $! > "$1"; exit 0', str(tmp_path / "pid")))
    os.kill(await written_pid(tmp_path / "pid"), signal.SIGKILL)
    assert done.returncode == 0


async def test_the_budget_kills_the_whole_group_and_reaps(processes: Processes, tmp_path: Path) -> None:
    script = 'sleep 1000 & echo $! > "$2"; echo $$ > "$1"; wait'
    with pytest.raises(DeadlineExceeded, match=r"^sh -c sleep 1000 .* took longer than 0\.5 s$"):
        await processes.run(shell(script, str(tmp_path / "leader"), str(tmp_path / "other"), budget=0.5))
    leader = await written_pid(tmp_path / "leader")
    assert reaped(leader)
    other = await processes.open(await written_pid(tmp_path / "other"))
    if other is not None:  # not yet ended: it does, without our doing
        await other.wait()
        other.close()


async def test_cancellation_kills_and_reaps(processes: Processes, tmp_path: Path) -> None:
    task = asyncio.create_task(processes.run(shell('echo $$ > "$1"; exec sleep 1000', str(tmp_path / "pid"))))
    pid = await written_pid(tmp_path / "pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reaped(pid)


async def test_cancellation_at_any_moment_leaves_no_child(processes: Processes, tmp_path: Path) -> None:
    for turns in range(40):
        task = asyncio.create_task(processes.run(shell("exec sleep 1000", "here")))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    while children() or processes._supervisor._tasks:
        await asyncio.sleep(0.005)


async def test_what_cannot_be_started_is_an_os_error(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await processes.run(Command(("/no/such/binary",), Path("/"), ENV))
    with pytest.raises(FileNotFoundError):
        await processes.run(Command(("sh",), tmp_path / "gone", ENV))
    (tmp_path / "text").write_text("x")
    with pytest.raises(PermissionError):
        await processes.run(Command((str(tmp_path / "text"),), Path("/"), ENV))


async def test_a_cgroup_that_no_hierarchy_has_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/cgroup.procs").touch()
    processes = Processes(cgroup_root=tmp_path)
    marker = tmp_path / "ran"
    with pytest.raises(FileNotFoundError, match="no hierarchy"):
        await processes.run(Command(("touch", str(marker)), Path("/"), ENV, cgroup="/pods/x"))
    assert not marker.exists()
    assert not children()


async def test_a_child_is_put_into_its_cgroup_before_it_runs(tmp_path: Path) -> None:
    cgroup = tmp_path / "memory/pods/x"
    cgroup.mkdir(parents=True)
    for directory in (cgroup, tmp_path / "memory"):
        (directory / "cgroup.procs").touch()
    script = 'cat "$1"; echo " $$"; cat'
    argv = ("sh", "-c", script, "sh", str(cgroup / "cgroup.procs"))
    processes = Processes(cgroup_root=tmp_path)
    done = await processes.run(Command(argv, Path("/"), ENV, stdin=b"input", cgroup="/pods/x"))
    listed, _, rest = done.stdout.partition(b" ")
    assert (rest.split(), done.returncode) == ([listed, b"input"], 0)
    with pytest.raises(FileNotFoundError, match="no such executable"):
        await processes.run(Command(("nothing-like-it",), Path("/"), ENV, cgroup="/pods/x"))
    await processes.stop()


async def test_a_child_has_a_session_of_its_own_and_only_the_descriptors_it_was_given(processes: Processes) -> None:
    reading, writing = os.pipe()
    try:
        script = f'echo mine >/proc/self/fd/{writing}; ls /proc/self/fd; cut -d" " -f6 /proc/self/stat'
        command = Command(("sh", "-c", script), Path("/"), ENV, pass_fds=(writing,))
        *descriptors, session = (await processes.run(command)).stdout.split()
        assert os.read(reading, 10) == b"mine\n"
        assert {int(descriptor) for descriptor in descriptors} <= {0, 1, 2, 3, writing}
        assert int(session) != os.getsid(0)
    finally:
        os.close(reading)
        os.close(writing)


async def test_a_started_child_is_held_waited_for_and_reaped(processes: Processes, tmp_path: Path) -> None:
    with await processes.start(shell('echo $$ > "$1"; cat; exec sleep 1000', str(tmp_path / "pid"))) as process:
        assert process.alive()
        assert process.pid == await written_pid(tmp_path / "pid")
        waiters = [asyncio.create_task(process.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        process.kill(signal.SIGKILL)
        await asyncio.gather(*waiters)
        assert not process.alive()
        process.kill(signal.SIGKILL)  # gone: nothing happens
    while processes._supervisor._tasks:
        await asyncio.sleep(0.005)
    assert reaped(process.pid)


async def test_children_are_buried_off_the_loop(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the kernel up to 20 ms when threads of the child have been in other network namespaces, as a CNI plugin's have."""
    real, threads = os.waitid, []

    def waitid(*arguments: int) -> os.waitid_result | None:
        threads.append(threading.current_thread())
        return real(*arguments)

    monkeypatch.setattr(os, "waitid", waitid)
    await processes.run(shell("true"))
    with contextlib.suppress(DeadlineExceeded):
        await processes.run(shell("exec sleep 1000", budget=0.05))
    (await processes.start(shell("true"))).close()
    while processes._supervisor._tasks:
        await asyncio.sleep(0.005)
    assert len(threads) == 4, "of the first one also the status, before"
    assert threading.current_thread() not in threads


async def test_nobody_waits_for_a_burial(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    real, may_end = os.waitid, threading.Event()

    def waitid(kind: int, number: int, options: int) -> os.waitid_result | None:
        assert options & os.WNOWAIT or may_end.wait(20)
        return real(kind, number, options)

    monkeypatch.setattr(os, "waitid", waitid)
    assert (await processes.run(shell("exit 3"))).returncode == 3
    assert children()
    may_end.set()
    await processes.stop()
    assert not children()


async def test_stop_waits_for_a_burial_under_way(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    real, begun, go_on = os.waitid, threading.Event(), threading.Event()

    def waitid(*arguments: int) -> os.waitid_result | None:
        begun.set()
        assert go_on.wait(20)
        return real(*arguments)

    monkeypatch.setattr(os, "waitid", waitid)
    with await processes.start(shell("true")) as process:
        await in_thread(begun.wait, 20)
        stopping = asyncio.create_task(processes.stop())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not stopping.done()
        go_on.set()
        await stopping
        assert reaped(process.pid)


async def test_a_started_child_outlives_stop(processes: Processes) -> None:
    with await processes.start(shell("exec sleep 1000")) as process:
        await processes.stop()
        assert process.alive()
        process.kill(signal.SIGKILL)
        await process.wait()
        await in_thread(os.waitid, os.P_PID, process.pid, os.WEXITED)


async def test_open_takes_only_the_very_process(processes: Processes, sleeper: subprocess.Popen[bytes]) -> None:
    process = await processes.open(sleeper.pid)
    assert process is not None
    start_time = process.identity.start_time
    assert process.identity == Identity(sleeper.pid, start_time)
    with process:
        again = await processes.open(sleeper.pid, start_time)
        assert again is not None
        again.close()
        assert await processes.open(sleeper.pid, start_time + 1) is None, "another process with that number"
        sleeper.kill()
        await process.wait()
        assert await processes.open(sleeper.pid, start_time) is None, "a zombie"
        sleeper.wait()
        assert await processes.open(sleeper.pid, start_time) is None, "gone"
    with pytest.raises(ValueError, match="was closed"):
        process.alive()


async def test_a_number_that_is_reused_while_we_look_is_not_taken(tmp_path: Path, zombie: int) -> None:
    """The pidfd is of a process that ended; what /proc says by then is about another one."""
    (tmp_path / str(zombie)).mkdir()
    (tmp_path / str(zombie) / "stat").write_text(f"{zombie} (other) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 55 0\n")
    assert await Processes(proc=tmp_path).open(zombie, 55) is None


async def test_closing_while_somebody_waits_does_not_wake_him_wrongly(processes: Processes) -> None:
    process = await processes.start(shell("exec sleep 1000"))
    own: Process | None = await processes.open(process.pid)
    assert own is not None
    waiter = asyncio.create_task(own.wait())
    await asyncio.sleep(0)
    own.close()
    assert not (await asyncio.wait([waiter], timeout=0.02))[0]
    process.kill(signal.SIGKILL)
    await waiter
    process.close()


async def test_the_table_has_us_and_a_thread_is_no_process(processes: Processes) -> None:
    rows = {row.pid: row for row in await processes.table()}
    assert rows[os.getpid()].ppid == os.getppid()
    assert rows[os.getpid()].cmdline
    assert await processes.open(2**22 + 1) is None

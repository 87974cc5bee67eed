"""Children of a daemon that died are dead before the next one goes on; on a tree that looks like a cgroup file system."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import pytest

from agent.daemon import incarnation
from agent.daemon.incarnation import Incarnation
from agent.errdefs import DeadlineExceeded, FailedPrecondition
from agent.linux.processes import Processes


class Kernel:
    """Cgroups as directories with a cgroup.procs; a process that is killed leaves its cgroup, unless it is stuck."""

    def __init__(self, root: Path) -> None:
        self.root = root / "cgroup"
        self.proc = root / "proc"
        self.state = root / "state"
        self.killed: list[int] = []
        self.stuck: set[int] = set()
        self.gone: set[int] = set()
        self.leaves_meanwhile: dict[int, Path] = {}
        self.root.mkdir()
        self.state.mkdir()

    def place(self, membership: str, *, v2: bool = False) -> None:
        """What /proc/self/cgroup says."""
        (self.proc / "self").mkdir(parents=True, exist_ok=True)
        (self.proc / "self/cgroup").write_text(membership)
        if v2:
            (self.root / "cgroup.controllers").write_text("memory\n")

    def cgroup(self, path: str, *pids: int) -> Path:
        directory = self.root / path
        directory.mkdir(parents=True)
        if pids:
            (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        return directory

    def leave(self, pid: int) -> None:
        for procs in self.root.rglob("cgroup.procs"):
            left = [line for line in procs.read_text().split() if line != str(pid)]
            # A directory with a file can't be removed: with the last process the file goes.
            if left:
                procs.write_text("\n".join(left))
            else:
                procs.unlink()

    async def open(self, pid: int) -> Process | None:
        if pid in self.gone:
            self.leave(pid)
            return None
        if pid in self.leaves_meanwhile:
            self.leave(pid)
            (self.leaves_meanwhile.pop(pid) / "cgroup.procs").write_text(f"{pid}\n")
        return Process(self, pid)


class Process:
    def __init__(self, kernel: Kernel, pid: int) -> None:
        self.kernel, self.pid = kernel, pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def kill(self, number: int) -> None:
        assert number == signal.SIGKILL
        self.kernel.killed.append(self.pid)
        if self.pid not in self.kernel.stuck:
            self.kernel.leave(self.pid)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def begun(kernel: Kernel) -> Incarnation:
    return Incarnation(cast(Processes, kernel), kernel.state, kernel.root, kernel.proc)


def prefix(state_dir: Path) -> str:
    return Incarnation(cast(Processes, None), state_dir)._prefix


V1 = "4:memory:/elsewhere\n2:pids:/pids/here\n1:name=systemd:/system.slice/orlop.service\n"


@pytest.mark.parametrize(
    ("membership", "v2", "parent"),
    [
        pytest.param(V1, False, "systemd/system.slice/orlop.service", id="v1 with systemd's hierarchy"),
        pytest.param("2:pids:/here\n", False, "pids/here", id="v1 with pids"),
        pytest.param(V1 + "0::/unified\n", False, "systemd/system.slice/orlop.service", id="hybrid"),
        pytest.param("0::/system.slice/orlop.service\n", True, "system.slice/orlop.service", id="v2"),
        pytest.param("0::/\n", True, "", id="at the root"),
    ],
)
async def test_the_daemon_moves_into_a_cgroup_below_where_it_was_started(kernel: Kernel, membership: str, v2: bool, parent: str) -> None:
    kernel.place(membership, v2=v2)
    (kernel.root / parent).mkdir(parents=True, exist_ok=True)
    await begun(kernel).begin()
    (own,) = (kernel.root / parent).glob("orlop-daemon-*")
    assert own.name == f"{prefix(kernel.state)}{os.getpid()}"
    assert (own / "cgroup.procs").read_text() == str(os.getpid())


async def test_restarted_from_within_the_cgroup_of_the_last_one_it_goes_beside_it(kernel: Kernel) -> None:
    kernel.place(f"0::/service/{prefix(kernel.state)}17\n", v2=True)
    kernel.cgroup("service")
    await begun(kernel).begin()
    assert [path.name for path in (kernel.root / "service").iterdir()] == [f"{prefix(kernel.state)}{os.getpid()}"]


async def test_what_earlier_ones_left_is_ended_first(kernel: Kernel) -> None:
    kernel.place("0::/service\n", v2=True)
    earlier = [kernel.cgroup(f"service/{prefix(kernel.state)}{pid}", pid + 1, pid + 2) for pid in (10, 20)]
    earlier.append(kernel.cgroup(f"service/{prefix(kernel.state)}30"))
    await begun(kernel).begin()
    assert sorted(kernel.killed) == [11, 12, 21, 22]
    assert not [path for path in earlier if path.exists()]


async def test_other_daemons_and_other_cgroups_are_left_alone(kernel: Kernel) -> None:
    kernel.place("0::/service\n", v2=True)
    others = [
        kernel.cgroup(f"service/{prefix(Path('/run/other'))}10", 11),
        kernel.cgroup("service/pod", 12),
        kernel.cgroup(f"elsewhere/{prefix(kernel.state)}1", 13),
    ]
    await begun(kernel).begin()
    assert kernel.killed == []
    assert all((path / "cgroup.procs").exists() for path in others)


async def test_started_elsewhere_it_finds_what_the_last_one_left_where_that_was(kernel: Kernel) -> None:
    """By systemd, say, after a try on the command line: beside its own cgroup there is nothing then."""
    kernel.place("0::/user.slice/session-1.scope\n", v2=True)
    session = kernel.cgroup("user.slice/session-1.scope")
    await begun(kernel).begin()
    (last,) = session.iterdir()
    (last / "cgroup.procs").write_text("11\n12\n")  # the daemon was killed, and its children were not
    kernel.place("0::/system.slice/orlop.service\n", v2=True)
    service = kernel.cgroup("system.slice/orlop.service")
    await begun(kernel).begin()
    assert sorted(kernel.killed) == [11, 12]
    assert list(session.iterdir()) == []
    assert [path.name for path in service.iterdir()] == [last.name]


@pytest.mark.parametrize("kept", [b"", b"\xff", b"relative/orlop-daemon-0-1", b"/elsewhere/orlop-daemon-0-1", "{root}/service/../other/x"])
async def test_what_is_kept_of_the_last_one_leads_only_to_cgroups_of_this_daemon(kernel: Kernel, kept: bytes | str) -> None:
    kernel.place("0::/service\n", v2=True)
    kernel.cgroup("service")
    other = kernel.cgroup(f"other/{prefix(kernel.state)}10", 11)
    (kernel.state / "daemon-cgroup").write_bytes(kept if isinstance(kept, bytes) else kept.format(root=kernel.root).encode())
    await begun(kernel).begin()
    assert kernel.killed == []
    assert other.exists()
    assert (kernel.state / "daemon-cgroup").read_text() == str(kernel.root / f"service/{prefix(kernel.state)}{os.getpid()}")


async def test_a_process_that_went_is_not_killed_by_its_number(kernel: Kernel) -> None:
    kernel.place("0::/service\n", v2=True)
    earlier = kernel.cgroup(f"service/{prefix(kernel.state)}10", 11)
    kernel.gone.add(11)
    await begun(kernel).begin()
    assert kernel.killed == []
    assert not earlier.exists()


async def test_a_number_that_belongs_to_another_process_by_now_is_not_killed(kernel: Kernel) -> None:
    kernel.place("0::/service\n", v2=True)
    kernel.cgroup(f"service/{prefix(kernel.state)}10", 11)
    kernel.leaves_meanwhile[11] = kernel.cgroup("strangers")
    await begun(kernel).begin()
    assert kernel.killed == []
    assert (kernel.root / "strangers/cgroup.procs").read_text() == "11\n"


async def test_a_child_that_does_not_die_keeps_the_daemon_from_going_on(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incarnation, "_BUDGET", 0.05)
    kernel.place("0::/service\n", v2=True)
    earlier = kernel.cgroup(f"service/{prefix(kernel.state)}10", 11)
    kernel.stuck.add(11)
    with pytest.raises(DeadlineExceeded, match=f"earlier daemon in {earlier}"):
        await begun(kernel).begin()
    assert not (kernel.root / f"service/{prefix(kernel.state)}{os.getpid()}").exists()


@pytest.mark.parametrize(("membership", "v2"), [("4:memory:/x\n", False), ("0::/x\n", False), (V1, True)])
async def test_a_node_without_a_hierarchy_for_it(kernel: Kernel, membership: str, v2: bool) -> None:
    kernel.place(membership, v2=v2)
    with pytest.raises(FailedPrecondition, match=str(kernel.root)):
        await begun(kernel).begin()


async def test_it_ends_where_it_was_started(kernel: Kernel) -> None:
    kernel.place("0::/service\n", v2=True)
    service = kernel.cgroup("service")
    daemon = begun(kernel)
    await daemon.end()  # before it began: nothing
    await daemon.begin()
    await daemon.end()
    assert (service / "cgroup.procs").read_text() == str(os.getpid())


def test_two_state_directories_do_not_meet() -> None:
    assert prefix(Path("/run/orlop")) != prefix(Path("/run/orlop2"))

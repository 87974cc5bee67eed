"""Which processes are a runtime's, what they weigh and use: over /proc and cgroup trees that are directories."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.bench import stack
from agent.bench.stack import Stack
from agent.errdefs import FailedPrecondition, NotFound

ME = os.getpid()


class Tree:
    """A /proc and a /sys/fs/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.cgroups = folder / "cgroup"
        self.cgroups.mkdir()

    def process(
        self, pid: int, name: str, cgroup: str, *, ppid: int = 1, pss: int = 0, ticks: tuple[int, int] = (0, 0), argv: str = ""
    ) -> None:
        home = self.proc / str(pid)
        home.mkdir(parents=True)
        fields = ["S", str(ppid), *["0"] * 9, *map(str, ticks), *["0"] * 6, "7"]
        (home / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")
        (home / "cmdline").write_text("\0".join([name, *argv.split()]) + "\0")
        (home / "cgroup").write_text(f"3:cpu,cpuacct:{cgroup}\n1:name=systemd:/elsewhere\n0::/elsewhere\n")
        self.mapping(pid, "00:00 0", pss=pss)

    def mapping(self, pid: int, file: str, *, rss: int = 99999, pss: int = 88888, anonymous: int = 0) -> None:
        """Of a file, by device and inode; sizes in KiB."""
        with (self.proc / str(pid) / "smaps").open("a") as smaps:
            smaps.write(f"7f0000-7fffff r--p 00000000 {file}      /some file\nSize:  1 kB\nRss:  {rss} kB\nPss:   {pss} kB\n")
            smaps.write(f"Pss_Dirty: 7 kB\nAnonymous:   {anonymous} kB\nVmFlags: rd mr mw me\n")

    def v1(self, path: str, nanoseconds: int) -> None:
        directory = self.cgroups / "cpu,cpuacct" / path
        directory.mkdir(parents=True)
        (self.cgroups / "cpu,cpuacct/cgroup.procs").touch()
        (directory / "cpuacct.usage").write_text(f"{nanoseconds}\n")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A socket that this very process listens on."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(100)
        yield str(tmp_path / "s")


def at(tree: Tree, path: str, *cgroups: str, pods: str = "") -> Stack:
    return Stack(path, cgroups, pods=pods, root=tree.cgroups, proc=tree.proc)


def test_who_listens(path: str) -> None:
    assert stack.listener(path) == ME


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nobody serves"):
        stack.listener(str(tmp_path / "none"))


class TestMemory:
    async def test_daemon_helpers_and_shims_by_their_cgroup(self, tree: Tree, path: str) -> None:
        tree.v1("runtime", 0)
        tree.process(ME, "daemon", "/runtime", pss=1000)
        tree.process(100001, "copier", "/runtime/helpers", pss=200)
        tree.process(100002, "containerd-shim", "/runtime/shims/a", pss=30)
        tree.process(100003, "sleep", "/pods/a", pss=4)
        tree.process(100004, "neighbour", "/runtime2", pss=5)
        memory = await at(tree, path, "/runtime").memory()
        assert memory == stack.Memory(daemon=1200 << 10, shims=30 << 10)

    async def test_by_descent_where_the_cgroup_is_anybodys(self, tree: Tree, path: str) -> None:
        tree.process(ME, "daemon", "/", pss=1000)
        tree.process(100001, "copier", "/", ppid=ME, pss=200)
        tree.process(100002, "containerd-shim", "/", pss=30, argv=f"-address {path} -id x")
        tree.process(100003, "containerd-shim", "/", pss=7, argv="-address /another -id y")
        tree.process(100004, "containerd-shim", "/", ppid=ME, pss=60)
        tree.process(100005, "sleep", "/pods/a", ppid=100004, pss=4)
        assert await at(tree, path).memory() == stack.Memory(daemon=1200 << 10, shims=90 << 10)

    async def test_files_count_once_and_whoever_else_has_them(self, tree: Tree, path: str) -> None:
        tree.process(ME, "daemon", "/", pss=100)
        tree.process(100001, "copier", "/", ppid=ME, pss=10)
        tree.process(100002, "containerd-shim", "/", ppid=ME, pss=1)
        tree.mapping(ME, "fe:00 1234", rss=3000, pss=20)
        tree.mapping(ME, "fe:00 1234", rss=500, pss=20, anonymous=200)
        tree.mapping(100001, "fe:00 1234", rss=2000, pss=20)
        tree.mapping(100001, "fe:00 99", rss=40, pss=20)
        tree.mapping(100002, "fe:00 1234", rss=7, pss=1)
        assert await at(tree, path).memory() == stack.Memory(daemon=(110 + 200 + 3300 + 40) << 10, shims=8 << 10)

    async def test_a_process_that_ends_meanwhile_weighs_nothing(self, tree: Tree, path: str) -> None:
        tree.process(ME, "daemon", "/", pss=1000)
        tree.process(100001, "copier", "/", ppid=ME)
        (tree.proc / "100001/smaps").unlink()
        assert (await at(tree, path).memory()).daemon == 1000 << 10


class TestCpu:
    async def test_of_all_that_was_ever_in_the_cgroups_and_in_the_pods(self, tree: Tree, path: str) -> None:
        tree.v1("daemon", 1_000_000_000)
        tree.v1("shims", 500_000_000)
        tree.v1("pods", 250_000_000)
        assert await at(tree, path, "/daemon", "/shims", pods="/pods").cpu() == 1.75

    async def test_v2_and_a_slice(self, tree: Tree, path: str) -> None:
        (tree.cgroups / "cgroup.controllers").touch()
        for name, used in (("daemon", 2_000_000), ("a.slice/a-b.slice", 100_000)):
            (tree.cgroups / name).mkdir(parents=True)
            (tree.cgroups / name / "cpu.stat").write_text(f"usage_usec {used}\nuser_usec 1\n")
        assert await at(tree, path, "/daemon", pods="a-b.slice").cpu() == pytest.approx(2.1)
        assert await at(tree, path, "/daemon", pods="no-such.slice").cpu() == 2.0

    async def test_the_daemons_own(self, tree: Tree, path: str) -> None:
        tree.process(ME, "daemon", "/", ticks=(120, 30))
        assert await at(tree, path).daemon_cpu() == 150 / os.sysconf("SC_CLK_TCK")

    async def test_no_such_cgroup(self, tree: Tree, path: str) -> None:
        tree.v1("daemon", 1)
        with pytest.raises(FailedPrecondition, match=r"no cgroup .*/typo"):
            await at(tree, path, "/typo").cpu()

    async def test_a_cgroup_that_others_are_in_is_not_the_daemons(self, tree: Tree, path: str) -> None:
        tree.v1("session", 1)
        tree.process(ME, "daemon and bench", "/session")
        with pytest.raises(FailedPrecondition, match=f"/session, which others are in.*--cgroup {path}=PATH"):
            await at(tree, path).cpu()


class TestCheck:
    async def test_the_shim_has_to_be_where_we_look(self, tree: Tree, path: str) -> None:
        tree.v1("daemon", 1)
        tree.v1("shims", 1)
        tree.process(100002, "containerd-shim", "/shims/pod-1", argv="-id pod-1")
        await at(tree, path, "/daemon", "/shims").check("pod-1")
        await at(tree, path, "/daemon").check("pod-2")
        with pytest.raises(FailedPrecondition, match=r"in cgroup /shims/pod-1, outside of /daemon: .*--cgroup"):
            await at(tree, path, "/daemon").check("pod-1")

"""A node that is not as one would wish: what vanishes while it is looked at, very many mounts, names that are meant to confuse."""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path

import pytest

import agent
from agent.cli.output import printable
from agent.leaks.finding import Thing
from agent.leaks.targets import MountTarget
from agent.linux import files
from agent.store.kinds import Kind
from agent.store.ledger import State
from tests.unit.leaks.fakes import CONTAINER, NOW, SANDBOX, STRANGER, FakeNode

ODD = "root\nfs \\ \t#\u202e\x1b[2J"
"""Every character that the kernel escapes in its table, and some that terminals obey."""


def busy(node: FakeNode) -> None:
    """Processes of ours, leaked and not, and of others."""
    fifo = node.places.engine_state / STRANGER / "exec.fifo"
    node.owns(Kind.SHIM, SANDBOX)
    node.shim(7, SANDBOX)
    node.shim(8, STRANGER)
    node.process(9, "runc", "init", comm="runc:[2:INIT]", links=[fifo], ppid=8)
    node.process(10, "app", mnt=2, upper=node.places.snapshots / STRANGER / "fs", cgroup=f"/pods/{STRANGER}")
    node.process(11, "app", mnt=3, net=4)


@pytest.mark.parametrize("pid", [7, 8, 9, 10, 11])
async def test_a_process_that_vanishes_at_any_moment_of_the_look(node: FakeNode, monkeypatch: pytest.MonkeyPatch, pid: int) -> None:
    """Its files are read one after the other; between any two it can end."""
    busy(node)
    (node.has(node.places.netns_dir) / "cni-1").touch()
    reads, moment = 0, 0
    really_read, really_listed = files.read, os.listdir
    mine = f"{node.places.proc}/{pid}"

    def gone(path: object) -> None:
        nonlocal reads
        if str(path).startswith(f"{mine}/"):
            reads += 1
            if reads == moment and Path(mine).exists():
                shutil.move(mine, node.top / f"ended-{moment}")

    def read(path: str) -> bytes:
        gone(path)
        return really_read(path)

    def listed(path: str = ".") -> list[str]:
        gone(path)
        return really_listed(path)

    monkeypatch.setattr(files, "read", read)
    monkeypatch.setattr(os, "listdir", listed)
    await node.audit()
    many, moment = reads, 1
    assert many >= 3
    while moment <= many:
        reads = 0
        found = await node.audit()
        assert {finding.state.value for finding in found} <= {"leaked", "missing"}, (moment, found)
        if (ended := node.top / f"ended-{moment}").exists():
            shutil.move(ended, mine)
        moment += 1


async def test_ten_thousand_mounts(node: FakeNode) -> None:
    """Of others, of pods that live, and one that is leaked in their midst."""
    node.owns(Kind.TASK, CONTAINER, State.INTENDED, container=CONTAINER)
    others = [(Path(f"/var/lib/kubelet/pods/{number}/volumes/x"), "tmpfs", "rw") for number in range(9_000)]
    ours = [(node.places.bundles / CONTAINER / f"rootfs/{number}", "overlay", "rw") for number in range(999)]
    left = (node.places.bundles / STRANGER / "rootfs", "overlay", "rw")
    node.mounts(*others, left, *ours)
    finding = await node.only()
    assert (finding.kind, finding.what) == (Thing.MOUNT, str(left[0]))
    assert finding.targets == (MountTarget(left[0], 20 + len(others)),)


async def test_a_mount_with_a_name_that_confuses(node: FakeNode) -> None:
    """It is the one that is acted upon, and can't break a line of a table or a terminal."""
    place = node.places.bundles / STRANGER / ODD
    node.mounts((Path(escaped(str(place))), "tmpfs", "rw"))
    finding = await node.only()
    assert (finding.kind, finding.what) == (Thing.MOUNT, str(place))
    assert finding.targets == (MountTarget(place, 20),)
    assert printable(finding.what).isprintable()


def escaped(path: str) -> str:
    """As the kernel does (proc(5))."""
    return "".join(f"\\{ord(character):03o}" if character in " \t\n\\#" else character for character in path)


async def test_a_line_that_is_none_hides_no_other(node: FakeNode) -> None:
    place = node.places.bundles / STRANGER / "rootfs"
    node.mounts((place, "tmpfs", "rw"))
    table = node.places.proc / "self/mountinfo"
    table.write_bytes(b"\xff\xfe 1 2\n- - -\n20 1 0:5 /\n" + table.read_bytes() + b"20 1 0:5 / /x rw")
    assert (await node.only()).what == str(place)


@pytest.mark.parametrize("name", ["cri-containerd-{}.scope", "crio-{}.scope", "docker-{}.scope", "{}"])
async def test_a_cgroup_of_another_runtime_is_that_runtimes(node: FakeNode, name: str) -> None:
    """Wherever it is: among ours, in one of the kubelet's, in the root."""
    node.containerd(STRANGER)
    node.owns(Kind.TASK, CONTAINER, State.INTENDED, container=CONTAINER, cgroup=f"/kubepods/pod1/{CONTAINER}")
    for parent in ("", "/kubepods/pod1", "/orlop-pods", "/kubepods/besteffort"):
        node.cgroup(f"{parent}/{name.format(STRANGER)}")
        os.utime(f"{node.places.cgroup_root}{parent}/{name.format(STRANGER)}", (NOW - 1000,) * 2)
    node.cgroup(f"/kubepods/pod1/{CONTAINER}")
    assert await node.found() == []
    node.containerd()
    leaked = await node.audit()
    assert {finding.what.rpartition("/")[0] for finding in leaked} == {"/kubepods/pod1", "/kubepods/besteffort"}
    assert "orlop" not in {finding.owner for finding in leaked}


def test_nothing_is_signalled_by_its_number() -> None:
    """But by pidfd; a number may be another process' by then. Not so our own, and those of children that are not awaited yet."""
    allowed = {("failpoints.py", "os.kill"), ("linux/children.py", "os.killpg")}
    top = Path(agent.__path__[0])
    found = {
        (str(path.relative_to(top)), ast.unparse(node.func))
        for path in top.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.kill", "os.killpg", "signal.pthread_kill", "os.system")
    }
    assert found == allowed

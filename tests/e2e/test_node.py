"""The leak check sees what it is there to see, and nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.node import CGROUP_PARENT, CGROUPS, NodeSnapshot

pytestmark = pytest.mark.e2e


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def leak_process(undo: ExitStack, _: Path) -> str:
    process = subprocess.Popen(["sleep", "1000"])
    undo.callback(process.wait)
    undo.callback(process.kill)
    return f"process {process.pid} sleep "


def leak_mount(undo: ExitStack, tree: Path) -> str:
    run("mount", "-t", "tmpfs", "leak", tree)
    undo.callback(run, "umount", tree)
    return f"mount {tree} (tmpfs"


def leak_network_namespace(undo: ExitStack, _: Path) -> str:
    pin = Path("/run/netns/leak")
    pin.parent.mkdir(exist_ok=True)
    pin.touch()
    undo.callback(pin.unlink)
    run("unshare", f"--net={pin}", "true")
    undo.callback(run, "umount", pin)
    return f"mount {pin} (nsfs"


def leak_stale_pin(undo: ExitStack, _: Path) -> str:
    pin = Path("/run/netns/stale")
    pin.parent.mkdir(exist_ok=True)
    pin.touch()
    undo.callback(pin.unlink)
    return f"file {pin}"


def leak_link(undo: ExitStack, _: Path) -> str:
    run("ip", "link", "add", "leak0", "type", "veth", "peer", "name", "leak1")
    undo.callback(run, "ip", "link", "delete", "leak0")
    return "link leak1 "


def leak_nat_chain(undo: ExitStack, _: Path) -> str:
    chain = "CNI-0123456789abcdef01234567"
    run("iptables", "-w", "-t", "nat", "-N", chain)
    undo.callback(run, "iptables", "-w", "-t", "nat", "-X", chain)
    return f"nat chain {chain} "


def leak_cgroup(undo: ExitStack, _: Path) -> str:
    parent = CGROUP_PARENT.lstrip("/")
    folder = next(parents for pattern in (parent, f"*/{parent}") for parents in CGROUPS.glob(pattern)) / "leak"
    folder.mkdir()
    undo.callback(folder.rmdir)
    return f"cgroup {folder}"


def leak_fifo(undo: ExitStack, tree: Path) -> str:
    os.mkfifo(tree / "stdout")
    undo.callback((tree / "stdout").unlink)
    return f"FIFO {tree}/stdout"


def leak_socket(undo: ExitStack, _: Path) -> str:
    path = Path("/run/containerd/s/0123456789abcdef")
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = undo.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))
    undo.callback(path.unlink)
    return f"socket {path}"


def leak_lease(undo: ExitStack, _: Path) -> str:
    lease = Path("/var/lib/cni/networks/e2e/10.1.2.3")
    lease.parent.mkdir(parents=True, exist_ok=True)
    lease.touch()
    undo.callback(lease.unlink)
    return f"file {lease}"


@pytest.mark.parametrize(
    "leak",
    [
        leak_process,
        leak_mount,
        leak_network_namespace,
        leak_stale_pin,
        leak_link,
        leak_nat_chain,
        leak_cgroup,
        leak_fifo,
        leak_socket,
        leak_lease,
    ],
)
def test_a_leak_is_named_and_forgotten_when_it_is_gone(leak: object, undo: ExitStack, tmp_path: Path) -> None:
    assert callable(leak)
    before = NodeSnapshot.take(tmp_path)
    phrase = leak(undo, tmp_path)
    found = before.left(within=0)
    assert any(thing.startswith(phrase) for thing in found), found
    undo.close()
    assert before.left() == []


def test_furniture_is_no_leak(undo: ExitStack, tmp_path: Path) -> None:
    before = NodeSnapshot.take(tmp_path)
    for path in ("/run/xtables.lock", "/var/lib/cni/networks/e2e2/lock", "/var/lib/cni/networks/e2e2/last_reserved_ip.0"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    run("ip", "link", "add", "kept0", "type", "bridge")
    undo.callback(run, "ip", "link", "delete", "kept0")
    assert before.diff() == []

"""What must never be set on the node, refused before a namespace is made; the rest is in tests/e2e/test_linux_namespaces.py."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errdefs import InvalidArgument
from agent.linux import libc, netlink
from agent.linux.namespaces import Namespaces, _sysctl_path
from agent.linux.throwaway import in_own_thread


@pytest.mark.parametrize(
    ("kinds", "hostname", "sysctls"),
    [
        pytest.param(["ipc"], "", {"net.ipv4.ip_forward": "1"}, id="net without a netns"),
        pytest.param(["net", "uts"], "", {"kernel.shmmax": "1"}, id="shm without an ipcns"),
        pytest.param(["net", "uts"], "", {"fs.mqueue.msg_max": "1"}, id="mqueue without an ipcns"),
        pytest.param(["net", "ipc", "uts"], "", {"vm.swappiness": "1"}, id="not in a namespace at all"),
        pytest.param(["net", "ipc", "uts"], "", {"kernel.hostname": "x"}, id="hostname has its own argument"),
        pytest.param(["net"], "", {"net/../vm/swappiness": "1"}, id="out of its directory"),
        pytest.param(["net"], "", {"net": "1"}, id="no name"),
        pytest.param(["net", "ipc"], "pod", {}, id="hostname without a UTS namespace"),
        pytest.param(["net", "pid"], "", {}, id="unknown kind"),
    ],
)
async def test_refused(tmp_path: Path, kinds: list[str], hostname: str, sysctls: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        await Namespaces().create({kind: tmp_path / kind for kind in kinds}, hostname=hostname, sysctls=sysctls)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
    ],
)
def test_either_separator(name: str, path: str) -> None:
    assert _sysctl_path(name) == path


@given(st.text("./ab", max_size=12))
def test_no_name_leads_out_of_proc_sys(name: str) -> None:
    try:
        path = _sysctl_path(name)
    except InvalidArgument:
        return
    assert os.path.normpath(f"/proc/sys/{path}") == f"/proc/sys/{path}"


async def test_no_namespace_there(tmp_path: Path) -> None:
    namespaces = Namespaces()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "none", tmp_path / "file/below"):
        assert await namespaces.inode(path) is None
    assert await namespaces.inode(Path("/proc/self/ns/net")) is None, "a link, not a pin"
    with pytest.raises(OSError, match="not a namespace") as refused:
        await namespaces.addresses(tmp_path / "file", "lo")
    assert (refused.value.errno, refused.value.filename) == (errno.ENOTTY, str(tmp_path / "file"))


async def test_own_thread_is_a_new_one_each_time_and_passes_errors_on() -> None:
    threads = [await in_own_thread(threading.current_thread) for _ in range(2)]
    assert len({*threads, threading.main_thread()}) == 3

    def fail(word: str) -> None:
        raise KeyError(word)

    with pytest.raises(KeyError, match="why"):
        await in_own_thread(fail, "why")


def test_errors_of_system_calls_have_number_and_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="umount") as failed:
        libc.umount2(tmp_path / "none", libc.UMOUNT_NOFOLLOW)
    assert (failed.value.errno, failed.value.filename) in {(errno.ENOENT, str(tmp_path / "none")), (errno.EPERM, str(tmp_path / "none"))}
    with pytest.raises(OSError, match="setns") as failed:
        libc.setns(-1, 0)
    assert failed.value.errno == errno.EBADF


def test_addresses_of_loopback_are_nobody_elses() -> None:
    assert netlink.global_addresses("lo") == []
    with pytest.raises(OSError, match="no such interface") as unknown:
        netlink.global_addresses("nothing0")
    assert (unknown.value.errno, unknown.value.filename) == (errno.ENODEV, "nothing0")


class Route:
    """A netlink socket with a prepared answer."""

    def __init__(self, *datagrams: bytes) -> None:
        self._datagrams = list(datagrams)

    def recv(self, size: int) -> bytes:
        return self._datagrams.pop(0)


def message(kind: int, payload: bytes) -> bytes:
    data = struct.pack("=IHHII", 16 + len(payload), kind, 0, 1, 0) + payload
    return data + bytes(-len(data) % 4)


@given(st.lists(st.lists(st.binary(max_size=9), max_size=3), max_size=3))
def test_a_dump_in_any_number_of_datagrams(datagrams: list[list[bytes]]) -> None:
    datagrams = [payloads for payloads in datagrams if payloads]
    answer = [b"".join(message(20, payload) for payload in payloads) for payloads in datagrams]
    route = Route(*answer, message(3, bytes(4)))
    assert list(netlink._dump(route)) == [(20, payload) for payloads in datagrams for payload in payloads]  # type: ignore[arg-type]  # a fake


def test_an_error_of_the_kernel_is_an_os_error() -> None:
    with pytest.raises(OSError, match="netlink") as failed:
        list(netlink._dump(Route(message(2, struct.pack("=i", -errno.EPERM) + bytes(16)))))  # type: ignore[arg-type]  # a fake
    assert failed.value.errno == errno.EPERM


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


V4, PEER, V6 = socket.inet_aton("10.1.2.3"), socket.inet_aton("10.1.2.4"), socket.inet_pton(socket.AF_INET6, "fd00::5")


@pytest.mark.parametrize(
    ("family", "scope", "index", "attributes", "expected"),
    [
        pytest.param(socket.AF_INET, 0, 2, attribute(1, V4) + attribute(2, V4) + attribute(3, b"eth0\0"), ["10.1.2.3"], id="v4"),
        pytest.param(socket.AF_INET, 0, 2, attribute(1, PEER) + attribute(2, V4), ["10.1.2.3"], id="ours, not the peer's"),
        pytest.param(socket.AF_INET6, 0, 2, attribute(3, b"odd") + attribute(1, V6), ["fd00::5"], id="v6"),
        pytest.param(socket.AF_INET6, 253, 2, attribute(1, V6), [], id="link-local"),
        pytest.param(socket.AF_INET, 0, 3, attribute(2, V4), [], id="another interface"),
        pytest.param(socket.AF_INET, 0, 2, b"", [], id="no address"),
    ],
)
def test_address_messages(family: int, scope: int, index: int, attributes: bytes, expected: list[str]) -> None:
    assert netlink._address(struct.pack("=BBBBI", family, 24, 0, scope, index) + attributes, 2) == expected

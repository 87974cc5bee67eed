"""Pinned namespaces of the real kernel: made without a process, whole or not at all, and never the node's own that change."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.linux import files, libc
from agent.linux.mounts import Mounts
from agent.linux.namespaces import Namespaces

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("node_is_clean")]

NODE_SYSCTLS = ("kernel/shmmni", "kernel/msgmax", "fs/mqueue/msg_max", "net/ipv4/ip_unprivileged_port_start", "kernel/hostname")


def node_sysctls() -> list[str]:
    return [Path("/proc/sys", name).read_text() for name in NODE_SYSCTLS]


def threads_elsewhere() -> list[str]:
    """Threads of ours that have left the node's namespaces and are still about."""
    kinds = ("net", "ipc", "uts")
    return [
        thread
        for thread in os.listdir("/proc/self/task")
        if any(os.readlink(f"/proc/self/task/{thread}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}") for kind in kinds)
    ]


@pytest.fixture
def receiver() -> Iterator[int]:
    """A process in a mount namespace that receives our mounts, as a network daemon's pod has it."""
    command = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", "echo; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.fixture
async def pins(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Path]]:
    """Paths for pins, in a directory that doesn't exist yet; the node's own settings are the same afterwards."""
    before = node_sysctls()
    directory = tmp_path_factory.mktemp("pins") / "made"
    pins = {kind: directory / f"{kind}-pod" for kind in ("net", "ipc", "uts")}
    yield pins
    for pin in pins.values():
        await Namespaces().release(pin)
    assert node_sysctls() == before
    assert threads_elsewhere() == []


def inside(pins: dict[str, Path], script: str) -> str:
    enter = [f"--{kind}={pin}" for kind, pin in pins.items()]
    return subprocess.run(["nsenter", *enter, "sh", "-c", script], check=True, capture_output=True, text=True).stdout


async def test_create_enter_and_release(pins: dict[str, Path]) -> None:
    namespaces = Namespaces()
    sysctls = {
        "net.ipv4.ip_unprivileged_port_start": "0", "net/ipv4/conf/default/forwarding": "1", "kernel.shmmni": "77", "kernel.msgmax": "9000",
        "kernel.sem": "32000 1024000000 500 32000", "fs.mqueue.msg_max": "20",
    }  # fmt: skip
    inodes = await namespaces.create(pins, hostname="pod-1", sysctls=sysctls)
    assert inodes == {kind: await namespaces.inode(pin) for kind, pin in pins.items()}
    assert inodes["net"] != os.stat("/proc/self/ns/net").st_ino
    assert next(iter(pins.values())).parent.stat().st_mode & 0o777 == 0o755
    assert inside(pins, "hostname; cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/shmmni fs/mqueue/msg_max").split() == [
        "pod-1", "0", "77", "20",
    ]  # fmt: skip
    assert "LOOPBACK,UP" in inside(pins, "ip link show lo")

    for _ in range(2):
        for pin in pins.values():
            await namespaces.release(pin)
            assert await namespaces.inode(pin) is None
            assert not pin.exists()


async def test_addresses_and_sysctls_of_an_interface_that_came_later(pins: dict[str, Path]) -> None:
    namespaces = Namespaces()
    await namespaces.create(pins)
    pin = pins["net"]
    assert await namespaces.addresses(pin, "lo") == []
    inside(
        pins, "ip link add eth0 type bridge && ip link set eth0 up && ip addr add fd00::5/64 dev eth0 && ip addr add 10.1.2.3/24 dev eth0"
    )
    inside(pins, "ip addr add 10.9.2.3 peer 10.9.2.4 dev eth0")
    assert await namespaces.addresses(pin, "eth0") == ["10.1.2.3", "10.9.2.3", "fd00::5"]
    with pytest.raises(OSError, match="no such interface"):
        await namespaces.addresses(pin, "eth1")
    await namespaces.write_sysctls(pin, {"net.ipv4.conf.eth0.forwarding": "1"})
    assert inside(pins, "cat /proc/sys/net/ipv4/conf/eth0/forwarding") == "1\n"
    await namespaces.write_sysctls(pins["ipc"], {"kernel.shmmni": "78"})
    assert inside(pins, "cat /proc/sys/kernel/shmmni") == "78\n"


@pytest.mark.parametrize("sysctls", [{"net.ipv4.no_such": "1"}, {"kernel.shmmni": "not a number"}])
async def test_a_failure_undoes_everything_and_names_the_file(pins: dict[str, Path], sysctls: dict[str, str]) -> None:
    with pytest.raises(OSError, match=r"'/proc/sys/(net/ipv4/no_such|kernel/shmmni)'"):
        await Namespaces().create(pins, hostname="x", sysctls={"net.ipv4.ip_forward": "1", **sysctls})
    directory = pins["net"].parent
    assert os.listdir(directory) == []
    assert await Mounts().at_or_below(directory) == []


async def test_somebody_elses_pin_is_left_alone(pins: dict[str, Path]) -> None:
    namespaces = Namespaces()
    inodes = await namespaces.create({"uts": pins["uts"]})
    with pytest.raises(FileExistsError):
        await namespaces.create(pins)
    assert await namespaces.inode(pins["uts"]) == inodes["uts"]
    assert os.listdir(pins["uts"].parent) == [pins["uts"].name]


@pytest.mark.field_fault("17")
async def test_a_pin_that_is_held_open_is_released_and_its_namespace_outlives_it(pins: dict[str, Path]) -> None:
    namespaces = Namespaces()
    inodes = await namespaces.create({"net": pins["net"]})
    descriptor = os.open(pins["net"], os.O_RDONLY | os.O_CLOEXEC)
    try:
        await namespaces.release(pins["net"])
        assert not pins["net"].exists()
        assert os.fstat(descriptor).st_ino == inodes["net"]
    finally:
        os.close(descriptor)


async def test_a_pin_mounted_twice_and_an_empty_file_are_released(pins: dict[str, Path]) -> None:
    namespaces = Namespaces()
    await namespaces.create({"net": pins["net"]})
    await Mounts().bind(Path("/proc/self/ns/net"), pins["net"])
    await namespaces.release(pins["net"])
    assert not pins["net"].exists()
    pins["net"].touch()  # we died between making the file and mounting on it
    assert await namespaces.inode(pins["net"]) is None
    await namespaces.release(pins["net"])
    assert not pins["net"].exists()


@pytest.mark.field_fault("17")
async def test_the_end_of_a_pin_reaches_a_mount_namespace_that_got_it(pins: dict[str, Path], receiver: int) -> None:
    namespaces = Namespaces()
    await namespaces.create({"net": pins["net"]})
    assert str(pins["net"]).encode() in files.read(f"/proc/{receiver}/mountinfo")
    await namespaces.release(pins["net"])
    assert str(pins["net"]).encode() not in files.read(f"/proc/{receiver}/mountinfo")


async def test_many_at_once_are_all_different(pins: dict[str, Path]) -> None:
    namespaces = Namespaces()
    directory = pins["net"].parent
    made = await asyncio.gather(
        *(namespaces.create({"net": directory / str(number)}, sysctls={"net.ipv4.ip_forward": "1"}) for number in range(20))
    )
    assert len({inodes["net"] for inodes in made}) == 20
    await asyncio.gather(*(namespaces.release(directory / str(number)) for number in range(20)))
    assert os.listdir(directory) == []


async def test_the_owning_user_namespace_can_be_told(pins: dict[str, Path]) -> None:
    await Namespaces().create({"net": pins["net"]})
    descriptor = os.open(pins["net"], os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = libc.ns_get_userns(descriptor)
        assert os.fstat(owner).st_ino == os.stat("/proc/self/ns/user").st_ino
        assert fcntl.fcntl(owner, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.close(owner)
    finally:
        os.close(descriptor)

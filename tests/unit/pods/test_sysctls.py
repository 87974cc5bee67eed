from __future__ import annotations

import pytest

from agent.errdefs import InvalidArgument
from agent.pods.sysctls import DEFAULTS, Sysctls


def test_a_pods_own_network_gets_the_defaults_and_what_was_asked_for() -> None:
    split = Sysctls.split({"net.core.somaxconn": "1024", "kernel.shmmax": "1"}, host_network=False, host_ipc=False)
    assert split.at_creation == {**DEFAULTS, "net.core.somaxconn": "1024", "kernel.shmmax": "1"}
    assert split.of_interfaces == {}


def test_keys_of_an_interface_wait_for_it() -> None:
    split = Sysctls.split({"net.ipv4.conf.eth0.forwarding": "1", "net.ipv4.conf.all.forwarding": "1"}, host_network=False, host_ipc=False)
    assert split.of_interfaces == {"net.ipv4.conf.eth0.forwarding": "1"}
    assert split.at_creation["net.ipv4.conf.all.forwarding"] == "1"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("net/ipv4/ping_group_range", "net.ipv4.ping_group_range"),
        ("net.ipv4.ping_group_range", "net.ipv4.ping_group_range"),
        ("fs/mqueue/msg_max", "fs.mqueue.msg_max"),
    ],
)
def test_slashes_separate_as_dots_do(name: str, key: str) -> None:
    assert Sysctls.split({name: "7"}, host_network=False, host_ipc=False).at_creation == {**DEFAULTS, key: "7"}


@pytest.mark.parametrize("name", ["net/ipv4/conf/eth0.5/forwarding", "net.ipv4.conf.eth0/5.forwarding"])
def test_the_other_separator_is_part_of_an_interfaces_name(name: str) -> None:
    split = Sysctls.split({name: "1"}, host_network=False, host_ipc=False)
    assert split.of_interfaces == {"net.ipv4.conf.eth0/5.forwarding": "1"}


def test_nothing_is_set_on_the_host_by_default() -> None:
    assert Sysctls.split({}, host_network=True, host_ipc=True).at_creation == {}


@pytest.mark.parametrize(
    ("key", "host_network", "host_ipc"),
    [
        ("net.core.somaxconn", True, False),
        ("kernel.shmmax", False, True),
        ("fs.mqueue.msg_max", False, True),
        ("kernel.panic", False, False),
        ("vm.swappiness", False, False),
        ("kernel.hostname", False, False),
        ("net..core", False, False),
        ("", False, False),
        ("../../etc/passwd", False, False),
        ("kernel.sem\n", False, False),
        ("net.core.\n", False, False),
        ("net/../kernel/panic", False, False),
        ("net.//.//.kernel.panic", False, False),
        ("net./.kernel.panic", False, False),
        ("net", False, False),
        ("fs.mqueue.//.x", False, False),
    ],
)
def test_what_would_change_the_host_is_refused(key: str, host_network: bool, host_ipc: bool) -> None:
    with pytest.raises(InvalidArgument, match="sysctls"):
        Sysctls.split({key: "1"}, host_network=host_network, host_ipc=host_ipc)


def test_a_value_is_one_line() -> None:
    with pytest.raises(InvalidArgument, match="not a sysctl"):
        Sysctls.split({"net.core.somaxconn": "1\n2"}, host_network=False, host_ipc=False)

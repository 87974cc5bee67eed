"""The files of a pod that its containers see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.pods import sandbox_files
from cri.api import api_pb2 as cri


def config(*, host_network: bool = False, **fields: object) -> cri.PodSandboxConfig:
    made = cri.PodSandboxConfig(**fields)  # type: ignore[arg-type]  # fields of the message, by name
    made.linux.security_context.namespace_options.network = cri.NODE if host_network else cri.POD
    return made


def test_a_pod_has_its_own_name_and_hosts(tmp_path: Path) -> None:
    sandbox_files.write(tmp_path / "a/b", config(hostname="web"))
    assert (tmp_path / "a/b/hostname").read_text() == "web\n"
    assert "localhost" in (tmp_path / "a/b/hosts").read_text()
    assert (tmp_path / "a/b/shm").is_dir()


def test_in_the_nodes_network_it_has_the_nodes(tmp_path: Path) -> None:
    sandbox_files.write(tmp_path / "a", config(host_network=True))
    assert (tmp_path / "a/hostname").read_text() == f"{os.uname().nodename}\n"
    if Path("/etc/hosts").exists():
        assert (tmp_path / "a/hosts").read_text() == Path("/etc/hosts").read_text()


def test_users_of_any_id_can_read_them(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        sandbox_files.write(tmp_path / "a", config(hostname="web"))
    finally:
        os.umask(mask)
    assert {(tmp_path / "a" / name).stat().st_mode & 0o777 for name in ("hostname", "hosts", "resolv.conf")} == {0o644}


@pytest.mark.parametrize(
    ("dns", "expected"),
    [
        (cri.DNSConfig(), ""),
        (cri.DNSConfig(servers=["10.0.0.10", "fd00::a"]), "nameserver 10.0.0.10\nnameserver fd00::a\n"),
        (
            cri.DNSConfig(servers=["10.0.0.10"], searches=["a.svc", "svc"], options=["ndots:5", "edns0"]),
            "search a.svc svc\nnameserver 10.0.0.10\noptions ndots:5 edns0\n",
        ),
    ],
)
def test_the_resolver_is_what_the_kubelet_says(dns: cri.DNSConfig, expected: str) -> None:
    assert sandbox_files.resolv_conf(config(dns_config=dns)) == expected


def test_without_a_word_the_resolver_is_the_nodes() -> None:
    node = Path("/etc/resolv.conf")
    assert sandbox_files.resolv_conf(config()) == (node.read_text() if node.exists() else "")


def test_a_directory_that_is_there_already_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FileExistsError):
        sandbox_files.write(tmp_path / "a", config())
    assert list((tmp_path / "a").iterdir()) == []


def test_removal_is_idempotent(tmp_path: Path) -> None:
    sandbox_files.write(tmp_path / "a", config())
    sandbox_files.remove(tmp_path / "a")
    sandbox_files.remove(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []

"""What shims of all generations print, and what nobody should take for an address."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.runtime.bootstrap.v1.bootstrap_pb2 import BootstrapResult
from agent.errdefs import Internal, NotFound
from agent.runtime.v2 import bootstrap
from agent.runtime.v2.bootstrap import Bootstrap

SOCKET = "unix:///run/containerd/s/0123"


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        pytest.param(SOCKET.encode(), Bootstrap(2, SOCKET, "ttrpc"), id="1.6 and 1.7"),
        pytest.param(SOCKET.encode() + b"\n", Bootstrap(2, SOCKET, "ttrpc"), id="with a newline"),
        pytest.param(b"/containerd-shim/x.sock", Bootstrap(2, "/containerd-shim/x.sock", "ttrpc"), id="abstract, 1.3"),
        pytest.param(b"vsock://3:1024", Bootstrap(2, "vsock://3:1024", "ttrpc"), id="vsock"),
        pytest.param(
            json.dumps({"version": 3, "address": SOCKET, "protocol": "ttrpc"}).encode(), Bootstrap(3, SOCKET, "ttrpc"), id="2.0 to 2.2"
        ),
        pytest.param(b' {"version":2,"address":"/x","protocol":"GRPC"}\n', Bootstrap(2, "/x", "grpc"), id="JSON, gRPC"),
        pytest.param(
            BootstrapResult(version=3, address=SOCKET, protocol="ttrpc").SerializeToString(), Bootstrap(3, SOCKET, "ttrpc"), id="2.3"
        ),
    ],
)
def test_forms(printed: bytes, expected: Bootstrap) -> None:
    assert bootstrap.parse(printed) == expected


@pytest.mark.parametrize(
    ("printed", "complaint"),
    [
        pytest.param(b"", "nothing", id="empty, which is an empty BootstrapResult as well"),
        pytest.param(b" \n", "nothing", id="blank"),
        pytest.param(b"hello", "something else", id="text"),
        pytest.param(b"\xff\xff\xff", "something else", id="bytes"),
        pytest.param(b"{", "JSON without", id="broken JSON"),
        pytest.param(b'{"version":3}', "JSON without", id="JSON without an address"),
        pytest.param(b'{"version":"3","address":"/x","protocol":"ttrpc"}', "other types", id="JSON of another type"),
        pytest.param(b'{"version":4,"address":"/x","protocol":"ttrpc"}', "version 4", id="too new"),
        pytest.param(b'{"version":1,"address":"/x","protocol":"ttrpc"}', "version 1", id="too old"),
        pytest.param(b'{"version":3,"address":"/x","protocol":"http"}', "'http'", id="another protocol"),
        pytest.param(b'{"version":3,"address":"","protocol":"ttrpc"}', "no address", id="JSON, no address"),
        pytest.param(BootstrapResult(version=4, address=SOCKET, protocol="ttrpc").SerializeToString(), "version 4", id="2.3, too new"),
        pytest.param(BootstrapResult(version=3, protocol="ttrpc").SerializeToString(), "something else", id="2.3, no address"),
        pytest.param(b"unix:///a\nwarning: deprecated", "more than an address", id="two lines"),
        pytest.param(b"/\xff", "not UTF-8", id="not UTF-8"),
    ],
)
def test_refused(printed: bytes, complaint: str) -> None:
    with pytest.raises(Internal, match=complaint):
        bootstrap.parse(printed)


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_an_address(printed: bytes) -> None:
    try:
        found = bootstrap.parse(printed)
    except Internal:
        return
    assert found.address
    assert found.version in (2, 3)
    assert found.protocol in ("ttrpc", "grpc")


@given(st.integers(2, 3), st.sampled_from(["ttrpc", "grpc"]))
def test_what_is_written_is_read(version: int, protocol: str) -> None:
    assert bootstrap.parse(Bootstrap(version, SOCKET, protocol).to_json().encode()) == Bootstrap(version, SOCKET, protocol)


def test_a_bundle_of_a_new_shim(tmp_path: Path) -> None:
    (tmp_path / "address").write_text("/old")
    bootstrap.write(tmp_path, Bootstrap(3, SOCKET, "ttrpc"))
    assert bootstrap.read(tmp_path) == Bootstrap(3, SOCKET, "ttrpc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["address", "bootstrap.json"]


def test_a_bundle_of_an_old_shim(tmp_path: Path) -> None:
    (tmp_path / "address").write_text(SOCKET)
    assert bootstrap.read(tmp_path) == Bootstrap(2, SOCKET, "ttrpc")


def test_a_bundle_that_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="doesn't say"):
        bootstrap.read(tmp_path)


HOSTILE = {
    "a link to what never ends": lambda path: path.symlink_to("/dev/zero"),
    "a link to another's secret": lambda path: path.symlink_to("/etc/shadow"),
    "a FIFO that nobody writes": os.mkfifo,
    "a directory": Path.mkdir,
    "more than there is memory": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 33),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_bundle_is_not_read(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "bootstrap.json")
    with pytest.raises(OSError, match=r"bootstrap\.json"):
        bootstrap.read(tmp_path)


@pytest.mark.parametrize(
    "text", ['{"a":' * 800, '{"version":' + "[" * 3000, '{"address":"/x","protocol":"ttrpc","version":1' + "0" * 4000 + "}"]
)
def test_a_hostile_text_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "bootstrap.json").write_text(text)
    with pytest.raises(Internal):
        bootstrap.read(tmp_path)


def test_an_address_that_no_socket_can_have() -> None:
    with pytest.raises(Internal, match="longer than a socket's 107 bytes"):
        bootstrap.parse(b"unix:///" + b"x" * 107)

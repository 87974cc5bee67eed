from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.network.result import Failure, Interface, parse_failure, parse_result
from agent.network.strictjson import excerpt
from tests.unit.network.fakes import result
from tests.unit.network.test_conf import JSON

INTERFACE = st.fixed_dictionaries({}, optional={"name": st.just("eth0") | JSON, "mac": JSON})
ADDRESS = st.fixed_dictionaries({}, optional={"address": st.just("10.0.0.1/8") | JSON, "interface": st.just(0) | JSON})
RESULT = st.fixed_dictionaries(
    {},
    optional={
        "cniVersion": st.sampled_from(["", "1.0.0", "0.4.0", "9.9.9"]) | JSON,
        "interfaces": st.lists(INTERFACE) | JSON,
        "ips": st.lists(ADDRESS) | JSON,
    },
)


@given(st.binary(max_size=100) | (RESULT | JSON).map(lambda value: json.dumps(value).encode()))
def test_whatever_is_printed_is_a_result_or_refused(data: bytes) -> None:
    try:
        parsed = parse_result(data, "1.0.0", "eth0")
    except ValueError:
        return
    assert json.dumps(parsed.raw)
    assert all(isinstance(ip, str) and "/" not in ip for ip in parsed.ips)


@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_printed_is_an_error_or_not(data: bytes) -> None:
    failure = parse_failure(data)
    assert failure is None or str(failure)


def test_addresses_of_both_families_in_the_plugins_order() -> None:
    parsed = parse_result(json.dumps(result()).encode(), "1.0.0", "eth0")
    assert parsed.ips == ("10.1.0.7", "fd00::7")
    assert parsed.interfaces[1] == Interface("eth0", "02:00:00:00:00:01", "/run/netns/cni-1")
    assert parsed.raw == result()


def test_the_older_form() -> None:
    printed = {
        "cniVersion": "0.4.0",
        "interfaces": None,
        "ips": [
            {"version": "6", "address": "fd00::8/64", "gateway": "fd00::1"},
            {"version": "4", "address": "10.1.0.8/16", "interface": None},
        ],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    assert parse_result(json.dumps(printed).encode(), "0.4.0", "eth0").ips == ("fd00::8", "10.1.0.8")


def test_addresses_of_other_interfaces_and_doubles_are_not_the_pods() -> None:
    ips = [{"address": "10.0.0.1/8", "interface": 0}, {"address": "10.0.0.2/8", "interface": 1}, {"address": "10.0.0.2/16"}]
    assert parse_result(json.dumps(result(ips=ips)).encode(), "1.0.0", "eth0").ips == ("10.0.0.2",)


@pytest.mark.parametrize("said", [{}, {"cniVersion": ""}])
def test_a_result_without_a_version_has_the_requests(said: dict[str, str]) -> None:
    assert parse_result(json.dumps(said).encode(), "0.4.0", "eth0").raw["cniVersion"] == "0.4.0"


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        (b"", "Expecting value"),
        (b"bridge: ok", "Expecting value"),
        (b"null", "not null"),
        (b'{"cniVersion": "0.2.0"}', "'0.2.0' was not asked for"),
        (b'{"cniVersion": ["1.0.0"]}', "was not asked for"),
        (b'{"ips": {}}', "ips is an object"),
        (b'{"ips": ["10.0.0.1"]}', "has no address"),
        (b'{"ips": [{"address": 5}]}', "has no address"),
        (b'{"ips": [{"address": "10.0.0.1/40"}]}', "'10.0.0.1/40' is not an address"),
        (b'{"ips": [{"address": "10.0.0.1/8", "interface": 0}]}', "on interface 0, of 0"),
        (b'{"ips": [{"address": "10.0.0.1/8", "interface": "0"}]}', "is a string, not a number"),
        (b'{"interfaces": [1]}', "an interface is a number"),
        (b'{"interfaces": [{"name": "eth0", "mac": 1}]}', "not a string"),
    ],
)
def test_garbage_is_refused_with_its_reason(printed: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_result(printed, "1.0.0", "eth0")


@pytest.mark.parametrize(
    ("printed", "failure"),
    [
        ({"code": 7, "msg": "Invalid Configuration", "details": "too small"}, Failure(7, "Invalid Configuration", "too small")),
        ({"cniVersion": "1.0.0", "msg": "no"}, Failure(0, "no")),
        ({"cniVersion": "1.0.0"}, None),
        ({"code": True, "msg": "no"}, None),
        ({"code": 1, "msg": ["no"]}, None),
    ],
)
def test_errors_of_plugins(printed: dict[str, Any], failure: Failure | None) -> None:
    assert parse_failure(json.dumps(printed).encode()) == failure


def test_an_error_reads_as_a_sentence() -> None:
    assert str(Failure(7, "Invalid Configuration", "too small")) == "Invalid Configuration; too small (code 7)"
    assert str(Failure(0, "no")) == "no"
    assert str(Failure(11, "")) == "no message (code 11)"


def test_an_excerpt_is_short_printable_and_one_line() -> None:
    assert excerpt(b"panic: x\n\tgoroutine 1\x1b[0m \xff") == "panic: x goroutine 1?[0m \ufffd"
    assert excerpt(b"a" * 10_000, 10) == "a" * 10 + " ..."
    assert excerpt(b" " * 10_000, 10) == " ..."
    assert excerpt(b"") == ""

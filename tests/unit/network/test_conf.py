from __future__ import annotations

import errno
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errdefs import InvalidArgument
from agent.network.conf import VERSIONS, at_least, parse_file, parse_list, request, select
from tests.unit.network.fakes import conflist

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)
PLUGIN = st.fixed_dictionaries(
    {"type": st.sampled_from(["bridge", "port map"]) | JSON},
    optional={"capabilities": st.dictionaries(st.sampled_from(["dns", "mac"]), st.booleans()) | JSON, "ipam": JSON, "name": JSON},
)
LIST = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["net", "a.b-c_d"]) | JSON,
        "cniVersion": st.sampled_from([*VERSIONS, "0.2.0", "1.2.0", "", "x"]) | JSON,
        "cniVersions": st.lists(st.sampled_from([*VERSIONS, "2.0.0"]), max_size=3) | JSON,
        "disableCheck": st.sampled_from([True, "TRUE", "no"]) | JSON,
        "disableGC": JSON,
        "plugins": st.lists(PLUGIN, max_size=3) | JSON,
        "type": st.just("bridge") | JSON,
    },
)
NAMES = st.sampled_from(["10-net.conflist", "10-net.conf", "10-net.json"])


def holds(name: str, data: bytes) -> None:
    """Either the file is refused by name, or it is a network that survives being stored and asked for."""
    selection = select([(name, data)], None)
    for sentence in selection.rejected:
        assert name in sentence
        assert sentence.encode()  # a log can take it
    if (network := selection.network) is None:
        assert selection.rejected
        return
    assert network.version in VERSIONS
    assert parse_list(network.data, name) == network
    for plugin in network.plugins:
        body = json.loads(request(network, plugin, {}, {"dns": {"servers": ["1.1.1.1"]}}))
        assert (body["name"], body["cniVersion"], body["type"]) == (network.name, network.version, plugin.type)


@given(NAMES, st.binary(max_size=200))
def test_any_bytes_are_a_network_or_refused(name: str, data: bytes) -> None:
    holds(name, data)


@given(NAMES, LIST | JSON, st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]), st.booleans())
def test_any_json_is_a_network_or_refused(name: str, value: object, encoding: str, escaped: bool) -> None:
    holds(name, json.dumps(value, ensure_ascii=escaped).encode(encoding, errors="surrogatepass"))


@pytest.mark.parametrize("depth", [90, 120, 5000, 200_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_deep_nesting_exhausts_no_stack(depth: int, brackets: str) -> None:
    opening = "[" if brackets == "[]" else '{"a":'
    inner = opening * depth + "1" + brackets[1] * depth
    holds("10-net.conflist", f'{{"name":"net","cniVersion":"1.0.0","plugins":[{{"type":"bridge","x":{inner}}}]}}'.encode())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b"[]", "a JSON object is wanted, not a list"),
        (b'{"name": "net", "cniVersion": "1.0.0"}', "it has no plugins"),
        (conflist(name="../etc"), "is not a network name"),
        (conflist(name=""), "is not a network name"),
        (conflist(name="n" * 129), "129 characters"),
        (conflist({"type": "../../bin/sh"}), "plugin 0 has no usable type"),
        (conflist("bridge", {"name": "x"}), "plugin 1 has no usable type: None"),
        (conflist({"type": ".."}), "no usable type"),
        (conflist({"type": "bridge", "capabilities": ["dns"]}), "not an object of booleans"),
        (conflist(version="0.2.0"), "it asks for cniVersion 0.2.0; the agent speaks 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        (conflist(version="1.2.0"), "it asks for cniVersion 1.2.0"),
        (conflist(version=""), "it has no cniVersion"),
        (conflist(version="latest"), "'latest' is not a version"),
        (conflist(disableCheck=1), "disableCheck is a number"),
        (b'{"name":"net","cniVersion":"1.0.0","plugins":[{"type":"bridge","mtu":1e999}]}', "too large a number"),
        (b'{"name":"net","cniVersion":"1.0.0","plugins":[{"type":"bridge","mtu":NaN}]}', "NaN is not JSON"),
    ],
)
def test_a_bad_file_is_named_with_its_reason(content: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_file("20-bad.conflist", content)
    assert str(raised.value).startswith("network config 20-bad.conflist is not usable: ")
    assert reason in str(raised.value)


@pytest.mark.parametrize("name", ["10-net.conf", "10-net.json"])
def test_a_single_plugin_becomes_a_list_of_one(name: str) -> None:
    network = parse_file(name, b'{"name": "net", "cniVersion": "0.4.0", "type": "ptp", "mtu": 1400}')
    assert (network.name, network.version, network.types) == ("net", "0.4.0", ("ptp",))
    assert json.loads(request(network, network.plugins[0], {}, {}))["mtu"] == 1400
    assert parse_list(network.data, name) == network


def test_a_list_in_a_conf_file_is_refused_with_advice() -> None:
    with pytest.raises(InvalidArgument, match=r"ends in \.conflist"):
        parse_file("10-net.conf", conflist())


@pytest.mark.parametrize(
    ("version", "versions", "chosen"),
    [
        ("0.3.1", [], "0.3.1"),
        ("1.0.0", ["0.4.0", "1.1.0"], "1.1.0"),
        ("1.1.0", ["0.4.0"], "1.1.0"),
        ("", ["0.4.0", "0.3.1"], "0.4.0"),
        ("1.0.0", ["1.2.0", "2.0.0"], "1.0.0"),  # newer ones are left to newer agents
        ("0.1.0", ["1.0.0"], "1.0.0"),
    ],
)
def test_the_newest_common_version_is_spoken(version: str, versions: list[str], chosen: str) -> None:
    assert parse_list(conflist(version=version, cniVersions=versions), "x").version == chosen


def test_versions_are_compared_by_age() -> None:
    assert at_least("1.0.0", "0.4.0")
    assert not at_least("0.3.1", "0.4.0")


def test_a_request_is_the_plugins_own_configuration_and_what_the_runtime_adds() -> None:
    entry: dict[str, Any] = {
        "type": "portmap",
        "name": "other",
        "capabilities": {"portMappings": True, "dns": False, "mac": True},
        "snat": True,
        "runtimeConfig": {"portMappings": "reserved"},
    }
    network = parse_list(conflist(entry), "x")
    ports = [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]
    arguments = {"portMappings": ports, "dns": {"servers": ["10.0.0.10"]}, "bandwidth": {"ingressRate": 1}}
    body = json.loads(request(network, network.plugins[0], {"prevResult": {"ips": []}}, arguments))
    assert body == {
        "type": "portmap",
        "name": "podnet",
        "cniVersion": "1.0.0",
        "snat": True,
        "prevResult": {"ips": []},
        "runtimeConfig": {"portMappings": ports},
    }


def test_without_a_declared_capability_there_is_no_runtime_config() -> None:
    network = parse_list(conflist("bridge"), "x")
    assert "runtimeConfig" not in json.loads(request(network, network.plugins[0], {}, {"dns": {"servers": ["10.0.0.10"]}}))


def test_the_first_usable_file_wins_and_the_others_are_reported() -> None:
    files: list[tuple[str, bytes | OSError]] = [
        ("05-locked.conflist", OSError(errno.EACCES, "Permission denied")),
        ("10-bad.conflist", b"{"),
        ("20-good.conflist", conflist(name="good")),
        ("30-later.conflist", conflist(name="later")),
        ("40-bad.conf", b"{}"),
    ]
    selection = select(files, None)
    assert selection.network is not None
    assert selection.network.name == "good"
    assert [sentence.split()[2] for sentence in selection.rejected] == ["05-locked.conflist", "10-bad.conflist", "40-bad.conf"]
    assert "Permission denied" in selection.rejected[0]


def test_a_broken_new_version_leaves_the_last_good_one_in_force() -> None:
    current = parse_file("10-net.conflist", conflist(name="net"))
    selection = select([("10-net.conflist", b'{"name": "n'), ("20-other.conflist", conflist(name="other"))], current)
    assert selection.network == current
    assert "its last good version stays in force" in selection.rejected[0]


def test_a_removed_file_leaves_the_next_one_in_force() -> None:
    current = parse_file("10-net.conflist", conflist(name="net"))
    selection = select([("20-other.conflist", conflist(name="other"))], current)
    assert selection.network is not None
    assert selection.network.name == "other"
    assert select([], current).network is None
    assert select([("20-other.conflist", b"{")], current).network is None

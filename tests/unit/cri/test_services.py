"""The tables of verbs: a misspelt name would answer UNIMPLEMENTED, and nobody would notice."""

from __future__ import annotations

import ast
import asyncio
import inspect
from typing import cast

import pytest
from google.protobuf.descriptor import ServiceDescriptor

from agent.pods.context import Pods
from cri.api import admin_pb2
from cri.api import api_pb2 as cri
from cri.server import services
from cri.server.edge import Verb

TABLES = {name: table for name, table in vars(services).items() if name.startswith("_") and name.endswith(("_READS", "_VERBS", "_STREAMS"))}
SERVICES: dict[str, ServiceDescriptor] = {
    "_RUNTIME": cri.DESCRIPTOR.services_by_name["RuntimeService"],
    "_IMAGE": cri.DESCRIPTOR.services_by_name["ImageService"],
    "_ADMIN": admin_pb2.DESCRIPTOR.services_by_name["Admin"],
}


@pytest.mark.parametrize("name", TABLES)
def test_every_name_is_a_method_of_the_service(name: str) -> None:
    methods = SERVICES[name.rpartition("_")[0]].methods_by_name
    assert TABLES[name]
    assert set(TABLES[name]) <= set(methods)


@pytest.mark.parametrize("name", TABLES)
def test_what_streams_and_nothing_else_is_a_stream(name: str) -> None:
    methods = SERVICES[name.rpartition("_")[0]].methods_by_name
    assert {methods[method].server_streaming for method in TABLES[name]} == {name.endswith("_STREAMS")}


def test_no_method_is_in_two_tables() -> None:
    names = [name for table in TABLES.values() for name in table]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", TABLES)
def test_every_verb_takes_the_pods_and_the_methods_own_request(name: str) -> None:
    for method, verb in TABLES[name].items():
        pods, request = inspect.signature(verb).parameters.values()
        assert pods.annotation == "Pods"
        expected = SERVICES[name.rpartition("_")[0]].methods_by_name[method].input_type.name
        assert ast.parse(str(request.annotation), mode="eval").body.attr == expected  # type: ignore[attr-defined]  # cri.Request


async def test_what_changes_something_waits_until_it_is_known_what_there_is_and_what_reads_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answered(pods: Pods, request: cri.VersionRequest) -> cri.VersionResponse:
        return cri.VersionResponse(version=request.version)

    monkeypatch.setitem(TABLES["_RUNTIME_READS"], "Version", answered)
    monkeypatch.setitem(TABLES["_RUNTIME_VERBS"], "StopPodSandbox", answered)
    known = asyncio.Event()
    runtime = cast(dict[str, Verb], services.verbs(cast(Pods, None), known)[SERVICES["_RUNTIME"]])
    assert await runtime["Version"](cri.VersionRequest(version="1")) == cri.VersionResponse(version="1")
    stopping = asyncio.ensure_future(runtime["StopPodSandbox"](cri.VersionRequest(version="2")))
    await asyncio.sleep(0)
    assert not stopping.done()
    known.set()
    assert await stopping == cri.VersionResponse(version="2")

"""The gRPC edge and the client, over a real socket, with a tiny table of verbs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from agent import errdefs, metrics
from agent.errdefs import Code, OrlopError
from cri.api import admin_pb2
from cri.api import api_pb2 as cri
from cri.client import Client
from cri.server.edge import Edge, Verb

RUNTIME = cri.DESCRIPTOR.services_by_name["RuntimeService"]
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["Admin"]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is short enough for a socket's."""
    directory = Path(tempfile.mkdtemp(prefix="edge-"))
    yield directory / "orlop.sock"
    shutil.rmtree(directory)


Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
async def serve(place: Path) -> AsyncIterator[Serve]:
    """Serves RuntimeService with the verbs that are given by name, and an empty Admin; returns a client."""
    edges, clients = [], []

    async def start(**verbs: Verb) -> Client:
        edge = Edge(place, {RUNTIME: verbs, ADMIN: {}})
        await edge.start()
        edges.append(edge)
        clients.append(Client(f"unix://{place}"))
        return clients[-1]

    yield start
    for client in clients:
        await client.__aexit__(None, None, None)
    for edge in edges:
        await edge.stop(0)


def failing(error: Exception) -> Verb:
    async def verb(request: Any) -> cri.VersionResponse:
        raise error

    return verb


def count(name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0


class TestAnswers:
    async def test_a_verb_gets_the_request_and_its_message_comes_back(self, serve: Serve) -> None:
        async def version(request: cri.VersionRequest) -> cri.VersionResponse:
            return cri.VersionResponse(version=request.version, runtime_name="ä")

        client = await serve(Version=version)
        async with client:
            assert await client.call("Version", cri.VersionRequest(version="7")) == cri.VersionResponse(version="7", runtime_name="ä")

    async def test_bytes_are_passed_on_as_they_are(self, serve: Serve) -> None:
        expected = cri.ListContainersResponse(containers=[cri.Container(id="a")])

        async def containers(request: cri.ListContainersRequest) -> bytes:
            return expected.SerializeToString()

        client = await serve(ListContainers=containers)
        assert await client.call("ListContainers", cri.ListContainersRequest()) == expected

    async def test_answers_larger_than_grpcs_default_come_through(self, serve: Serve) -> None:
        async def execute(request: cri.ExecSyncRequest) -> cri.ExecSyncResponse:
            return cri.ExecSyncResponse(stdout=bytes(15 << 20))

        client = await serve(ExecSync=execute)
        assert len((await client.call("ExecSync", cri.ExecSyncRequest())).stdout) == 15 << 20

    async def test_calls_run_side_by_side(self, serve: Serve) -> None:
        both = asyncio.Barrier(2)

        async def version(request: cri.VersionRequest) -> cri.VersionResponse:
            await both.wait()
            return cri.VersionResponse()

        client = await serve(Version=version)
        async with asyncio.timeout(10):
            await asyncio.gather(*(client.call("Version", cri.VersionRequest()) for _ in range(2)))

    async def test_calls_are_counted_and_timed(self, serve: Serve) -> None:
        async def version(request: cri.VersionRequest) -> cri.VersionResponse:
            return cri.VersionResponse()

        before = count("orlop_cri_operations_total", method="Version"), count("orlop_cri_operation_seconds_count", method="Version")
        client = await serve(Version=version)
        await client.call("Version", cri.VersionRequest())
        after = count("orlop_cri_operations_total", method="Version"), count("orlop_cri_operation_seconds_count", method="Version")
        assert after == (before[0] + 1, before[1] + 1)


class TestErrors:
    @pytest.mark.parametrize("code", sorted(set(Code) - {Code.OK, Code.OUT_OF_RANGE}))
    async def test_the_class_of_an_error_comes_through(self, serve: Serve, code: Code) -> None:
        error = errdefs.from_code(code, "container 7 can't be")
        before = count("orlop_cri_errors_total", method="Version", code=code.name)
        client = await serve(Version=failing(error))
        with pytest.raises(OrlopError, match=r"^container 7 can't be$") as failure:
            await client.call("Version", cri.VersionRequest())
        assert type(failure.value) is type(error)
        assert count("orlop_cri_errors_total", method="Version", code=code.name) == before + 1

    async def test_what_was_noted_on_its_way_comes_with_it(self, serve: Serve) -> None:
        error = errdefs.Unavailable("no network")
        error.add_note("CNI x is not released yet")
        client = await serve(Version=failing(error))
        with pytest.raises(errdefs.Unavailable, match=r"^no network; CNI x is not released yet$"):
            await client.call("Version", cri.VersionRequest())

    async def test_a_full_disk_is_nobodys_fault(self, serve: Serve) -> None:
        error = OSError(28, "No space left on device", "/run/orlop/a")
        error.add_note("CNI x is not released yet")
        client = await serve(Version=failing(error))
        with pytest.raises(errdefs.ResourceExhausted, match=r"^/run/orlop/a could not .* make room there; .*; CNI x is not released yet$"):
            await client.call("Version", cri.VersionRequest())

    @pytest.mark.parametrize(("error", "words"), [(KeyError("x"), "'x'"), (ZeroDivisionError(), "ZeroDivisionError")])
    async def test_an_error_that_should_not_be_is_internal_and_logged_with_its_trace(
        self, serve: Serve, error: Exception, words: str
    ) -> None:
        client = await serve(Version=failing(error))
        with (
            structlog.testing.capture_logs() as logged,
            pytest.raises(errdefs.Internal, match=f"^Version failed inside the agent: {words}$"),
        ):
            await client.call("Version", cri.VersionRequest())
        (entry,) = logged
        assert (entry["log_level"], entry["method"], entry["exc_info"]) == ("error", "Version", error)

    @pytest.mark.parametrize(
        "text", ["two\nlines", "ä\u2028\0", "a path \udcff that is no UTF-8", "x" * 1_000_000, "ü" * 1_000_000, "\udcff" * 100_000, ""]
    )  # fmt: skip
    async def test_any_text_comes_through(self, serve: Serve, text: str) -> None:
        client = await serve(Version=failing(errdefs.NotFound(f"{text} is gone")))
        with pytest.raises(errdefs.NotFound, match=r"is gone$") as failure:
            await client.call("Version", cri.VersionRequest())
        assert len(str(failure.value)) < 5000

    async def test_a_caller_that_gives_up_cancels_the_verb(self, serve: Serve) -> None:
        begun, cancelled = asyncio.Event(), asyncio.Event()

        async def version(request: cri.VersionRequest) -> cri.VersionResponse:
            begun.set()
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            raise AssertionError

        before = count("orlop_cri_errors_total", method="Version", code="CANCELLED")
        client = await serve(Version=version)
        call = asyncio.create_task(client.call("Version", cri.VersionRequest()))
        await begun.wait()
        call.cancel()
        async with asyncio.timeout(10):
            await cancelled.wait()
        assert count("orlop_cri_errors_total", method="Version", code="CANCELLED") == before + 1

    async def test_a_call_that_takes_too_long(self, serve: Serve) -> None:
        async def version(request: cri.VersionRequest) -> cri.VersionResponse:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        client = await serve(Version=version)
        with pytest.raises(errdefs.DeadlineExceeded):
            await client.call("Version", cri.VersionRequest(), timeout=0.05)


class TestUnimplemented:
    @pytest.mark.parametrize(
        ("method", "request_", "name"),
        [
            ("Attach", cri.AttachRequest(), "runtime.v1.RuntimeService.Attach"),
            ("GetContainerEvents", cri.GetEventsRequest(), "runtime.v1.RuntimeService.GetContainerEvents"),
            ("Ledger", admin_pb2.LedgerRequest(), "orlop.admin.v1.Admin.Ledger"),
        ],
    )
    async def test_a_method_without_a_verb_says_its_name(self, serve: Serve, method: str, request_: Any, name: str) -> None:
        client = await serve()
        with pytest.raises(errdefs.Unimplemented, match=f"^{name} is not implemented by orlop$"):
            await client.call(method, request_)

    async def test_a_service_that_is_not_served(self, serve: Serve) -> None:
        client = await serve()
        with pytest.raises(errdefs.Unimplemented):
            await client.call("ListImages", cri.ListImagesRequest())


async def raw(place: Path, method: str, payload: bytes) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(f"unix:{place}", options=[("grpc.max_send_message_length", -1)]) as channel:
        call: Any = channel.unary_unary(method)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call(payload)
        return failure.value.code()


class TestHostileInput:
    PATH = "/runtime.v1.RuntimeService/Version"

    async def version(self, request: cri.VersionRequest) -> cri.VersionResponse:
        return cri.VersionResponse(version="1")

    @pytest.mark.parametrize("payload", [b"\xff" * 10, b"\x0a\x05ab", b"\x0a\x02\xff\xfe"])
    async def test_bytes_that_are_no_request(self, serve: Serve, place: Path, payload: bytes) -> None:
        client = await serve(Version=self.version)
        assert await raw(place, self.PATH, payload) is grpc.StatusCode.INVALID_ARGUMENT
        assert (await client.call("Version", cri.VersionRequest())).version == "1"

    async def test_a_message_larger_than_the_kubelets_limit(self, serve: Serve, place: Path) -> None:
        client = await serve(Version=self.version)
        payload = cri.VersionRequest(version="x" * (17 << 20)).SerializeToString()
        assert await raw(place, self.PATH, payload) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await client.call("Version", cri.VersionRequest())).version == "1"

    async def test_a_method_that_does_not_exist(self, serve: Serve, place: Path) -> None:
        await serve(Version=self.version)
        assert await raw(place, "/runtime.v1.RuntimeService/Explode", b"") is grpc.StatusCode.UNIMPLEMENTED

    async def test_something_that_is_not_http(self, serve: Serve, place: Path) -> None:
        client = await serve(Version=self.version)
        reader, writer = await asyncio.open_unix_connection(place)
        writer.write(os.urandom(100_000))
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(10):
                while await reader.read(1 << 16):
                    pass
        writer.close()
        assert (await client.call("Version", cri.VersionRequest())).version == "1"


class TestSocket:
    async def test_only_its_owner_may_use_it(self, serve: Serve, place: Path) -> None:
        mask = os.umask(0)
        try:
            await serve()
        finally:
            os.umask(mask)
        mode = os.stat(place).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600

    async def test_one_that_was_left_is_replaced_and_goes_in_the_end(self, place: Path) -> None:
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(place))
        left.close()
        edge = Edge(place, {RUNTIME: {}})
        await edge.start()
        async with Client(str(place)) as client:
            with pytest.raises(errdefs.Unimplemented):
                await client.call("Version", cri.VersionRequest())
        await edge.stop(0)
        assert place.name not in os.listdir(place.parent)

    async def test_its_directory_is_made(self, place: Path) -> None:
        edge = Edge(place.parent / "a/b/orlop.sock", {RUNTIME: {}})
        await edge.start()
        assert (place.parent / "a/b/orlop.sock").exists()
        await edge.stop(0)

    async def test_a_path_that_is_too_long_for_one(self, place: Path) -> None:
        edge = Edge(place.parent / ("x" * 120), {RUNTIME: {}})
        with pytest.raises(errdefs.Unavailable, match=r"x{120}"):
            await edge.start()
        await edge.stop(0)

    async def test_calls_in_flight_may_end_within_the_grace(self, place: Path) -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def version(request: cri.VersionRequest) -> cri.VersionResponse:
            begun.set()
            await go_on.wait()
            return cri.VersionResponse(version="1")

        edge = Edge(place, {RUNTIME: {"Version": version}})
        await edge.start()
        async with Client(str(place)) as client:
            call = asyncio.create_task(client.call("Version", cri.VersionRequest()))
            await begun.wait()
            stopping = asyncio.create_task(edge.stop(10))
            await asyncio.sleep(0)
            go_on.set()
            assert (await call).version == "1"
            await stopping


class TestClient:
    async def test_nobody_serves(self, place: Path) -> None:
        async with Client(str(place)) as client:
            with pytest.raises(errdefs.Unavailable, match=f"^nobody serves {place}: "):
                await client.call("Version", cri.VersionRequest())

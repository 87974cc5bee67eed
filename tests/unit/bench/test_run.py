"""Whole runs over runtimes that are dictionaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.bench import pods, report
from agent.bench.plan import Plan
from agent.bench.run import FAMILIES, run
from agent.errdefs import InvalidArgument, Unavailable
from tests.unit.bench.fakes import FakeRuntime, makers


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pods, "_SETTLE", 0.0)


def plan(folder: Path, **settings: Any) -> Plan:
    small = {"pods": 2, "parallel": 2, "containers": 5, "per_pod": 2, "repeats": 3, "execs": 2, "turns": 2, "log_bytes": 20000}
    return Plan(image="busybox", log_root=folder / "logs", **{**small, **settings})


async def measured(folder: Path, *runtimes: FakeRuntime, **settings: Any) -> dict[str, Any]:
    """The document of a run; nothing may be left then."""
    sockets = [runtime.socket for runtime in runtimes]
    async with run(plan(folder, **settings), sockets, lambda text: None, makers(folder, *runtimes)) as results:
        document = report.document(results, {})
    for runtime in runtimes:
        assert (runtime.pods, runtime.containers, runtime.images) == ({}, {}, set())
    return document


def counts(document: dict[str, Any], socket: int = 0) -> dict[str, int]:
    return {row["key"]: len(row["results"][socket]["samples"]) for row in document["measurements"]}


async def test_everything(tmp_path: Path) -> None:
    one, two = FakeRuntime("one"), FakeRuntime("two")
    restarts = {runtime.socket: "true" for runtime in (one, two)}
    document = await measured(tmp_path, one, two, large_image="large", restarts=restarts)
    assert document["sockets"] == ["one 1", "two 1"]
    assert {row["family"] for row in document["measurements"]} == set(FAMILIES)
    for socket in (0, 1):
        found = counts(document, socket)
        absent = {key for key, count in found.items() if not count}
        assert absent == {
            "stack_cpu", "daemon_cpu", "daemon_memory_before", "daemon_memory_after", "pod_memory",  # nobody listens on the socket
            "ListPodSandboxMetrics", "ListContainerStats", "ListPodSandboxStats", "ListImages", "ImageFsInfo",  # the fake has none
        }  # fmt: skip
        assert (found["RunPodSandbox"], found["pod_end"], found["starts"], found["ends"]) == (2, 2, 2, 2)
        assert (found["ListContainers"], found["exec_alone"], found["exec_many"], found["log_long"]) == (3, 3, 1, 2)
        assert (found["pull"], found["restart"]) == (2, 2)
    json.dumps(document)


async def test_totals_are_those_of_their_calls(tmp_path: Path) -> None:
    document = await measured(tmp_path, FakeRuntime(), families=frozenset({"pods"}))
    samples = {row["key"]: row["results"][0]["samples"] for row in document["measurements"]}
    for total, parts in (
        ("pod_start", ("RunPodSandbox", "CreateContainer", "StartContainer")),
        ("pod_stop", ("StopContainer", "StopPodSandbox")),
        ("pod_removal", ("RemoveContainer", "RemovePodSandbox")),
        ("pod_end", ("pod_stop", "pod_removal")),
    ):
        assert samples[total] == pytest.approx([sum(values) for values in zip(*(samples[part] for part in parts), strict=True)])


async def test_what_a_runtime_does_not_have_is_named_with_its_reason(tmp_path: Path) -> None:
    document = await measured(tmp_path, FakeRuntime(), families=frozenset({"lists", "restart", "images"}))
    reasons = {row["key"]: row["results"][0]["reason"] for row in document["measurements"]}
    assert reasons["ListPodSandboxMetrics"] == "ListPodSandboxMetrics is not implemented"
    assert reasons["ListContainers"] == ""
    assert "--restart" in reasons["restart"]
    assert "--large-image" in reasons["pull"]


async def test_a_runtime_that_fails_does_not_keep_the_other_from_its_numbers(tmp_path: Path) -> None:
    good, bad = FakeRuntime("good"), FakeRuntime("bad")
    bad.failures["StartContainer"] = Unavailable("the engine broke")
    document = await measured(tmp_path, good, bad, families=frozenset({"pods", "parallel", "lists", "exec", "logs"}))
    assert counts(document)["pod_end"] == 2
    assert counts(document, 1)["pod_end"] == 0
    assert len(bad.named("RunPodSandbox")) >= 1
    for row in document["measurements"]:
        if not row["results"][1]["samples"] and row["results"][0]["samples"]:
            assert row["results"][1]["reason"].endswith("the engine broke")


async def test_a_restart_whose_command_fails(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    document = await measured(tmp_path, runtime, families=frozenset({"restart"}), restarts={runtime.socket: "echo gone >&2; exit 3"})
    [row] = document["measurements"]
    assert row["results"][0]["reason"] == "'echo gone >&2; exit 3' ended with 3: gone"


async def test_runtimes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one, two = FakeRuntime("same"), FakeRuntime("same")
    two.socket = "/nowhere/else.sock"
    document = await measured(tmp_path, one, two, families=frozenset({"exec"}))
    assert document["sockets"] == ["same 1 at /nowhere/same.sock", "same 1 at /nowhere/else.sock"]


async def test_a_large_image_that_was_there_is_there_afterwards(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    runtime.images = {"large"}
    settings = plan(tmp_path, families=frozenset({"images"}), large_image="large")
    async with run(settings, [runtime.socket], lambda text: None, makers(tmp_path, runtime)) as results:
        assert len(results.of("pull", "fake 1").values) == 2
    assert runtime.images == {"large"}


async def test_what_cannot_be_removed_in_the_middle_costs_no_results(tmp_path: Path) -> None:
    runtime, said = FakeRuntime(), []
    settings = plan(tmp_path, families=frozenset({"exec", "images"}), large_image="large")

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("exec"):
            runtime.failures["StopPodSandbox"] = Unavailable("busy")
        if text.startswith("images"):
            runtime.failures.clear()

    async with run(settings, [runtime.socket], say, makers(tmp_path, runtime)) as results:
        assert len(results.of("exec_alone", "fake 1").values) == 3
    assert "fake 1: busy" in said
    assert runtime.pods == {}


class TestCritest:
    @pytest.fixture
    def runtime(self) -> FakeRuntime:
        return FakeRuntime()

    async def test_its_figures_are_rows(self, tmp_path: Path, runtime: FakeRuntime) -> None:
        points = [{"operationsDurationsNs": [200_000_000, 1_000_000]}, {"operationsDurationsNs": [100_000_000, 3_000_000]}]
        self.write(tmp_path, "pod", {"operationsNames": ["CreatePod", "StatusPod"], "numParallel": 1, "datapoints": points})
        self.write(tmp_path, "image_listing", {"operationsNames": ["ListImages"], "datapoints": None})
        document = await measured(tmp_path, runtime, families=frozenset({"exec"}), critest={runtime.socket: tmp_path})
        rows = {row["key"]: row for row in document["measurements"] if row["family"] == "critest"}
        assert rows["critest.pod.CreatePod"]["results"][0]["samples"] == [0.2, 0.1]
        assert rows["critest.pod.StatusPod"]["results"][0]["samples"] == [0.001, 0.003]
        assert rows["critest.image_listing.ListImages"]["title"] == "critest image listing: ListImages"

    @pytest.mark.parametrize("document", [None, [], {"operationsNames": ["A"]}, {"operationsNames": ["A"], "datapoints": [{}]}])
    async def test_what_is_not_critests(self, tmp_path: Path, runtime: FakeRuntime, document: object) -> None:
        if document is not None:
            self.write(tmp_path, "pod", document)
        with pytest.raises(InvalidArgument, match=r"pod_benchmark_data\.json|has no"):
            await measured(tmp_path, runtime, families=frozenset({"exec"}), critest={runtime.socket: tmp_path})
        assert runtime.pods == {}

    def write(self, folder: Path, name: str, document: object) -> None:
        (folder / f"{name}_benchmark_data.json").write_text(json.dumps(document))

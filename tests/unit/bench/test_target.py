"""What is made on a socket, and that all of it goes again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.bench.plan import Plan
from agent.bench.target import LABEL, NAMESPACE, Target
from agent.errdefs import InvalidArgument, NotFound, Unavailable
from cri.api import api_pb2 as cri
from tests.unit.bench.fakes import FakeRuntime, makers


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def target(tmp_path: Path, runtime: FakeRuntime) -> Target:
    return make(tmp_path, runtime)


def make(folder: Path, runtime: FakeRuntime, **plan: object) -> Target:
    settings = {"image": "busybox", "log_root": folder / "logs", **plan}
    return makers(folder, runtime)(runtime.socket, Plan(**settings))  # type: ignore[arg-type]  # as tests write them


class TestBeginAndEnd:
    async def test_nothing_is_left(self, target: Target, runtime: FakeRuntime, tmp_path: Path) -> None:
        async with target:
            assert target.name == "fake 1"
            await target.start(containers=2)
            await target.start()
            assert len(runtime.pods) == 2
            assert len(runtime.containers) == 3
            assert len(list((tmp_path / "logs").iterdir())) == 2
            assert list((tmp_path / "cgroup").glob("orlop-bench-*"))
        assert (runtime.pods, runtime.containers, runtime.images) == ({}, {}, set())
        assert list((tmp_path / "logs").iterdir()) == []
        assert list((tmp_path / "cgroup").iterdir()) == [tmp_path / "cgroup/cgroup.controllers"]

    async def test_pods_of_others_stay(self, target: Target, runtime: FakeRuntime) -> None:
        runtime.pods = {"other": cri.PodSandboxConfig(), "another-run": cri.PodSandboxConfig(labels={LABEL: "before"})}
        async with target:
            await target.start()
        assert set(runtime.pods) == {"other", "another-run"}

    async def test_an_image_that_was_there_stays(self, target: Target, runtime: FakeRuntime) -> None:
        runtime.images = {"busybox"}
        async with target:
            pass
        assert runtime.images == {"busybox"}
        assert not runtime.named("PullImage")

    async def test_a_call_that_is_cut_off_is_waited_for_and_what_it_made_is_removed(self, target: Target, runtime: FakeRuntime) -> None:
        release = asyncio.Event()

        async def whole() -> None:
            async with target:
                runtime.held["RunPodSandbox"] = release
                await target.start()

        running = asyncio.create_task(whole())
        while not runtime.pods:
            await asyncio.sleep(0)
        running.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not running.done()
        assert not runtime.named("RemovePodSandbox")
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert runtime.pods == {}

    async def test_an_image_whose_pull_is_cut_off_is_removed(self, target: Target, runtime: FakeRuntime) -> None:
        runtime.held["PullImage"] = asyncio.Event()
        opening = asyncio.create_task(target.__aenter__())
        while not runtime.images:
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.sleep(0)
        runtime.held["PullImage"].set()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert runtime.images == set()

    async def test_what_cannot_be_removed_is_told(self, target: Target, runtime: FakeRuntime) -> None:
        async def whole() -> None:
            async with target:
                await target.start()
                runtime.failures["RemovePodSandbox"] = Unavailable("busy")

        with pytest.raises(Unavailable, match="busy") as failure:
            await whole()
        assert any(f"{LABEL}={target.run}" in note for note in failure.value.__notes__)
        assert len(runtime.named("RemovePodSandbox")) > 1

    async def test_an_image_that_cannot_be_had_ends_it(self, target: Target, runtime: FakeRuntime, tmp_path: Path) -> None:
        runtime.failures["PullImage"] = NotFound("no such image")
        with pytest.raises(NotFound, match="no such image"):
            async with target:
                pass
        assert list((tmp_path / "cgroup").iterdir()) == [tmp_path / "cgroup/cgroup.controllers"]


class TestRequests:
    async def test_a_pod_is_known_by_name_and_label(self, target: Target, runtime: FakeRuntime) -> None:
        async with target:
            pod = await target.start()
            config = runtime.pods[pod.id]
        assert config.metadata.namespace == NAMESPACE
        assert config.metadata.name.startswith(f"bench-{target.run}-")
        assert config.labels[LABEL] == target.run
        assert config.linux.cgroup_parent == f"/orlop-bench-{target.run}/pod{config.metadata.uid}"
        [container] = runtime.named("CreateContainer")
        assert container.config.labels[LABEL] == target.run
        assert container.sandbox_config == config

    @pytest.mark.parametrize(("host", "mode"), [(True, cri.NODE), (False, cri.POD)])
    async def test_network(self, tmp_path: Path, runtime: FakeRuntime, host: bool, mode: cri.NamespaceMode) -> None:
        async with make(tmp_path, runtime, host_network=host) as target:
            await target.start()
        assert runtime.named("RunPodSandbox")[0].config.linux.security_context.namespace_options.network == mode
        assert runtime.named("CreateContainer")[0].config.linux.security_context.namespace_options.network == mode

    async def test_slices_where_systemd_drives_cgroups(self, tmp_path: Path) -> None:
        runtime = FakeRuntime(driver=cri.SYSTEMD)
        async with make(tmp_path, runtime) as target:
            await target.start()
        [request] = runtime.named("RunPodSandbox")
        uid = request.config.metadata.uid.replace("-", "_")
        assert request.config.linux.cgroup_parent == f"orlopbench-{target.run}-pod{uid}.slice"

    @pytest.mark.parametrize(
        ("given", "made"),
        [("/a/b/", "/a/b/orlop-bench-{run}/pod{uid}"), ("kube.slice", "kube-{run}-pod{under}.slice")],
    )
    async def test_a_cgroup_parent_that_is_asked_for(self, tmp_path: Path, runtime: FakeRuntime, given: str, made: str) -> None:
        async with make(tmp_path, runtime, cgroup_parent=given) as target:
            await target.start()
        [request] = runtime.named("RunPodSandbox")
        uid = request.config.metadata.uid
        assert request.config.linux.cgroup_parent == made.format(run=target.run, uid=uid, under=uid.replace("-", "_"))

    async def test_a_cgroup_parent_that_is_neither(self, tmp_path: Path, runtime: FakeRuntime) -> None:
        with pytest.raises(InvalidArgument, match="'kube' is neither"):
            async with make(tmp_path, runtime, cgroup_parent="kube"):
                pass

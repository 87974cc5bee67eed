"""A kubelet's own calls, in its order: each is answered as the kubelet expects, field by field of what it reads back.

`data/kubelet-1.36.jsonl` is cut from a recording of kubelet 1.36 with containerd (main, August 2026) behind it: five pods of different
kinds (a server that is stopped with grace; a job; a sidecar on the host's network and with a shared PID namespace; a probed, confined one
with a debug container; one that the OOM killer ends), from the kubelet's start to the removal of the last sandbox. Polling that brings
nothing new is left out, and so are calls that come in later issues; calls that the jitter of the recorder's clocks put before what they
need are moved behind it. Ids, images, host paths, cgroups and `/www` are replaced by ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from cri.api import api_pb2 as cri
from tests.e2e.client import BUSYBOX, Client, until
from tests.e2e.conftest import one_pair
from tests.e2e.node import CGROUP_PARENT, CGROUPS

pytestmark = [pytest.mark.e2e, one_pair]

RECORDING = Path(__file__).parent / "data" / "kubelet-1.36.jsonl"
IMAGE = re.compile(r"sha256:ba2c84223e3cfcec05cce8306db93cb7dabbea95cb4c80627323245bc8436710")
IMAGE_NAME = "localhost/busybox:k8s"


class Kubelet:
    """Sends the recorded requests, and knows which of our ids stands for which of the recorded ones."""

    def __init__(self, client: Client, home: Path) -> None:
        self.client = client
        self.home = home
        self.ids: dict[str, str] = {}
        self.configs: dict[str, cri.ContainerConfig] = {}
        image = client.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=BUSYBOX))).image
        self.image_id = image.id
        self.stops: dict[str, int] = {}

    def translated(self, document: Any) -> Any:
        """A recorded request or response with our ids, images, paths and cgroups."""
        text = json.dumps(document).replace("/var/lib/kubelet", str(self.home)).replace('"/kubepods', f'"{CGROUP_PARENT}/kubepods')
        text = IMAGE.sub(self.image_id, text).replace(IMAGE_NAME, BUSYBOX).replace("-h /www", "-h /tmp")
        for recorded, ours in self.ids.items():
            text = text.replace(recorded, ours)
        return json.loads(text)

    def act(self, method: str, request: dict[str, Any], response: dict[str, Any]) -> None:
        """One call: made, and its answer compared with the recorded one."""
        message = ParseDict(self.translated(request), getattr(cri, f"{method}Request")())
        calls = self.client.images if "Image" in method else self.client.runtime
        self.prepare(message)
        answer = getattr(calls, method)(message)
        for field in ("podSandboxId", "containerId"):
            if field in response:
                self.ids[response[field]] = getattr(answer, "pod_sandbox_id" if field == "podSandboxId" else "container_id")
        match message:
            case cri.CreateContainerRequest():
                self.configs[answer.container_id] = message.config
            case cri.StopPodSandboxRequest():
                self.stops[message.pod_sandbox_id] = self.stops.get(message.pod_sandbox_id, 0) + 1
            case _:
                pass
        expected = ParseDict(self.translated(response), type(answer)(), ignore_unknown_fields=True)
        check = getattr(self, f"check_{type(answer).__name__}", None)
        if check:
            check(message, answer, expected)

    def prepare(self, message: Any) -> None:
        """What the kubelet makes before it asks: cgroups, volumes, log directories."""
        match message:
            case cri.RunPodSandboxRequest(config=config):
                Path(config.log_directory).mkdir(parents=True)
                for top in hierarchies():
                    (top / config.linux.cgroup_parent.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case cri.CreateContainerRequest(config=config):
                (Path(message.sandbox_config.log_directory) / config.log_path).parent.mkdir(exist_ok=True)
                for mount in config.mounts:
                    source = Path(mount.host_path)
                    if mount.container_path in ("/etc/hosts", "/dev/termination-log"):
                        source.parent.mkdir(parents=True, exist_ok=True)
                        source.touch()
                    else:
                        source.mkdir(parents=True, exist_ok=True)
            case _:
                pass

    def check_PodSandboxStatusResponse(self, request: Any, answer: Any, expected: Any) -> None:
        ours, theirs = answer.status, expected.status
        for field in ("id", "metadata", "state", "labels", "annotations", "linux"):
            assert getattr(ours, field) == getattr(theirs, field), (field, ours)
        assert bool(ours.network.ip) == bool(theirs.network.ip)
        assert ours.created_at > 0

    def check_ContainerStatusResponse(self, request: Any, answer: Any, expected: Any) -> None:
        theirs = expected.status
        # A replay is faster than the kubelet was: a state comes, and may have passed.
        ours = until(
            lambda: status if (status := self.client.status(request.container_id)).state >= theirs.state else None,
            what=f"container {theirs.metadata.name} is as it was: {theirs}",
        )
        if theirs.reason == "OOMKilled":
            ours = until(
                lambda: status if (status := self.client.status(request.container_id)).reason == "OOMKilled" else None, what="OOM is known"
            )
        fields = ["id", "metadata", "image", "image_ref", "image_id", "labels", "annotations", "mounts", "log_path", "user", "stop_signal"]
        if ours.state == theirs.state:
            fields += ["state", "exit_code", "reason", "message"]
            assert [bool(moment) for moment in (ours.started_at, ours.finished_at)] == [bool(theirs.started_at), bool(theirs.finished_at)]
        for field in fields:
            assert getattr(ours, field) == getattr(theirs, field), (field, ours, theirs)
        assert ours.resources.linux == self.configs[ours.id].linux.resources

    def check_ListPodSandboxResponse(self, request: Any, answer: Any, expected: Any) -> None:
        ours = {item.id: item for item in answer.items}
        for theirs in expected.items:
            item = ours[theirs.id]
            for field in ("metadata", "state", "labels", "annotations"):
                assert getattr(item, field) == getattr(theirs, field), (field, item)

    def check_ListContainersResponse(self, request: Any, answer: Any, expected: Any) -> None:
        ours = {item.id: item for item in answer.containers}
        for theirs in expected.containers:
            item = ours[theirs.id]
            assert item.state >= theirs.state
            for field in ("pod_sandbox_id", "metadata", "image", "image_ref", "image_id", "labels", "annotations"):
                assert getattr(item, field) == getattr(theirs, field), (field, item, theirs)

    def check_ImageStatusResponse(self, request: Any, answer: Any, expected: Any) -> None:
        assert (answer.image.id, list(answer.image.repo_tags)) == (expected.image.id, list(expected.image.repo_tags))
        assert answer.image.size > 0

    def check_StatusResponse(self, request: Any, answer: Any, expected: Any) -> None:
        conditions = {condition.type: condition.status for condition in answer.status.conditions}
        assert (conditions["RuntimeReady"], conditions["NetworkReady"]) == (True, True)
        assert "" in {handler.name for handler in answer.runtime_handlers}
        assert answer.features.supplemental_groups_policy == expected.features.supplemental_groups_policy

    def check_VersionResponse(self, request: Any, answer: Any, expected: Any) -> None:
        assert (answer.version, answer.runtime_api_version, answer.runtime_name) == (
            expected.version,
            expected.runtime_api_version,
            "orlop",
        )

    def check_RuntimeConfigResponse(self, request: Any, answer: Any, expected: Any) -> None:
        assert answer == expected

    def check_ImageFsInfoResponse(self, request: Any, answer: Any, expected: Any) -> None:
        [usage] = answer.image_filesystems
        assert Path(usage.fs_id.mountpoint).is_dir()
        assert usage.used_bytes.value > 0
        assert usage.inodes_used.value > 0

    def check_ExecSyncResponse(self, request: Any, answer: Any, expected: Any) -> None:
        assert answer == expected


def hierarchies() -> list[Path]:
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


@pytest.fixture
def cgroups(kubelet: Client) -> Iterator[None]:
    """Removes the pods' cgroups, which the kubelet makes and removes: the agent leaves them alone."""
    yield
    kubelet.remove_all()
    for top in hierarchies():
        kubepods = top / CGROUP_PARENT.lstrip("/") / "kubepods"
        for folder in (*sorted((path for path in kubepods.rglob("*") if path.is_dir()), reverse=True), kubepods):
            folder.rmdir()


def test_a_kubelets_day(kubelet: Client, cgroups: None, tmp_path: Path) -> None:
    replay = Kubelet(kubelet, tmp_path)
    for line in RECORDING.read_text().splitlines():
        replay.act(**json.loads(line))
    assert set(replay.stops.values()) == {2}, "each sandbox is stopped again before it is removed"
    assert (kubelet.pods(), kubelet.containers()) == ([], [])

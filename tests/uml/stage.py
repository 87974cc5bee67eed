"""The node's side of the power matrix: `python -m tests.uml.stage REQUEST`, which `tests.uml.power` has run after each boot.

One call does much, since starting Python takes seconds there: it looks at what the last cut has left, plays the kubelet's retries of it,
and brings the next verb to its failpoint, where the power goes. The verbs are those of the crash tests (`tests.e2e.stories`): a story is
told up to its call; what it says of a daemon that comes back doesn't hold here, since its pods end with the boot.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import grpc

from agent.config.settings import load
from cri.api import admin_pb2 as admin
from cri.api import api_pb2 as cri
from tests.e2e.client import Client, Pod, until
from tests.e2e.faults import Rig
from tests.e2e.node import files
from tests.e2e.stories import STORIES, Acts
from tests.images import Blobs, add_image, layer_tar
from tests.uml.inside import LOGS, live, nothing_is_left

ANYWHERE = "*=1000000*crash"  # never; but what is passed is noted
REGISTRY = ("127.0.0.1", 5000)
IMAGE = "127.0.0.1:5000/some/image:v1"
TREES = (Path("/var/lib/orlop"), Path("/var/lib/cni"))
KEPT = Path("/root/files-without-pods.json")
CHECKED = "nothing stayed of the last"
"""A line that is printed before the next verb begins."""
VERBS = (
    "RunPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox",
    "PullImage",
)  # fmt: skip


@dataclass
class Wanted:
    """What the kubelet knows of when the power goes: not on the node, but in the API server."""

    pods: list[str] = field(default_factory=list)
    """Their configurations, encoded."""
    sandboxes: list[str] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)
    image: str = ""


@dataclass(frozen=True)
class Request:
    """What is to be done on the node. `point` is "" for a verb that is to end, and `story` is "" for none."""

    wanted: Wanted = field(default_factory=Wanted)
    story: str = ""
    point: str = ""

    def encoded(self) -> str:
        return base64.b64encode(json.dumps(asdict(self)).encode()).decode()

    @classmethod
    def decoded(cls, text: str) -> Request:
        fields = json.loads(base64.b64decode(text))
        return cls(Wanted(**fields.pop("wanted")), **fields)


class Kubelet(Client):
    """Notes what it wanted, before anybody can have given it."""

    def __init__(self, socket: Path) -> None:
        super().__init__(socket)
        self.wanted = Wanted()

    def run_again(self, config: cri.PodSandboxConfig, *, handler: str = "") -> Pod:
        self.wanted.pods.append(base64.b64encode(config.SerializeToString()).decode())
        pod = super().run_again(config, handler=handler)
        self.wanted.sandboxes.append(pod.id)
        return pod

    def create_container(self, pod: Pod, *args: Any, **config: Any) -> str:
        container = super().create_container(pod, *args, **config)
        self.wanted.containers.append(container)
        return container

    def pull_image(self, name: str) -> str:
        self.wanted.image = name
        return super().pull_image(name)


class Stage:
    """What the stories want of a `Rig`, up to their call."""

    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet = kubelet

    @cached_property
    def pod(self) -> Pod:
        return self.kubelet.run_pod("beside")

    @cached_property
    def image(self) -> str:
        registry()
        return IMAGE


def registry() -> None:
    """Serves IMAGE as long as this process lives: what a registry answers to someone who wants no more than that."""
    blobs = Blobs()
    top = add_image(blobs, [layer_tar({"one": b"1" * 5000}), layer_tar({"two": b"2" * 5000})])

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            data = blobs.files.get("blobs/" + (top["digest"] if name == "v1" else name).replace(":", "/"), b"{}")
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", top["mediaType"] if "/manifests/" in self.path else "application/octet-stream")
            if "/manifests/" in self.path:
                self.send_header("Docker-Content-Digest", top["digest"])
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(REGISTRY, Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main() -> None:
    request = Request.decoded(sys.argv[1])
    kubelet = Kubelet(load().socket)
    stage = Stage(kubelet)
    if not KEPT.exists():
        live(kubelet, kubelet.pod_config("first", log_directory=LOGS))
        KEPT.write_text(json.dumps(sorted(on_disk())))
        os.sync()
    assert not kubelet.pods(), "sandboxes end with the boot"
    assert not kubelet.containers(), "and their containers"
    if not kubelet.image_id(IMAGE):  # or the pull had ended in time
        nothing_stayed(kubelet)
    retry(stage, request.wanted)
    print(CHECKED, flush=True)
    kubelet.wanted = Wanted()
    passed = play(stage, request) if request.story else []
    print(json.dumps({"wanted": asdict(kubelet.wanted), "passed": passed}), flush=True)
    os._exit(0)  # with a call that nobody answers


def on_disk() -> set[str]:
    return {thing for tree in TREES for thing in files(tree)}


def nothing_stayed(kubelet: Client) -> None:
    nothing_is_left(kubelet)
    kept = set(json.loads(KEPT.read_text()))
    until(lambda: on_disk() == kept, what="the files are those of a node without pods", detail=lambda: sorted(on_disk() ^ kept))


def retry(stage: Stage, wanted: Wanted) -> None:
    """What a kubelet does with what it knew; then nothing is left again."""
    kubelet = stage.kubelet
    for container in wanted.containers:
        kubelet.stop(container)
        kubelet.remove(container)
    for sandbox in wanted.sandboxes:
        kubelet.stop_pod(sandbox)
        kubelet.remove_pod(sandbox)
    for encoded in wanted.pods:
        config = cri.PodSandboxConfig.FromString(base64.b64decode(encoded))
        config.log_directory = str(LOGS)
        for log in LOGS.glob("*.log"):  # of containers that it has forgotten; the power went while it was written
            log.unlink()
        live(kubelet, config)
    if wanted.image:
        ref = kubelet.pull_image(stage.image)
        assert kubelet.image_id(stage.image) == ref
        kubelet.remove_image(stage.image)
    if wanted != Wanted():
        nothing_stayed(kubelet)


def play(stage: Stage, request: Request) -> list[str]:
    """Tells the story up to its call, and this to its end or to the failpoint; what was passed."""
    [story] = [story for stories in STORIES.values() for story in stories if story.__name__ == request.story]
    acts: Acts = story(cast(Rig, stage))
    verb = next(acts)
    failpoints(stage.kubelet, f"{request.point}=hang" if request.point else ANYWHERE)
    doing = threading.Thread(target=_done, args=(verb,), daemon=True)
    doing.start()
    until(
        lambda: not doing.is_alive() or (request.point and request.point in failpoints(stage.kubelet)),
        what=f"{request.story} is at {request.point or 'its end'}",
        within=90,
    )
    return failpoints(stage.kubelet)


def _done(verb: Any) -> None:
    with suppress(grpc.RpcError):
        verb()


def failpoints(kubelet: Client, configure: str | None = None) -> list[str]:
    answer: admin.FailpointsResponse = kubelet.admin.Failpoints(admin.FailpointsRequest(configure=configure))
    return list(answer.passed)


if __name__ == "__main__":
    main()

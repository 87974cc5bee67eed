"""Images as volumes of containers (KEP-4639), with each engine: read-only for everybody, and gone with the container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import BUSYBOX, Client, Pod, refused
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.inside import linux, said
from tests.images import Node, directory, make_oci_layout, symlink, whiteout

pytestmark = pytest.mark.e2e

DATA, FLAT = "orlop.test/data:1", "orlop.test/flat:1"
SCRIPT = Node(data=b"#!/bin/sh\necho ran\n", mode=0o755)


def image_archive(folder: Path) -> Path:
    """`data`, of three layers that hide and replace, and `flat`, of a single one."""
    layers: list[Any] = [
        [("etc/old", b""), ("etc/both", b"old"), ("conf.d/1", b""), ("conf.d/sub/x", b""), ("gone/x", b""), ("run.sh", SCRIPT)],
        [("etc/both", b"new"), ("etc/new", b""), whiteout("etc/old"), whiteout("gone"), ("up", symlink("../../../../etc"))],
        [("conf.d/", directory(0o711)), ("conf.d/.wh..wh..opq", b""), ("conf.d/2", b"")],
    ]
    return make_oci_layout(folder / "volumes.tar", {DATA: layers, FLAT: [[("only", b"x")]]})


@pytest.fixture
def images(shared_daemon: Daemon, kubelet: Client, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Ids by name. Whatever the test did to them, they're removed; `kubelet` sees that nothing of them is left."""
    shared_daemon.orlop("image", "import", image_archive(tmp_path))
    yield {name: image_status(kubelet, name).id for name in (DATA, FLAT)}
    kubelet.remove_all()
    for name in (DATA, FLAT):
        remove_image(kubelet, name)


@pytest.fixture
def pod(kubelet: Client, tmp_path: Path) -> Pod:
    return kubelet.run_pod(log_directory=tmp_path)


def image_status(kubelet: Client, name: str) -> cri.Image:
    answer: cri.ImageStatusResponse = kubelet.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=name)))
    return answer.image


def remove_image(kubelet: Client, name: str) -> None:
    kubelet.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)))


def volume(image: str, sub_path: str = "", **fields: Any) -> cri.Mount:
    spec = cri.ImageSpec(image=image)
    return cri.Mount(**{"container_path": "/vol", "readonly": True, "image": spec, "image_sub_path": sub_path, **fields})


def test_what_a_container_sees(kubelet: Client, images: dict[str, str], pod: Pod) -> None:
    """As overlayfs shows the image; also for one with a single layer, which no bind mount stands for."""
    mounts = [volume(images[DATA]), volume(FLAT, container_path="/mnt/flat"), volume(DATA, "etc", container_path="/mnt/etc")]
    container = kubelet.run_container(pod, mounts=mounts)

    def output(script: str) -> str:
        answer = kubelet.exec_sync(container, "sh", "-c", script)
        assert answer.exit_code == 0, answer
        return answer.stdout.decode()

    assert output("cd /vol; find . -type f | sort") == "./conf.d/2\n./etc/both\n./etc/new\n./run.sh\n"
    assert output("cat /vol/etc/both; stat -c %a /vol/conf.d") == "new711\n"
    assert output("ls /mnt/flat /mnt/etc") == "/mnt/etc:\nboth\nnew\n\n/mnt/flat:\nonly\n"
    assert output("/vol/run.sh") == "ran\n"
    for target in ("/vol", "/mnt/flat", "/mnt/etc"):
        answer = kubelet.exec_sync(container, "touch", f"{target}/x")
        assert answer.exit_code != 0
        assert b"Read-only file system" in answer.stderr
    kubelet.stop(container)
    kubelet.remove(container)


def test_nobody_writes_into_a_layer(kubelet: Client, images: dict[str, str], pod: Pod, shared_daemon: Daemon) -> None:
    """Whoever may mount could remount a bind mount writable, and then change the image for all containers of the node."""
    script = "mount -o remount,rw /vol; mount -o remount,rw,bind /vol; echo evil > /vol/only; echo evil > /vol/new; cat /vol/only"
    assert said(kubelet, pod, f"({script}) 2>/dev/null; ls /vol", linux=linux(privileged=True), mounts=[volume(FLAT)]) == ["xonly"]
    layers = [path for path in (shared_daemon.root / "snapshots/layers").rglob("only") if path.is_file()]
    assert [path.read_text() for path in layers] == ["x"]
    assert not list((shared_daemon.root / "snapshots/empty").rglob("new"))


@one_pair
def test_status_says_which_image_it_is(kubelet: Client, images: dict[str, str], pod: Pod) -> None:
    """The kubelet keeps images by `image`, which has to be an id, and shows `image_ref` (KEP-5365); the tag may be another's by then."""
    container = kubelet.create_container(pod, mounts=[volume(DATA, "etc")])
    remove_image(kubelet, DATA)
    [mount] = kubelet.status(container).mounts
    assert mount.image == cri.ImageSpec(image=images[DATA], image_ref=images[DATA], user_specified_image=DATA)
    assert (mount.container_path, mount.image_sub_path, mount.readonly, mount.host_path) == ("/vol", "etc", True, "")
    kubelet.remove(container)


@one_pair
def test_sub_paths_stay_inside_of_the_image(kubelet: Client, images: dict[str, str], pod: Pod) -> None:
    assert said(kubelet, pod, "ls /vol", mounts=[volume(DATA, "up")]) == ["both", "new"], "../../../../etc is the image's"
    assert said(kubelet, pod, "ls /vol", mounts=[volume(DATA, "conf.d")]) == ["2"], "what an opaque directory hides stays hidden"


@one_pair
def test_mount_options(kubelet: Client, images: dict[str, str], pod: Pod) -> None:
    mounts = [volume(DATA, mount_options=["noexec", "nodev", "nosuid"], recursive_read_only=True)]
    lines = said(kubelet, pod, "/vol/run.sh 2>&1; grep ' /vol ' /proc/mounts", mounts=mounts)
    assert "Permission denied" in lines[0]
    assert {"ro", "noexec", "nodev", "nosuid"} <= set(lines[1].split()[3].split(","))


@one_pair
@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"readonly": False}, grpc.StatusCode.INVALID_ARGUMENT, "readonly must be true"),
        ({"host_path": "/tmp"}, grpc.StatusCode.INVALID_ARGUMENT, "host_path"),
        ({"image": ""}, grpc.StatusCode.INVALID_ARGUMENT, "image.image must not be empty"),
        ({"image": "orlop.test/none:1"}, grpc.StatusCode.NOT_FOUND, "orlop.test/none:1"),
        ({"propagation": cri.PROPAGATION_BIDIRECTIONAL}, grpc.StatusCode.INVALID_ARGUMENT, "BIDIRECTIONAL"),
        ({"image_sub_path": "nowhere"}, grpc.StatusCode.NOT_FOUND, "'nowhere' is no directory of the image"),
        ({"image_sub_path": "gone"}, grpc.StatusCode.NOT_FOUND, "'gone' is no directory of the image"),
        ({"image_sub_path": "run.sh"}, grpc.StatusCode.NOT_FOUND, "'run.sh' is no directory of the image"),
        ({"image_sub_path": "../etc"}, grpc.StatusCode.INVALID_ARGUMENT, "image_sub_path '../etc'"),
        ({"image_sub_path": "/etc"}, grpc.StatusCode.INVALID_ARGUMENT, "image_sub_path '/etc'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_can_not_be_is_refused(
    kubelet: Client, images: dict[str, str], pod: Pod, fields: dict[str, Any], code: grpc.StatusCode, words: str
) -> None:
    before = kubelet.ledger()
    with refused(code, "ImageVolumeMountFailed: config.mounts['/vol']: ", words):
        kubelet.create_container(pod, mounts=[volume(**{"image": DATA, **fields})])
    assert kubelet.ledger() == before, "what was begun is taken back"


@one_pair
def test_nothing_is_mounted_on_the_node(kubelet: Client, images: dict[str, str], pod: Pod, shared_daemon: Daemon) -> None:
    """So nothing of it can be left there, whoever dies when."""
    container = kubelet.run_container(pod, mounts=[volume(DATA)])
    layers = str(shared_daemon.root / "snapshots")
    mounted = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if layers in line and "upperdir=" not in line]
    assert mounted == []
    shared_daemon.orlop("audit")  # fails if it finds a leak
    kubelet.stop(container)
    kubelet.remove(container)


def test_own_image_as_a_volume(kubelet: Client, pod: Pod) -> None:
    """The same layers below the rootfs and below the volume."""
    assert said(kubelet, pod, ["/vol/busybox", "ls", "/vol/busybox"], mounts=[volume(BUSYBOX, "bin")]) == ["/vol/busybox"]

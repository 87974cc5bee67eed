"""Mounts of images: which can be, and what becomes of the names in them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from agent.config.handlers import RuntimeHandler
from agent.errdefs import FailedPrecondition, InvalidArgument, NotFound, OrlopError
from agent.images.documents import ImageConfig
from agent.images.image import Image
from agent.images.service import ImageService
from agent.linux.mounts import Mount
from agent.pods import image_volumes
from cri.api import api_pb2 as cri

ID = "sha256:" + "1" * 64
RUNC = RuntimeHandler("runc")


class Images:
    """One image, `data`, with one directory, `etc`."""

    def resolve(self, name: str) -> Image:
        if name not in ("data", ID):
            raise NotFound(f"image {name!r} is not on this node")
        return Image(ID, ("docker.io/library/data:latest",), (), 1, (), "", ImageConfig(), ())

    async def volume(self, image_id: str, sub_path: str) -> Mount:
        assert image_id == ID
        if sub_path not in ("", "etc"):
            raise NotFound(f"{sub_path!r} is no directory of the image")
        return Mount("overlay", "overlay", ("ro", f"lowerdir={sub_path}"))


IMAGES = cast(ImageService, Images())


def config(*mounts: cri.Mount) -> cri.ContainerConfig:
    return cri.ContainerConfig(metadata=cri.ContainerMetadata(name="app"), mounts=mounts)


def mount(image: str = "data", **fields: Any) -> cri.Mount:
    return cri.Mount(**{"container_path": "/data", "image": cri.ImageSpec(image=image), "readonly": True, **fields})


async def test_images_are_named_by_their_ids() -> None:
    host = cri.Mount(container_path="/tmp", host_path="/tmp")
    asked = config(host, mount(), mount(ID, container_path="/etc", image_sub_path="etc"))
    asked.mounts[2].image.user_specified_image = "quay.io/data:1"
    before = asked.SerializeToString()
    made = image_volumes.resolved(IMAGES, RUNC, asked)
    assert asked.SerializeToString() == before
    assert made.mounts[0] == host
    assert made.mounts[1].image == cri.ImageSpec(image=ID, image_ref=ID, user_specified_image="data")
    assert made.mounts[2].image == cri.ImageSpec(image=ID, image_ref=ID, user_specified_image="quay.io/data:1")
    assert image_volumes.image_ids(made) == [ID, ID]
    assert {key: volume.options[1] for key, volume in (await image_volumes.mounts(IMAGES, made)).items()} == {
        (ID, ""): "lowerdir=", (ID, "etc"): "lowerdir=etc",
    }  # fmt: skip


async def test_without_images_nothing_changes() -> None:
    asked = config(cri.Mount(container_path="/tmp", host_path="/tmp"))
    assert image_volumes.resolved(IMAGES, RuntimeHandler("kata", "io.containerd.kata.v2"), asked) is asked
    assert image_volumes.image_ids(asked) == []
    assert await image_volumes.mounts(IMAGES, asked) == {}


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (mount(""), InvalidArgument, "image.image must not be empty"),
        (mount("other"), NotFound, "image 'other' is not on this node"),
        (mount(readonly=False), InvalidArgument, "readonly must be true"),
        (mount(host_path="/tmp"), InvalidArgument, "host_path '/tmp' exclude each other"),
        (mount(propagation=cri.PROPAGATION_BIDIRECTIONAL), InvalidArgument, "BIDIRECTIONAL"),
        (mount(image_sub_path="../x"), InvalidArgument, "image_sub_path '../x'"),
        (mount(image_sub_path="a/../../x"), InvalidArgument, "image_sub_path 'a/../../x'"),
        (mount(image_sub_path="/etc"), InvalidArgument, "image_sub_path '/etc'"),
        (mount(image_sub_path="a\0b"), InvalidArgument, "image_sub_path"),
        (mount(image_sub_path="a" * 256), InvalidArgument, "image_sub_path"),
        (mount(image_sub_path="nowhere"), NotFound, "'nowhere' is no directory"),
    ],
)
async def test_mounts_that_can_not_be(asked: cri.Mount, error: type[OrlopError], words: str) -> None:
    with pytest.raises(error, match=words) as failure:
        await image_volumes.mounts(IMAGES, image_volumes.resolved(IMAGES, RUNC, config(asked)))
    assert str(failure.value).startswith("ImageVolumeMountFailed: config.mounts['/data']: "), "the kubelet's users look for that"


def test_a_handler_without_an_engine_on_this_host() -> None:
    with pytest.raises(FailedPrecondition, match="runtime handler 'kata' has no engine"):
        image_volumes.resolved(IMAGES, RuntimeHandler("kata", "io.containerd.kata.v2"), config(mount()))

"""ImageService: the CRI's view of `agent.images`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

from agent.errdefs import FailedPrecondition, InvalidArgument, Unknown
from agent.images.image import Image
from agent.pods.context import Pods
from agent.pods.wire import chunks, element
from agent.registry import Credentials, RegistryUnavailable
from cri.api import api_pb2 as cri
from cri.server.edge import sentence

_REGISTRY_UNAVAILABLE = "RegistryUnavailable"
"""https://github.com/kubernetes/cri-api, pkg/errors: what a message begins with, since Go's clients lose the class of an error.
The kubelet's client passes on the message alone, as which it can be known, only of an error with the code UNKNOWN."""


async def list_images(pods: Pods, request: cri.ListImagesRequest) -> cri.ListImagesResponse:
    """CRI ListImages, from memory; a filter names one image."""
    return cri.ListImagesResponse(images=[_image(image) for image in pods.images.images(request.filter.image.image)])


async def stream_images(pods: Pods, request: cri.StreamImagesRequest) -> AsyncGenerator[bytes, None]:
    """CRI StreamImages: ListImages in several messages, for nodes whose list is too long for one."""
    shown = (_image(image) for image in pods.images.images(request.filter.image.image))
    for chunk in chunks(element(1, image.SerializeToString()) for image in shown):
        yield chunk


async def image_status(pods: Pods, request: cri.ImageStatusRequest) -> cri.ImageStatusResponse:
    """CRI ImageStatus. An image that isn't on the node is an empty response, as api.proto wants it.

    Raises:
        InvalidArgument: no name.
    """
    image = pods.images.find(_name(request.image))
    if image is None:
        return cri.ImageStatusResponse()
    info = {}
    if request.verbose:
        config = json.loads(await pods.images.config_document(image.id))
        info["info"] = json.dumps({"chainID": image.chain_id, "imageSpec": config})
    return cri.ImageStatusResponse(image=_image(image), info=info)


async def pull_image(pods: Pods, request: cri.PullImageRequest) -> cri.PullImageResponse:
    """CRI PullImage. `image_ref` is the image's id, as everywhere. A call that is cancelled ends the pull, unless others wait for it.

    Raises:
        Unknown: the registry can't be reached or is out of order; with the prefix by which the kubelet tells its users so.
        as `ImageService.pull`.
    """
    auth = request.auth
    credentials = Credentials.from_auth_config(
        username=auth.username,
        password=auth.password,
        auth=auth.auth,
        server_address=auth.server_address,
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
    )
    try:
        image = await pods.images.pull(_name(request.image), credentials)
    except RegistryUnavailable as error:
        raise Unknown(f"{_REGISTRY_UNAVAILABLE}: {sentence(error)}") from error
    return cri.PullImageResponse(image_ref=image.id)


async def remove_image(pods: Pods, request: cri.RemoveImageRequest) -> cri.RemoveImageResponse:
    """CRI RemoveImage. Idempotent. Containers keep the layers they stand on.

    Raises:
        InvalidArgument: no name.
        FailedPrecondition: the image is the one that sandboxes run.
    """
    name = _name(request.image)
    image = pods.images.find(name)
    if image is not None and image.pinned and any(live.record.has_task for live in pods.registry.sandboxes):
        raise FailedPrecondition(f"image {name!r} is the sandbox image, and sandboxes run on it")
    await pods.supervisor.detached(pods.images.remove(name), name=f"RemoveImage {name}")
    return cri.RemoveImageResponse()


async def image_fs_info(pods: Pods, request: cri.ImageFsInfoRequest) -> cri.ImageFsInfoResponse:
    """CRI ImageFsInfo: images and writable layers share one file system."""
    info = pods.images.fs_info()
    usage = cri.FilesystemUsage(
        timestamp=info.timestamp_ns,
        fs_id=cri.FilesystemIdentifier(mountpoint=info.mountpoint),
        used_bytes=cri.UInt64Value(value=info.used_bytes),
        inodes_used=cri.UInt64Value(value=info.inodes_used),
    )
    return cri.ImageFsInfoResponse(image_filesystems=[usage], container_filesystems=[usage])


def _name(image: cri.ImageSpec) -> str:
    if not image.image:
        raise InvalidArgument("image.image must not be empty")
    return image.image


def _image(image: Image) -> cri.Image:
    shown = cri.Image(
        id=image.id,
        repo_tags=image.tags,
        repo_digests=image.digests,
        size=image.size,
        username=image.config.username,
        pinned=image.pinned,
    )
    if image.config.uid is not None:
        shown.uid.value = image.config.uid
    return shown

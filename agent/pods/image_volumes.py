"""Image volumes: images whose files a container mounts (KEP-4639), and what ContainerStatus says of them (KEP-5365).

The engine makes the mount, inside of the container; `agent.snapshots.volumes` says why. So it takes a shim that drives an engine
on this kernel. CreateContainer asks in this order: `resolved`, which images are meant; then the container's SNAPSHOT is prepared,
which keeps their layers as it keeps the rootfs's, whatever RemoveImage does; then `mounts`, how to mount them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from agent.config.handlers import RuntimeHandler
from agent.errdefs import FailedPrecondition, InvalidArgument, OrlopError
from agent.images.service import ImageService
from agent.linux.mounts import Mount
from agent.pods.checks import is_path
from agent.runtime.v2.options import is_runc
from cri.api import api_pb2 as cri

_FAILED = "ImageVolumeMountFailed"
"""https://github.com/kubernetes/cri-api, pkg/errors: what a message begins with, since Go's clients lose the class of an error."""


def resolved(images: ImageService, handler: RuntimeHandler, config: cri.ContainerConfig) -> cri.ContainerConfig:
    """`config` with the id of each image that it mounts, as `image` and `image_ref`. ContainerStatus shows it so: by the one the
    kubelet's garbage collection knows an image in use, the other becomes part of the pod's status.

    Raises:
        InvalidArgument: a mount that an image can't be; the message names the field.
        NotFound: the image is not on the node.
        FailedPrecondition: the handler can't mount images.
    """
    if not _image_mounts(config):
        return config
    made = cri.ContainerConfig()
    made.CopyFrom(config)
    for mount in _image_mounts(made):
        with _told(mount):
            _check(mount, handler)
            image = images.resolve(mount.image.image)
        if not mount.image.user_specified_image:
            mount.image.user_specified_image = mount.image.image
        mount.image.image = mount.image.image_ref = image.id
    return made


def image_ids(config: cri.ContainerConfig) -> list[str]:
    """The images that a resolved `config` mounts."""
    return [mount.image.image for mount in _image_mounts(config)]


async def mounts(images: ImageService, config: cri.ContainerConfig) -> dict[tuple[str, str], Mount]:
    """How to mount them, by image id and sub path; the container's SNAPSHOT keeps them by now.

    Raises:
        NotFound: an image has no such directory.
        InvalidArgument: it can't be mounted.
    """
    made = {}
    for mount in _image_mounts(config):
        with _told(mount):
            made[mount.image.image, mount.image_sub_path] = await images.volume(mount.image.image, mount.image_sub_path)
    return made


def _image_mounts(config: cri.ContainerConfig) -> list[cri.Mount]:
    return [mount for mount in config.mounts if mount.HasField("image")]


@contextmanager
def _told(mount: cri.Mount) -> Iterator[None]:
    try:
        yield
    except OrlopError as error:
        raise type(error)(f"{_FAILED}: config.mounts[{mount.container_path!r}]: {error}") from error


def _check(mount: cri.Mount, handler: RuntimeHandler) -> None:
    if not mount.image.image:
        raise InvalidArgument("image.image must not be empty")
    if mount.host_path:
        raise InvalidArgument(f"image and host_path {mount.host_path!r} exclude each other")
    if not mount.readonly:
        raise InvalidArgument("readonly must be true: images are mounted read-only")
    if mount.propagation == cri.PROPAGATION_BIDIRECTIONAL:
        raise InvalidArgument("propagation BIDIRECTIONAL: an image is mounted in the container alone, nothing reaches the host from there")
    below = mount.image_sub_path
    if below and (below.startswith("/") or not is_path(f"/{below}")):
        raise InvalidArgument(f"image_sub_path {below[:80]!r} must be relative and stay inside of the image")
    if not is_runc(handler):
        raise FailedPrecondition(f"runtime handler {handler.name!r} has no engine on this host that could mount an image")

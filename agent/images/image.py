"""An image of this node, and its record in the store. Made and kept by `agent.images.service`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from agent.images.documents import ImageConfig


@dataclass(frozen=True)
class Image:
    """What the node knows of an image; a value, replaced as a whole when a tag comes or goes."""

    id: str
    """Digest of the config: what CRI calls the image's id and `image_ref`."""
    tags: tuple[str, ...]
    """"docker.io/library/busybox:1.36", sorted."""
    digests: tuple[str, ...]
    """"docker.io/library/busybox@sha256:...", sorted; of manifests."""
    size: int
    """Bytes that its layers and documents take on disk, shared ones included."""
    layers: tuple[str, ...]
    """Diff ids, base first."""
    chain_id: str
    """Of the top layer; empty for an image without layers."""
    config: ImageConfig
    manifests: tuple[str, ...]
    """Digests of its manifests in the content store."""
    pinned: bool = False
    """Whether the kubelet is asked to leave it alone."""


@dataclass(frozen=True)
class ImageRecord:
    """What is stored of an image under its id; everything else is in its config blob."""

    tags: tuple[str, ...]
    digests: tuple[str, ...]
    manifests: tuple[str, ...]

    def to_json(self) -> bytes:
        return json.dumps({"tags": self.tags, "digests": self.digests, "manifests": self.manifests}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> ImageRecord:
        """Raises ValueError, KeyError or TypeError for what was not written by `to_json`."""
        fields = json.loads(data)
        return cls(*(tuple(str(entry) for entry in fields[name]) for name in ("tags", "digests", "manifests")))

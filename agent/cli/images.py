"""`orlop image import|ls|rm`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from agent.aio import in_thread
from agent.cli import output
from agent.errdefs import NotFound
from cri.api import admin_pb2
from cri.api import api_pb2 as cri
from cri.client import Client


async def import_archive(client: Client, path: Path, form: str) -> None:
    """Import an OCI layout or a `docker save` archive; the daemon reads it, so the path is made absolute."""
    answer = await client.call("ImportImage", admin_pb2.ImportImageRequest(path=str(await in_thread(path.resolve))))
    rows = [{"id": image.id, "tags": list(image.tags)} for image in answer.images]
    output.show(rows, ("id", "tags"), form)


async def list_images(client: Client, form: str) -> None:
    images = (await client.call("ListImages", cri.ListImagesRequest())).images
    rows = [
        {
            "tags": list(image.repo_tags),
            "id": image.id,
            "size": image.size if form == "json" else output.size(image.size),
            "pinned": image.pinned,
        }
        for image in images
    ]
    output.show(rows, ("tags", "id", "size", "pinned"), form)


async def remove(client: Client, references: list[str], form: str) -> None:
    """Raises NotFound for the first reference that names no image."""
    for reference in references:
        spec = cri.ImageSpec(image=reference)
        if not (await client.call("ImageStatus", cri.ImageStatusRequest(image=spec))).HasField("image"):
            raise NotFound(f"image {reference!r} is not on this node")
        await client.call("RemoveImage", cri.RemoveImageRequest(image=spec))
        if form != "json":
            click.echo(f"{reference} removed")
    if form == "json":
        click.echo(json.dumps({"removed": references}))

"""`orlop image pull`: the CRI's PullImage, with bars that the admin service's Pulls moves."""

from __future__ import annotations

import asyncio

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from agent.cli import output
from agent.errdefs import OrlopError
from cri.api import admin_pb2
from cri.api import api_pb2 as cri
from cri.client import Client

_INTERVAL = 0.2
"""Seconds between two looks at how far the pull is."""


async def pull(client: Client, reference: str, creds: str, form: str) -> None:
    """Pull an image; Ctrl-C ends the pull, unless others wait for it. `creds` is "user:password", or empty.

    Raises:
        as the CRI verb.
    """
    user, _, password = creds.partition(":")
    request = cri.PullImageRequest(image=cri.ImageSpec(image=reference), auth=cri.AuthConfig(username=user, password=password))
    pulling = asyncio.create_task(client.call("PullImage", request), name="pull")
    try:
        if form == "table" and (console := Console(stderr=True)).is_terminal:
            await _show_progress(client, reference, pulling, console)
        image_id = (await pulling).image_ref
    finally:
        pulling.cancel()
    output.show([{"image": reference, "id": image_id}], ("image", "id"), form)


async def _show_progress(client: Client, reference: str, pulling: asyncio.Task[cri.PullImageResponse], console: Console) -> None:
    """Until the pull has ended. On a socket without the admin service, another runtime's, there are no bars."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TextColumn("{task.fields[phase]}"))
    bars: dict[int, TaskID] = {}  # by position: an image may have the same layer twice
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        while not (await asyncio.wait([pulling], timeout=_INTERVAL))[0]:
            try:
                answer = await client.call("Pulls", admin_pb2.PullsRequest(image=reference))
            except OrlopError:
                return
            for position, layer in enumerate(answer.pulls[0].layers if answer.pulls else ()):
                if position not in bars:
                    bars[position] = progress.add_task(layer.digest.removeprefix("sha256:")[:12], total=layer.size, phase=layer.phase)
                here = layer.size if layer.phase == "done" else layer.offset
                progress.update(bars[position], completed=here, phase=layer.phase)
            progress.refresh()
        for bar in bars.values():  # the last look was a moment before the end
            if not pulling.cancelled() and pulling.exception() is None:
                progress.update(bar, completed=progress.tasks[bar].total, phase="done")


def ask_password(creds: str) -> str:
    """`creds` with the password, asked for on the terminal if it was left out."""
    if not creds or ":" in creds:
        return creds
    return f"{creds}:{click.prompt('Password', hide_input=True, err=True)}"

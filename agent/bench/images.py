"""Pull and unpack of a large image, from its registry."""

from __future__ import annotations

import time

from agent.bench.session import Session
from agent.bench.target import Target
from agent.errdefs import FailedPrecondition
from cri.api import api_pb2 as cri


async def measure(session: Session) -> None:
    await session.rounds("images", session.plan.turns, _turn)


async def _turn(target: Target) -> None:
    """An image that was there before is there afterwards."""
    image = target.plan.large_image
    if not image:
        raise FailedPrecondition("no --large-image was given")
    theirs = await target.has_image(image) and image not in target.images
    await target.call("RemoveImage", cri.RemoveImageRequest(image=cri.ImageSpec(image=image)))
    started = time.perf_counter()
    await target.pull(image, ours=not theirs)
    target.add("pull", time.perf_counter() - started)

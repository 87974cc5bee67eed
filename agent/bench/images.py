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
    image = target.plan.large_image
    if not image:
        raise FailedPrecondition("no --large-image was given")
    spec = cri.ImageSpec(image=image)
    await target.call("RemoveImage", cri.RemoveImageRequest(image=spec))
    started = time.perf_counter()
    await target.have_image(image)
    target.add("pull", time.perf_counter() - started)

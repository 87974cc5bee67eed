"""`orlop.admin.v1`: the ledger for `orlop audit`, history for people, image import, progress of pulls; failpoints for tests."""

from __future__ import annotations

import json
from pathlib import Path

from agent import failpoints as points
from agent.errdefs import FailedPrecondition, InvalidArgument, OrlopError
from agent.pods.context import Pods
from cri.api import admin_pb2


async def ledger(pods: Pods, request: admin_pb2.LedgerRequest) -> admin_pb2.LedgerResponse:
    """Every resource in the ledger, from memory."""
    return admin_pb2.LedgerResponse(
        resources=[
            admin_pb2.Resource(
                kind=resource.kind,
                key=resource.key,
                sandbox=resource.sandbox,
                container=resource.container,
                state=resource.state,
                data=json.dumps(dict(resource.data)),
                attempts=resource.attempts,
                error=resource.error,
                created=resource.created,
                failed_since=resource.failed_since or 0,
                next_attempt=resource.next_attempt or 0,
            )
            for resource in pods.ledger.all()
        ]
    )


async def import_image(pods: Pods, request: admin_pb2.ImportImageRequest) -> admin_pb2.ImportImageResponse:
    """Import an archive; the path is the node's.

    Raises:
        InvalidArgument: not an absolute path, or not an image archive.
        NotFound: nothing at the path.
        DataLoss: a blob whose digest is not what the archive says.
    """
    if not request.path.startswith("/"):
        raise InvalidArgument(f"path {request.path!r} is not an absolute path")
    # Detached: an import that the client gave up on still ends in a whole image or in nothing.
    try:
        images = await pods.supervisor.detached(pods.images.import_archive(Path(request.path)), name=f"import {request.path}")
    except OrlopError as error:
        if request.path not in str(error):
            error.add_note(f"nothing of {request.path} was imported")
        raise
    return admin_pb2.ImportImageResponse(images=[admin_pb2.ImportedImage(id=image.id, tags=image.tags) for image in images])


async def pulls(pods: Pods, request: admin_pb2.PullsRequest) -> admin_pb2.PullsResponse:
    """Image pulls under way, from memory.

    Raises:
        InvalidArgument: `image` is no reference.
    """
    return admin_pb2.PullsResponse(
        pulls=[
            admin_pb2.Pull(
                image=progress.name,
                layers=[
                    admin_pb2.PulledLayer(digest=layer.digest, size=layer.size, offset=layer.offset, phase=layer.phase)
                    for layer in progress.layers
                ],
            )
            for progress in pods.images.pulls(request.image)
        ]
    )


async def history(pods: Pods, request: admin_pb2.HistoryRequest) -> admin_pb2.HistoryResponse:
    """What happened to the resources of a sandbox or container, or to what has this key, from the ledger's journal.

    Raises:
        InvalidArgument: no id.
        Unavailable: the journal can't be read.
    """
    if not request.id:
        raise InvalidArgument("id must not be empty")
    entries = await pods.ledger.history(sandbox=request.id, container=request.id, key=request.id)
    return admin_pb2.HistoryResponse(
        transitions=[
            admin_pb2.Transition(
                time=entry.at, kind=entry.kind, key=entry.key, container=entry.container, state=entry.transition, detail=entry.detail
            )
            for entry in entries
        ]
    )


async def failpoints(pods: Pods, request: admin_pb2.FailpointsRequest) -> admin_pb2.FailpointsResponse:
    """Tell the failpoints that were passed, and switch others on.

    Raises:
        FailedPrecondition: this daemon is not one of a test.
        InvalidArgument: not in the language of `agent.failpoints`.
    """
    if not points.ALLOWED:
        raise FailedPrecondition("failpoints can be switched on in a daemon only that was started with ORLOP_FAILPOINTS in its environment")
    passed = points.passed()
    if request.HasField("configure"):
        points.configure(request.configure)
    return admin_pb2.FailpointsResponse(passed=passed)

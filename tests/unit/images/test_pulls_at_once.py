"""Pulls beside each other, that are given up, or fail at any of their steps."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from agent import failpoints, metrics
from agent.errdefs import Internal, OrlopError, PermissionDenied, Unavailable
from agent.images.progress import Phase
from agent.registry import Credentials
from tests.unit.images.node import BASE, NOISE, ImageNode, nothing_left, until
from tests.unit.registry.fake import FakeRegistry, Reply, Seen, basic, demand

# Several at once


async def test_equal_pulls_are_one(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [BASE, {"x": b""}], "latest")
    names = [f"{registry.domain}/app", f"{registry.domain}/app:latest"] * 2
    images = await asyncio.gather(*map(node.images.pull, names))
    assert len(set(map(id, images))) == 1
    assert len(registry.requests("HEAD")) == 1
    assert len(node.runner.unpacked) == 2


async def test_other_credentials_are_another_pull(node: ImageNode, registry: FakeRegistry) -> None:
    """Who may not have the image must not get it because somebody else is pulling it."""
    registry.add_image("app", [BASE], "v1")

    def guard(seen: Seen) -> Reply | None:
        return None if seen.headers.get("authorization") == "Bearer good" else Reply(401, headers={"WWW-Authenticate": "Bearer realm=x"})

    registry.rule(guard)
    name = f"{registry.domain}/app:v1"
    good, bad = Credentials(registry_token="good"), Credentials(registry_token="bad")
    outcomes = await asyncio.gather(*(node.images.pull(name, one) for one in (good, bad, good)), return_exceptions=True)
    assert isinstance(outcomes[1], PermissionDenied)
    assert outcomes[0] is outcomes[2]
    for by in (name, node.images.resolve(name).digests[0]):  # nor because it is here already
        with pytest.raises(PermissionDenied):
            await node.images.pull(by, bad)


async def test_credentials_are_written_nowhere(node: ImageNode, registry: FakeRegistry, capfd: pytest.CaptureFixture[str]) -> None:
    """Not to the log, a metric, the ledger, a record or any other file, be it that the pull works or not."""
    registry.add_image("app", [BASE], "v1")
    secrets = Credentials(username="me", password="s3cret", identity_token="refr3sh")
    registry.rule(Reply(200, b'{"token": "gr4nted"}'), path="/token")
    registry.rule(demand(f'Bearer realm="http://{registry.domain}/token"', accept="Bearer gr4nted"))
    await node.images.pull(f"{registry.domain}/app:v1", secrets)
    registry.rules.clear()
    registry.rule(demand(f'Bearer realm="http://{registry.domain}/token"', accept="Bearer gr4nted"))
    registry.rule(lambda seen: Reply(403, json.dumps({"errors": [{"message": str(seen)}]}).encode()), path="/manifests/v2")
    for name in ("app:v1", "app:v2"):
        with pytest.raises(OrlopError):
            await node.images.pull(f"{registry.domain}/{name}", secrets)
    written = [path.read_bytes() for path in node.root.rglob("*") if path.is_file()]
    shown = "".join(capfd.readouterr())
    assert "image pulled" in shown
    everything = b"".join([*written, shown.encode(), generate_latest(metrics.registry)])
    for secret in (b"s3cret", b"refr3sh", b"gr4nted", basic(secrets).partition(" ")[2].encode()):
        assert secret not in everything


def hold_layers(registry: FakeRegistry) -> None:
    """Downloads begin, and don't end."""

    def hold(seen: Seen) -> Reply | None:
        blob = registry.blobs.get(seen.path.rpartition("/")[2], b"")
        return Reply(200, blob, stall=len(blob) // 2) if len(blob) > 100_000 else None

    registry.rule(hold, path="/blobs/")


async def test_one_of_two_callers_gives_up(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [{"big": NOISE}], "v1")
    hold_layers(registry)
    name = f"{registry.domain}/app:v1"
    first, second = (asyncio.create_task(node.images.pull(name)) for _ in range(2))
    await until(lambda: any(layer.offset for pull in node.images.pulls() for layer in pull.layers))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(node.images.pulls()) == 1
    third = asyncio.create_task(node.images.pull(name))
    await asyncio.sleep(0)
    for task in (second, third):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    nothing_left(node)  # by the time that the last one returns
    registry.rules.clear()
    assert (await node.images.pull(name)).tags == (name,)


async def test_who_comes_while_a_pull_is_being_given_up_gets_one_of_its_own(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [{"big": NOISE}], "v1")
    hold_layers(registry)
    name = f"{registry.domain}/app:v1"
    first = asyncio.create_task(node.images.pull(name))
    await until(lambda: any(layer.offset for pull in node.images.pulls() for layer in pull.layers))
    registry.rules.clear()
    first.cancel()
    await asyncio.sleep(0)
    second = await node.images.pull(name)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert node.images.images() == [second]
    assert node.store.ledger.all() == []


async def test_another_pull_takes_over_a_layer_that_was_given_up(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [{"big": NOISE}], "v1")
    registry.add_image("app", [{"big": NOISE}, {"x": b""}], "v2")
    hold_layers(registry)
    first = asyncio.create_task(node.images.pull(f"{registry.domain}/app:v1"))
    await until(lambda: any(layer.offset for pull in node.images.pulls() for layer in pull.layers))
    second = asyncio.create_task(node.images.pull(f"{registry.domain}/app:v2"))
    await until(lambda: [layer.phase for pull in node.images.pulls()[1:] for layer in pull.layers][:1] == [Phase.WAITING])
    registry.rules.clear()
    first.cancel()
    assert len((await second).layers) == 2
    assert [image.tags for image in node.images.images()] == [(f"{registry.domain}/app:v2",)]


async def test_an_image_that_is_removed_while_it_is_pulled_again(node: ImageNode, registry: FakeRegistry) -> None:
    manifest = registry.add_image("app", [BASE])
    name = f"{registry.domain}/app@{manifest}"
    image = await node.images.pull(name)
    registry.gates["HEAD"] = asyncio.Event()
    pull = asyncio.create_task(node.images.pull(name))
    await until(lambda: registry.requests("HEAD"))
    await node.images.remove(name)
    registry.gates["HEAD"].set()
    assert await pull == image
    await node.images.remove(name)
    nothing_left(node)


async def test_what_a_running_pull_has_already_stays_whatever_is_removed_beside_it(node: ImageNode, registry: FakeRegistry) -> None:
    """Its documents, and the layer that it shares with an image that goes; nothing refers to either yet."""
    registry.add_image("old", [BASE], "v1")
    registry.add_image("app", [BASE, {"big": NOISE}], "v1")
    old, app = (f"{registry.domain}/{name}:v1" for name in ("old", "app"))
    await node.images.pull(old)
    hold_layers(registry)
    pull = asyncio.create_task(node.images.pull(app))
    await until(lambda: any(layer.offset for running in node.images.pulls() for layer in running.layers))
    await until(lambda: len(node.content.list()) == 4)  # config and manifest of each
    before = node.content.list()
    await node.images.remove(old)
    await node.images._collect()  # as the end of a container does
    assert node.content.list() == before
    assert node.below("snapshots/layers") == 1
    registry.rules.clear()
    pull.cancel()
    await asyncio.wait([pull])
    nothing_left(node)  # with the last pull goes what only it has kept


async def test_limits(tmp_path: Path, registry: FakeRegistry) -> None:
    node = await ImageNode(tmp_path, parallel_pulls=1).start()
    for app in ("one", "two"):
        registry.add_image(app, [{f"{app}{number}": NOISE[: 200_000 + number]} for number in range(6)], "v1")
    hold_layers(registry)
    pulls = [asyncio.create_task(node.images.pull(f"{registry.domain}/{app}:v1")) for app in ("one", "two")]
    await until(lambda: registry.busy == 3)
    await asyncio.sleep(0.02)  # enough for a fourth to come, if any did
    assert registry.busy == 3
    assert len(node.images.pulls()) == 2
    assert [len(pull.layers) for pull in node.images.pulls()] == [6, 0]
    for pull in pulls:
        pull.cancel()
    await asyncio.wait(pulls)
    nothing_left(node)
    await node.stop()


async def test_the_agent_stops(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [{"big": NOISE}], "v1")
    hold_layers(registry)
    pull = asyncio.create_task(node.images.pull(f"{registry.domain}/app:v1"))
    await until(lambda: any(layer.offset for pull in node.images.pulls() for layer in pull.layers))
    await node.images.stop_pulls()
    with pytest.raises(Unavailable, match=r"pull of .*/app:v1 is given up: the agent stops"):
        await pull
    with pytest.raises(Unavailable, match="is not begun"):
        await node.images.pull(f"{registry.domain}/app:v1")
    nothing_left(node)


async def test_progress(node: ImageNode, registry: FakeRegistry) -> None:
    registry.add_image("app", [BASE, {"big": NOISE}], "v1")
    registry.add_image("base", [BASE], "v1")
    await node.images.pull(f"{registry.domain}/base:v1")
    hold_layers(registry)
    pull = asyncio.create_task(node.images.pull(f"{registry.domain}/app:v1"))
    await until(lambda: any(layer.offset for pull in node.images.pulls() for layer in pull.layers))
    (progress,) = node.images.pulls()
    assert progress.name == f"{registry.domain}/app:v1"
    here, coming = progress.layers
    assert (here.phase, coming.phase) == (Phase.DONE, Phase.DOWNLOADING)
    assert 0 < coming.offset < coming.size == len(registry.blobs[coming.digest])
    pull.cancel()
    await asyncio.wait([pull])
    assert node.images.pulls() == []


# Every step


POINTS = [
    "store.intend.commit", "images.import.intend", "content.ingest.create", "content.ingest.rename", "snapshots.unpack.worker",
    "snapshots.commit.rename", "images.import.put",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("nth", [1, 2])
async def test_failure_at_each_step(node: ImageNode, registry: FakeRegistry, point: str, nth: int) -> None:
    registry.add_image("app", [BASE, {"x": b""}], "v1")
    failpoints.configure(f"{point}={nth}*error")
    try:
        image = await node.images.pull(f"{registry.domain}/app:v1")
    except Internal:
        nothing_left(node)
    else:
        assert nth == 2  # that step is passed only once
        await node.images.remove(image.id)
    failpoints.configure("")
    assert await node.images.pull(f"{registry.domain}/app:v1")


@pytest.mark.parametrize("point", ["snapshots.delete_layer.rename", "content.delete.unlink"])
@pytest.mark.parametrize("nth", [1, 2])
async def test_what_a_removal_could_not_delete_is_in_nobodys_way(node: ImageNode, registry: FakeRegistry, point: str, nth: int) -> None:
    """A layer's directory that nobody knows of any more would keep the layer from being committed again."""
    registry.add_image("app", [BASE, {"x": b""}], "v1")
    name = f"{registry.domain}/app:v1"
    for again in (node.images.pull, node.images.remove):
        await node.images.pull(name)
        failpoints.configure(f"{point}={nth}*error")
        await node.images.remove(name)
        assert failpoints.passed().count(point) >= nth
        failpoints.configure("")
        assert node.left()
        await again(name)
    nothing_left(node)


@pytest.mark.parametrize("point", [point for point in POINTS if not point.endswith("put")])
async def test_cancellation_at_each_step(node: ImageNode, registry: FakeRegistry, point: str) -> None:
    registry.add_image("app", [BASE, {"x": b""}], "v1")
    failpoints.configure(f"{point}=hang")
    task = asyncio.create_task(node.images.pull(f"{registry.domain}/app:v1"))
    await until(lambda: point in failpoints.passed())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    failpoints.configure("")
    nothing_left(node)

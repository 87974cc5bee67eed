"""PullImage: what becomes of an AuthConfig, and what the kubelet is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.errdefs import InvalidArgument, NotFound, OrlopError, Unavailable, Unknown
from agent.pods.context import Pods
from agent.registry import Credentials, RegistryUnavailable
from cri.api import api_pb2 as cri
from cri.server.images import pull_image


class FakeImages:
    def __init__(self, error: OrlopError | None = None) -> None:
        self.error = error
        self.asked: list[tuple[str, Credentials]] = []

    async def pull(self, name: str, credentials: Credentials) -> Any:
        self.asked.append((name, credentials))
        if self.error:
            raise self.error
        return SimpleNamespace(id="sha256:1234")


def with_images(images: FakeImages) -> Pods:
    return cast(Pods, SimpleNamespace(images=images))


async def test_the_image_and_who_asks() -> None:
    images = FakeImages()
    auth = cri.AuthConfig(username="me", password="s3cret", identity_token="i", registry_token="r", server_address="https://quay.io/v1")
    request = cri.PullImageRequest(image=cri.ImageSpec(image="app:1"), auth=auth)
    assert (await pull_image(with_images(images), request)).image_ref == "sha256:1234"
    assert images.asked == [("app:1", Credentials("me", "s3cret", "i", "r", "quay.io"))]
    await pull_image(with_images(images), cri.PullImageRequest(image=cri.ImageSpec(image="app:1")))
    assert images.asked[1] == ("app:1", Credentials())


async def test_requests_that_are_wrong() -> None:
    images = FakeImages()
    with pytest.raises(InvalidArgument, match=r"image\.image must not be empty"):
        await pull_image(with_images(images), cri.PullImageRequest())
    with pytest.raises(InvalidArgument, match=r"auth\.auth is not base64"):
        await pull_image(with_images(images), cri.PullImageRequest(image=cri.ImageSpec(image="a"), auth=cri.AuthConfig(auth="!")))
    assert images.asked == []


async def test_the_kubelet_knows_a_registry_that_is_down_by_a_prefix() -> None:
    request = cri.PullImageRequest(image=cri.ImageSpec(image="app:1"))
    down = RegistryUnavailable("https://quay.io can't be reached")
    down.add_note("before that: https://mirror.test can't be reached")
    images = FakeImages(down)
    for _ in range(2):  # the callers of one pull get the same error
        with pytest.raises(Unknown) as raised:  # of any other code it sees "rpc error: code = ..." before the prefix
            await pull_image(with_images(images), request)
        assert str(raised.value) == (
            "RegistryUnavailable: https://quay.io can't be reached; before that: https://mirror.test can't be reached"
        )
    for error in (NotFound("it is not there"), Unavailable("the agent stops")):
        with pytest.raises(type(error), match=r"^(it is not there|the agent stops)$"):
            await pull_image(with_images(FakeImages(error)), request)

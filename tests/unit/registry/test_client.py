"""The client against a registry that is well, and one that isn't."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from urllib.parse import parse_qs

import pytest

from agent import timeouts
from agent.errdefs import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OrlopError,
    PermissionDenied,
    Unavailable,
    Unknown,
)
from agent.registry import Credentials
from tests.images import digest
from tests.unit.registry.conftest import DATA, DOCUMENT, LIMIT, PASSWORD, Client, fetch, gather
from tests.unit.registry.fake import MANIFEST, FakeRegistry, Reply, Seen, basic, demand, redirect

pytestmark = pytest.mark.usefixtures("filled")


async def test_a_pull(client: Client, registry: FakeRegistry) -> None:
    async with client.open(registry) as repository:
        found = await repository.resolve("1", LIMIT)
        assert found == digest(DOCUMENT)
        assert await repository.manifest(found, LIMIT) == (DOCUMENT, MANIFEST)
        assert await repository.resolve(found, LIMIT) == found
        assert await fetch(repository) == DATA
    assert [seen.method for seen in registry.seen] == ["HEAD", "GET", "HEAD", "GET"]
    for seen in registry.seen:
        assert "authorization" not in seen.headers
        assert seen.headers["accept-encoding"] == "identity"
        assert seen.headers["user-agent"].startswith("orlop/")
        assert "ns" not in seen.query
    assert "application/vnd.docker.distribution.manifest.v2+json" in registry.seen[0].headers["accept"]


@pytest.mark.parametrize("reply", [Reply(405), Reply(501), Reply(200, DOCUMENT, {"Content-Type": MANIFEST})])
async def test_a_registry_without_head_or_digest(client: Client, registry: FakeRegistry, reply: Reply) -> None:
    registry.rule(reply, method="HEAD")
    async with client.open(registry) as repository:
        assert await repository.resolve("1", LIMIT) == digest(DOCUMENT)


async def test_a_media_type_with_parameters(client: Client, registry: FakeRegistry) -> None:
    registry.rule(Reply(200, DOCUMENT, {"Content-Type": "Application/JSON ; charset=utf-8"}))
    async with client.open(registry) as repository:
        assert (await repository.manifest(digest(DOCUMENT), LIMIT)).media_type == "application/json"


async def test_bytes_that_a_store_calls_encoded(client: Client, registry: FakeRegistry) -> None:
    """Object stores give compressed layers that header; unpacked on the way they would have another digest."""
    registry.rule(Reply(200, DATA, {"Content-Encoding": "gzip"}))
    async with client.open(registry) as repository:
        assert await fetch(repository) == DATA


# Authorization


async def test_basic(client: Client, registry: FakeRegistry) -> None:
    registry.rule(demand("Basic realm=x", accept=basic(PASSWORD)))
    async with client.open(registry, credentials=PASSWORD) as repository:
        await repository.resolve("1", LIMIT)
        await fetch(repository)
    assert [bool(seen.headers.get("authorization")) for seen in registry.seen] == [False, True, True]
    for wrong, sentence in ((Credentials("me", "other"), "does not accept"), (Credentials(), "wants credentials")):
        async with client.open(registry, credentials=wrong) as repository:
            with pytest.raises(PermissionDenied, match=sentence):
                await repository.resolve("1", LIMIT)


async def test_a_token_of_another_host_which_runs_out(client: Client, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    """The token server sees the password, the registry the token, and neither the other's."""
    issued = 0

    def token(seen: Seen) -> Reply:
        nonlocal issued
        assert seen.headers["authorization"] == basic(PASSWORD)
        assert seen.query == {"service": ["reg"], "scope": ["repository:app:pull"]}
        issued += 1
        return Reply(200, json.dumps({"token": f"t{issued}"}).encode())

    mirror.rule(token)
    challenge = f'Bearer realm="http://{mirror.domain}/token",service="reg",scope="repository:app:pull"'
    registry.rule(
        lambda seen: (
            None if seen.headers.get("authorization") == f"Bearer t{issued}" else Reply(401, headers={"WWW-Authenticate": challenge})
        )
    )
    async with client.open(registry, credentials=PASSWORD) as repository:
        await repository.resolve("1", LIMIT)
        assert await asyncio.gather(*(fetch(repository) for _ in range(3))) == [DATA] * 3
        assert issued == 1
        issued = 7  # the first one is not good any more
        assert await asyncio.gather(*(fetch(repository) for _ in range(3))) == [DATA] * 3
        assert issued == 8
    assert not [seen for seen in registry.seen if "Basic" in seen.headers.get("authorization", "")]


async def test_an_identity_token(client: Client, registry: FakeRegistry) -> None:
    registry.rule(Reply(200, b'{"access_token": "t"}'), method="POST", path="/token")
    registry.rule(demand(f'Bearer realm="http://{registry.domain}/token"', accept="Bearer t"))
    async with client.open(registry, credentials=Credentials(identity_token="refr3sh")) as repository:
        await repository.resolve("1", LIMIT)
    (post,) = registry.requests("POST")
    assert parse_qs(post.body.decode())["refresh_token"] == ["refr3sh"]
    assert post.headers["content-type"] == "application/x-www-form-urlencoded"


async def test_tokens_that_are_never_good_enough(client: Client, registry: FakeRegistry) -> None:
    registry.rule(Reply(200, b'{"token": "t"}'), path="/token")
    registry.rule(demand(f'Bearer realm="http://{registry.domain}/token"', accept="nothing"))
    async with client.open(registry) as repository:
        with pytest.raises(PermissionDenied, match="takes none of the tokens"):
            await repository.resolve("1", LIMIT)
    assert len(registry.seen) == 3 + 3


@pytest.mark.parametrize(
    ("reply", "error", "sentence"),
    [
        (Reply(401, b'{"errors": [{"message": "no such\\u001b user"}]}'), PermissionDenied, "token for .*/app with 401: no such user"),
        (Reply(403, b'{"details": "incorrect"}'), PermissionDenied, "refuses token .*: incorrect"),
        (Reply(404), NotFound, "has no token"),
        (Reply(200, b"<html>"), Unknown, "without a token"),
        (Reply(200, bytes(2 << 20)), InvalidArgument, "more than 1048576 bytes"),
        (Reply(307, headers={"Location": "ftp://x/"}), Unknown, "can't be asked for"),
    ],
)
async def test_token_servers_that_fail(
    client: Client, registry: FakeRegistry, reply: Reply, error: type[OrlopError], sentence: str
) -> None:
    registry.rule(reply, path="/token")
    registry.rule(demand(f'Bearer realm="http://{registry.domain}/token"', accept="Bearer t"))
    async with client.open(registry, credentials=PASSWORD) as repository:
        with pytest.raises(error, match=sentence) as raised:
            await repository.resolve("1", LIMIT)
    assert "s3cret" not in str(raised.value)


# Redirects


async def test_a_blob_elsewhere_is_fetched_without_secrets(client: Client, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    client.hosts(f'server = "http://{registry.domain}"\n[header]\nx-secret = "s3cret"')
    signed = f"http://{mirror.domain}/v2/app/blobs/{digest(DATA)}?sig=a%2Fb+c%3d&x=%7e"
    registry.rule(redirect(signed), path="/blobs/")
    registry.rule(demand("Basic", accept=basic(PASSWORD)))
    mirror.blobs[digest(DATA)] = DATA
    mirror.rule(Reply(200, DATA, cut=1 << 20), times=1)
    async with client.open("reg.test", credentials=PASSWORD) as repository:
        await repository.resolve("1", LIMIT)
        assert await fetch(repository) == DATA
    first, second = mirror.seen
    assert f"http://{mirror.domain}{first.target}" == signed
    assert second.headers["range"].startswith("bytes=")
    for seen in mirror.seen:
        assert not {"authorization", "x-secret"} & set(seen.headers)
    for seen in registry.seen[1:]:
        assert {"authorization", "x-secret"} <= set(seen.headers)


async def test_a_redirect_within_the_host_keeps_them(client: Client, registry: FakeRegistry) -> None:
    registry.rule(redirect(f"../../other/blobs/{digest(DATA)}"), path="/app/blobs/")
    registry.rule(demand("Basic", accept=basic(PASSWORD)))
    async with client.open(registry, credentials=PASSWORD) as repository:
        await repository.resolve("1", LIMIT)
        assert await fetch(repository) == DATA
    assert registry.seen[-1].path == f"/v2/other/blobs/{digest(DATA)}"


async def test_a_host_that_was_redirected_to_is_told_no_password(client: Client, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    registry.rule(redirect(f"http://{mirror.domain}/x"), path="/blobs/")
    mirror.rule(Reply(401, headers={"WWW-Authenticate": "Basic"}))
    async with client.open(registry, credentials=PASSWORD) as repository:
        with pytest.raises(PermissionDenied, match=f"http://{mirror.domain} refuses blob .* with 401"):
            await fetch(repository)
    assert len(mirror.seen) == 1


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        ("/v2/app/manifests/1", "redirects more than 10 times"),
        ("", "redirects to no URL"),
        ("http://u:s3cret@127.0.0.1/", "redirects to no URL"),
        ("http://[x/", "redirects to no URL"),
        ("file:///etc/passwd", "can't be asked for"),
    ],
)
async def test_redirects_that_lead_nowhere(client: Client, registry: FakeRegistry, location: str, sentence: str) -> None:
    registry.rule(redirect(location, 302))
    async with client.open(registry) as repository:
        with pytest.raises(Unknown, match=sentence):
            await repository.resolve("1", LIMIT)
    assert len(registry.seen) == (11 if location.startswith("/") else 1)


# Lies


async def test_a_manifest_that_is_too_large(client: Client, registry: FakeRegistry) -> None:
    huge = {"Content-Length": "10000000000", "Docker-Content-Digest": digest(DOCUMENT)}
    registry.rule(Reply(200, headers=huge), method="HEAD")
    registry.rule(Reply(200, b"{", headers=huge, stall=1), path="sha256:")
    async with client.open(registry) as repository:
        with pytest.raises(InvalidArgument, match="has 10000000000 bytes, more than 4194304"):
            await repository.resolve("1", LIMIT)
        with pytest.raises(InvalidArgument, match="more than 4194304 bytes; it is not read"):
            await repository.manifest(digest(DOCUMENT), LIMIT)
    registry.rules.clear()
    registry.rule(Reply(200, bytes(5 << 20), {"Content-Length": "", "Connection": "close"}, stall=5 << 20))
    async with client.open(registry) as repository:
        with pytest.raises(InvalidArgument, match="more than 4194304 bytes; it is not read"):
            await repository.manifest(digest(DOCUMENT), LIMIT)


async def test_a_digest_that_is_a_lie(client: Client, registry: FakeRegistry) -> None:
    registry.rule(Reply(200, b"other", {"Docker-Content-Digest": digest(DOCUMENT)}))
    async with client.open(registry) as repository:
        with pytest.raises(DataLoss, match=f"sends as .*{digest(DOCUMENT)} what has the digest {digest(b'other')}"):
            await repository.manifest(digest(DOCUMENT), LIMIT)
    registry.rules.clear()
    registry.rule(Reply(200, b"other", {"Docker-Content-Digest": digest(b"other")}))
    async with client.open(registry) as repository:
        with pytest.raises(DataLoss, match="what it says has the digest"):
            await repository.resolve(digest(DOCUMENT), LIMIT)
    registry.rules.clear()
    registry.rule(Reply(200, b"other", {"Docker-Content-Digest": "md5:1"}))
    async with client.open(registry) as repository:
        with pytest.raises(InvalidArgument, match="'md5:1' is not a digest"):
            await repository.resolve("1", LIMIT)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_schema_1(client: Client, registry: FakeRegistry, method: str) -> None:
    """Its digest is not that of its bytes, which for anything else would mean that it is damaged."""
    signed = {"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws", "Docker-Content-Digest": digest(b"a part")}
    registry.rule(Reply(200, b'{"schemaVersion": 1, "signatures": []}', signed), method=method)
    async with client.open(registry) as repository:
        with pytest.raises(InvalidArgument, match=f"{registry.domain} has .*/app.* only in Docker's schema 1, which nothing builds"):
            await repository.manifest(await repository.resolve("1", LIMIT), LIMIT)


HALF = len(DATA) // 2


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (Reply(200, DATA + b"x"), f"comes with {len(DATA) + 1} bytes, its manifest says {len(DATA)}"),
        (Reply(200, DATA[:-1]), f"comes with {len(DATA) - 1} bytes"),
        (Reply(200, DATA + b"x", {"Content-Length": "", "Connection": "close"}, cut=len(DATA) + 1), "has more than the"),
        (Reply(206, DATA, {"Content-Range": f"bytes 1-{len(DATA)}/{len(DATA)}"}), "it sends 'bytes 1-"),
        (Reply(206, DATA, {"Content-Range": f"bytes 0-{len(DATA)}/{len(DATA) + 1}"}), "it sends 'bytes 0-"),
        (Reply(206, DATA, {"Content-Range": "bytes */5"}), "it sends 'bytes"),
        (Reply(206, DATA), "it sends ''"),
        (Reply(206, DATA + b"x", {"Content-Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}), "has more than the"),
        (Reply(200, DATA[:-1] + b"x"), "the digest is"),
    ],
)
async def test_blobs_that_are_not_what_they_should_be(client: Client, registry: FakeRegistry, reply: Reply, sentence: str) -> None:
    registry.rule(reply)
    async with client.open(registry) as repository:
        with pytest.raises(DataLoss, match=sentence):
            await fetch(repository)


async def test_ranges_that_are_wrong_when_a_download_goes_on(client: Client, registry: FakeRegistry) -> None:
    registry.rule(Reply(200, DATA, cut=HALF), times=1)
    registry.rule(Reply(206, DATA, {"Content-Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}))
    async with client.open(registry) as repository:
        with pytest.raises(DataLoss, match=r"from byte .* it sends 'bytes 0-"):
            await fetch(repository)


async def test_a_blob_that_ends_early(client: Client, registry: FakeRegistry) -> None:
    registry.blobs[digest(DATA)] = DATA[:HALF]
    registry.rule(Reply(200, DATA[:HALF], {"Content-Length": "", "Connection": "close"}, cut=HALF), times=1)
    async with client.open(registry) as repository:
        with pytest.raises(DataLoss, match=f"ends after {HALF} of {len(DATA)} bytes"):
            await fetch(repository)


async def test_what_is_no_http(client: Client, registry: FakeRegistry) -> None:
    registry.rule(Reply(200, b"x", {"Content-Length": "many"}))
    async with client.open(registry) as repository:
        with pytest.raises(Unknown, match="not HTTP"):
            await repository.resolve("1", LIMIT)


# Bad days


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_download_goes_on_where_it_broke_off(client: Client, registry: FakeRegistry, ranges: bool) -> None:
    registry.rule(Reply(200, DATA, cut=2 << 20), times=1)
    registry.rule(Reply(503), times=1)
    if not ranges:
        registry.rule(Reply(200, DATA))
    async with client.open(registry) as repository:
        assert await fetch(repository) == DATA
    start = int(registry.seen[1].headers["range"].removeprefix("bytes=").rstrip("-"))
    assert 0 < start <= 2 << 20
    assert registry.seen[2].headers["range"] == f"bytes={start}-"
    assert client.pauses == [1, 1]


async def test_a_server_may_send_a_shorter_range(client: Client, registry: FakeRegistry) -> None:
    registry.rule(Reply(200, DATA, cut=1 << 20), times=1)

    def half_of_the_rest(seen: Seen) -> Reply:
        start = int(seen.headers["range"].removeprefix("bytes=").rstrip("-"))
        end = start + (len(DATA) - start + 1) // 2
        return Reply(206, DATA[start:end], {"Content-Range": f"bytes {start}-{end - 1}/*"})

    registry.rule(half_of_the_rest, times=2)
    async with client.open(registry) as repository:
        assert await fetch(repository) == DATA


async def test_a_host_that_sends_a_few_bytes_each_time_is_given_up(client: Client, registry: FakeRegistry) -> None:
    def drip(seen: Seen) -> Reply:
        start = int(seen.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        return Reply(206, DATA[start:], {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"}, cut=100)

    registry.rule(drip)
    async with client.open(registry) as repository:
        with pytest.raises(Unavailable, match="connection broke"):
            await fetch(repository)
    assert len(registry.seen) == 5


async def test_a_silent_download_is_broken_off_and_resumed(client: Client, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "PULL_SILENCE", 0.05)
    registry.rule(Reply(200, DATA, stall=HALF), times=1)
    async with client.open(registry) as repository:
        assert await fetch(repository) == DATA
    assert len(registry.seen) == 2


async def test_no_byte_for_too_long(client: Client, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "PULL_SILENCE", 0.05)
    monkeypatch.setattr(timeouts, "PULL_PROGRESS", 0.08)
    registry.rule(lambda seen: Reply(206 if "range" in seen.headers else 200, DATA, {"Content-Range": "x"}, stall=100), times=1)
    registry.rule(Reply(200, stall=-1))
    monkeypatch.setattr(timeouts, "REGISTRY_ANSWER", 0.05)
    monkeypatch.setattr(timeouts, "REGISTRY_DIAL", 0.0)
    client.hosts(f'server = "http://{registry.domain}"\ndial_timeout = "10ms"')
    async with client.open("reg.test") as repository:
        with pytest.raises(Unavailable, match=r"no byte came for 0\.08 s"):
            await fetch(repository)


async def test_no_answer(client: Client, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "REGISTRY_ANSWER", 0.02)
    client.hosts(f'server = "http://{registry.domain}"\ndial_timeout = "10ms"')
    registry.rule(Reply(stall=-1), times=3)
    async with client.open("reg.test") as repository:
        assert await repository.resolve("1", LIMIT) == digest(DOCUMENT)
    assert client.pauses == [1, 1, 1]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_what_may_pass_is_tried_again(client: Client, registry: FakeRegistry, status: int) -> None:
    registry.rule(Reply(status), times=4)
    async with client.open(registry) as repository:
        assert await repository.resolve("1", LIMIT) == digest(DOCUMENT)
    assert client.pauses == [1, 1, 1, 1]
    registry.rule(Reply(status, b'{"errors": [{"code": "TOOMANYREQUESTS"}]}'), times=5)
    async with client.open(registry) as repository:
        with pytest.raises(Unavailable, match=f"answers {status} when asked for manifest .*: TOOMANYREQUESTS"):
            await repository.manifest(digest(DOCUMENT), LIMIT)


async def test_a_server_says_how_long_it_wants_to_be_left_alone(client: Client, registry: FakeRegistry) -> None:
    for after in ("7", formatdate(time.time() + 30, usegmt=True), formatdate(0), "soon"):
        registry.rule(Reply(429, headers={"Retry-After": after}), times=1)
    async with client.open(registry) as repository:
        await repository.resolve("1", LIMIT)
        assert client.pauses[0] == 7
        assert 25 < client.pauses[1] <= 30
        assert client.pauses[2:] == [1, 1]
    registry.rules.clear()
    registry.rule(Reply(429, headers={"Retry-After": "3600"}))
    async with client.open(registry) as repository:
        with pytest.raises(Unavailable, match="left alone for 3600 s"):
            await repository.resolve("1", LIMIT)
    assert len(client.pauses) == 4


async def test_nobody_there(client: Client) -> None:
    async with FakeRegistry() as gone:
        pass
    async with client.open(gone) as repository:
        with pytest.raises(Unavailable, match=rf"http://{gone.domain} can't be reached: "):
            await repository.resolve("1", LIMIT)
    assert len(client.pauses) == 4


async def test_what_is_not_there(client: Client, registry: FakeRegistry) -> None:
    async with client.open(registry) as repository:
        with pytest.raises(NotFound, match=r"has no image .*/app:2"):
            await repository.resolve("2", LIMIT)
        with pytest.raises(NotFound, match=r"has no manifest .*: manifest unknown"):
            await repository.manifest(digest(b"x"), LIMIT)
    assert client.pauses == []


# Several hosts


def mirrored(client: Client, mirror: FakeRegistry, registry: FakeRegistry, capabilities: str = '["pull", "resolve"]') -> None:
    client.hosts(f'server = "http://{registry.domain}"\n[host."http://{mirror.domain}/root"]\ncapabilities = {capabilities}')


async def test_a_mirror_comes_first(client: Client, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    mirrored(client, mirror, registry)
    mirror.rule(Reply(200, DOCUMENT, {"Docker-Content-Digest": digest(DOCUMENT), "Content-Type": MANIFEST}), path="/root/v2/app/manifests/")
    mirror.rule(Reply(200, DATA), path="/root/v2/app/blobs/")
    async with client.open("reg.test") as repository:
        assert await repository.manifest(await repository.resolve("1", LIMIT), LIMIT) == (DOCUMENT, MANIFEST)
        assert await fetch(repository) == DATA
    assert registry.seen == []
    assert all(seen.query == {"ns": ["reg.test"]} for seen in mirror.seen)


async def test_a_mirror_that_may_not_resolve_is_asked_for_digests_alone(
    client: Client, registry: FakeRegistry, mirror: FakeRegistry
) -> None:
    mirrored(client, mirror, registry, '["pull"]')
    async with client.open("reg.test") as repository:
        found = await repository.resolve("1", LIMIT)
        assert mirror.seen == []
        await repository.manifest(found, LIMIT)
        await repository.resolve(found, LIMIT)
        assert [seen.method for seen in mirror.seen] == ["GET", "HEAD"]
    client.hosts('server = "http://127.0.0.1:1"\ncapabilities = ["pull"]')
    async with client.open("reg.test") as repository:
        with pytest.raises(FailedPrecondition, match=r"reg\.test/app: its hosts\.toml has no host with the capability 'resolve'"):
            await repository.resolve("1", LIMIT)


@pytest.mark.parametrize("reply", [Reply(404), Reply(403), Reply(500), Reply(200, b"x"), Reply(200, DATA[:-1] + b"x"), Reply(302)])
async def test_a_mirror_that_fails_is_passed_over(client: Client, registry: FakeRegistry, mirror: FakeRegistry, reply: Reply) -> None:
    mirrored(client, mirror, registry)
    mirror.rule(reply)
    async with client.open("reg.test") as repository:
        found = await repository.resolve("1", LIMIT) if reply.status != 200 else digest(DOCUMENT)
        assert await repository.manifest(found, LIMIT) == (DOCUMENT, MANIFEST)
        assert await fetch(repository) == DATA
    assert len(client.pauses) <= 1  # out of order once is enough to ask it last


async def test_a_mirror_that_breaks_off_for_good(client: Client, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    mirrored(client, mirror, registry)
    mirror.rule(Reply(200, DATA, cut=HALF), times=1)
    mirror.rule(Reply(503))
    async with client.open("reg.test") as repository:
        assert await fetch(repository) == DATA
        assert await fetch(repository) == DATA
    assert len(mirror.seen) == 2  # out of order: asked last from then on
    assert "range" not in registry.seen[0].headers  # from another host, from the start


async def test_when_all_fail_each_has_its_say(client: Client, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    mirrored(client, mirror, registry)
    registry.manifests.clear()
    mirror.rule(Reply(403, b'{"errors": [{"message": "not you"}]}'))
    async with client.open("reg.test") as repository:
        with pytest.raises(NotFound, match="has no manifest") as raised:
            await repository.manifest(digest(DOCUMENT), LIMIT)
    refusal = f"http://{mirror.domain} refuses manifest reg.test/app@{digest(DOCUMENT)} with 403: not you"
    assert raised.value.__notes__ == [f"before that: {refusal}"]


async def test_a_full_disk_is_nobody_elses_fault(client: Client, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    mirrored(client, mirror, registry)
    mirror.blobs = registry.blobs
    mirror.rule(Reply(200, DATA))

    async def full(stream: AsyncIterator[bytes]) -> bytes:
        async for _ in stream:
            raise OSError(28, "No space left on device")
        raise AssertionError

    async with client.open("reg.test") as repository:
        with pytest.raises(OSError, match="No space"):
            await repository.fetch(digest(DATA), len(DATA), full)
    assert registry.seen == []


async def test_a_foreign_layer_is_fetched_from_its_maker(client: Client, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    mirror.blobs = {digest(DATA): DATA}
    registry.blobs.clear()
    urls = [f"http://{mirror.domain}/nothing", f"http://{mirror.domain}/blobs/{digest(DATA)}"]
    async with client.open(registry, credentials=PASSWORD) as repository:
        assert await repository.fetch(digest(DATA), len(DATA), gather, urls) == DATA
        with pytest.raises(NotFound, match="has no blob") as raised:
            await repository.fetch(digest(DATA), len(DATA), gather, ["ftp://x/", urls[0]])
    assert len(raised.value.__notes__) == 2
    assert not [seen for seen in mirror.seen if "authorization" in seen.headers]

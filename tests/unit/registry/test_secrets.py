"""Who sees passwords, tokens and an operator's headers, and that nobody reads them in an error or a log."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest

from agent.errdefs import OrlopError, PermissionDenied
from agent.registry import Credentials
from tests.images import digest
from tests.unit.registry.conftest import DATA, DOCUMENT, LIMIT, PASSWORD, Client, fetch
from tests.unit.registry.fake import FakeRegistry, Reply, Seen, basic, demand, redirect

pytestmark = pytest.mark.usefixtures("filled")

EVERYTHING = Credentials("me", "s3cret", "refr3sh", "")
OWN_HEADER = '[header]\nx-secret = "0perators"'


def echo(status: int) -> Callable[[Seen], Reply]:
    """A server whose errors show what it was sent."""

    def reply(seen: Seen) -> Reply:
        authorization = seen.headers.get("authorization", "")
        plain = base64.b64decode(authorization[6:]).decode() if authorization.startswith("Basic ") else ""
        message = f"refused: {authorization} {plain} {seen.headers.get('x-secret')} {seen.body.decode()}"
        return Reply(status, json.dumps({"errors": [{"message": message}]}).encode())

    return reply


@pytest.mark.parametrize("status", [400, 403, 404, 500])
@pytest.mark.parametrize("credentials", [PASSWORD, EVERYTHING, Credentials(registry_token="t0ken"), Credentials()])
async def test_errors_that_echo_the_request(
    client: Client, registry: FakeRegistry, capfd: pytest.CaptureFixture[str], status: int, credentials: Credentials
) -> None:
    client.hosts(f'server = "http://{registry.domain}"\n{OWN_HEADER}')
    registry.rule(Reply(200, b'{"token": "gr4nted"}'), path="/token")
    registry.rule(
        lambda seen: None if "authorization" in seen.headers else Reply(401, headers={"WWW-Authenticate": f"Bearer realm={realm}"})
    )
    registry.rule(echo(status))
    realm = f'"http://{registry.domain}/token"'
    async with client.open("reg.test", credentials=credentials) as repository:
        for attempt in (repository.resolve("1", LIMIT), repository.manifest(digest(DOCUMENT), LIMIT), fetch(repository)):
            with pytest.raises(OrlopError) as raised:
                await attempt
            shown = f"{raised.value} {getattr(raised.value, '__notes__', '')} {capfd.readouterr()}"
            encoded = basic(PASSWORD).partition(" ")[2]
            for secret in ("s3cret", "refr3sh", "t0ken", "gr4nted", "0perators", encoded):
                assert secret not in shown


@pytest.mark.parametrize("credentials", [PASSWORD, EVERYTHING])
async def test_token_servers_that_echo_the_request(client: Client, registry: FakeRegistry, credentials: Credentials) -> None:
    client.hosts(f'server = "http://{registry.domain}"\n{OWN_HEADER}')
    registry.rule(echo(400), path="/token")
    registry.rule(demand(f'Bearer realm="http://{registry.domain}/token"', accept="nothing"))
    async with client.open("reg.test", credentials=credentials) as repository:
        with pytest.raises(OrlopError, match=r"refused: .*\[hidden\]") as raised:
            await repository.resolve("1", LIMIT)
    assert not [secret for secret in ("s3cret", "refr3sh", "0perators", basic(PASSWORD)[6:]) if secret in str(raised.value)]


async def test_a_redirect_there_and_back_carries_nothing(client: Client, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    """Else the other host would choose what the registry does in our name."""
    client.hosts(f'server = "http://{registry.domain}"\n{OWN_HEADER}')
    target = f"http://{registry.domain}/v2/theirs/blobs/{digest(DATA)}"
    registry.rule(redirect(f"http://{mirror.domain}/x"), path="/app/blobs/")
    mirror.rule(redirect(target))
    registry.rule(demand("Basic", accept=basic(PASSWORD)), path="/app/")
    async with client.open("reg.test", credentials=PASSWORD) as repository:
        await repository.resolve("1", LIMIT)
        assert await fetch(repository) == DATA
        last = registry.seen[-1]
        assert last.path == f"/v2/theirs/blobs/{digest(DATA)}"
        assert not {"authorization", "x-secret"} & set(last.headers)
        registry.rule(Reply(401, headers={"WWW-Authenticate": "Basic"}), path="/theirs/")
        with pytest.raises(PermissionDenied, match=r"refuses blob .* with 401"):
            await fetch(repository)


async def test_an_operators_headers(client: Client, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    """They go to the host, its own token server included, and to no other; Authorization among them counts until there is a better one."""
    client.hosts(f'server = "http://{registry.domain}"\n{OWN_HEADER}\nAuthorization = "Basic 0perators"')
    for server, theirs in ((registry, True), (mirror, False)):
        registry.rules.clear()
        registry.seen.clear()
        server.rule(Reply(200, b'{"token": "gr4nted"}'), path="/token")
        registry.rule(demand(f'Bearer realm="http://{server.domain}/token"', accept="Bearer gr4nted"), path="/v2/")
        async with client.open("reg.test") as repository:
            await repository.resolve("1", LIMIT)
        asked = [seen.headers.get("authorization") for seen in registry.requests(path="/v2/")]
        assert asked == ["Basic 0perators", "Bearer gr4nted"]
        (token,) = server.requests(path="/token")
        assert token.headers.get("x-secret") == ("0perators" if theirs else None)
        assert token.headers.get("authorization") == ("Basic 0perators" if theirs else None)
        async with client.open("reg.test", credentials=PASSWORD) as repository:
            await repository.resolve("1", LIMIT)
        assert server.requests(path="/token")[1].headers["authorization"] == basic(PASSWORD)

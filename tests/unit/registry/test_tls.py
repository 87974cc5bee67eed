"""TLS, certificates and proxies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from agent.errdefs import FailedPrecondition, InvalidArgument, Unavailable, Unknown
from agent.registry import Credentials
from tests.images import digest
from tests.unit.registry import certificates
from tests.unit.registry.conftest import DATA, DOCUMENT, LIMIT, Client, fetch, fill
from tests.unit.registry.fake import MANIFEST, FakeRegistry, Reply, basic, redirect, serving

pytestmark = pytest.mark.usefixtures("filled")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name, issuer in (("ca", ""), ("server", "ca"), ("client", "ca"), ("other", "")):
        certificates.make(folder, name, issuer=issuer)
    return folder


async def test_certificates(client: Client, keys: Path) -> None:
    async with FakeRegistry(certificates.server(keys, "server")) as registry:
        registry.add_manifest("app", DOCUMENT, MANIFEST, "1")
        server = f'server = "https://{registry.domain}"\n'
        client.hosts(server)
        async with client.open("reg.test") as repository:
            with pytest.raises(FailedPrecondition, match=f"https://{registry.domain}: its certificate is not trusted: "):
                await repository.resolve("1", LIMIT)
        for setting in (f'ca = "{keys}/ca.pem"', f'ca = ["{keys}/other.pem", "{keys}/ca.pem"]', "skip_verify = true"):
            client.hosts(server + setting)
            async with client.open("reg.test") as repository:
                assert await repository.resolve("1", LIMIT) == digest(DOCUMENT)
        client.hosts(f'server = "http://{registry.domain}"')
        async with client.open("reg.test") as repository:
            with pytest.raises((Unavailable, Unknown)):
                await repository.resolve("1", LIMIT)


async def test_plain_http_where_tls_is_expected(client: Client, registry: FakeRegistry) -> None:
    client.hosts(f'server = "https://{registry.domain}"')
    async with client.open("reg.test") as repository:
        with pytest.raises(Unavailable, match="TLS fails"):
            await repository.resolve("1", LIMIT)


async def test_a_clients_certificate(client: Client, keys: Path) -> None:
    async with FakeRegistry(certificates.server(keys, "server", clients="ca")) as registry:
        registry.add_manifest("app", DOCUMENT, MANIFEST, "1")
        server = f'server = "https://{registry.domain}"\nca = "{keys}/ca.pem"\n'
        client.hosts(server + f'client = [["{keys}/client.pem", "{keys}/client.key"]]')
        async with client.open("reg.test") as repository:
            assert await repository.resolve("1", LIMIT) == digest(DOCUMENT)
        client.hosts(server)
        async with client.open("reg.test") as repository:
            with pytest.raises(Unavailable):
                await repository.resolve("1", LIMIT)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ('ca = "missing.pem"', r"hosts\.toml: ca: .*/missing\.pem: it can't be read: No such file"),
        ('ca = "hosts.toml"', r"ca: .*/hosts\.toml: it holds no certificate or key in PEM"),
        ('client = "{keys}/client.pem"', r"client: .*/client\.pem: it holds no certificate or key"),
        (
            'client = [["{keys}/client.pem", "{keys}/other.key"]]',
            r"client: .*/client\.pem and .*/other\.key: it holds no .* \(KEY_VALUES_MISMATCH\)",
        ),
        ('[host."https://m.test"]\nca = "missing.pem"', r'hosts\.toml: host\."https://m\.test"\.ca: '),
    ],
)
async def test_certificates_that_are_wrong(client: Client, keys: Path, setting: str, sentence: str) -> None:
    client.hosts(setting.format(keys=keys))
    with pytest.raises(InvalidArgument, match=sentence):
        async with client.open("reg.test"):
            pass


async def test_no_redirect_leaves_tls_unless_a_digest_protects_it(client: Client, keys: Path, registry: FakeRegistry) -> None:
    async with FakeRegistry(certificates.server(keys, "server")) as secure:
        client.hosts(f'server = "https://{secure.domain}"\nca = "{keys}/ca.pem"')
        secure.rule(lambda seen: redirect(f"http://{registry.domain}{seen.target}"))
        async with client.open("reg.test") as repository:
            assert await repository.manifest(digest(DOCUMENT), LIMIT) == (DOCUMENT, MANIFEST)
            assert await fetch(repository) == DATA
            with pytest.raises(Unknown, match="where anybody could change"):
                await repository.resolve("1", LIMIT)


async def test_a_proxy(client: Client, mirror: FakeRegistry) -> None:
    client.environment = {"http_proxy": f"http://me:s3cret%21@{mirror.domain}", "NO_PROXY": "10.0.0.0/8"}
    mirror.add_manifest("app", DOCUMENT, MANIFEST, "1")
    mirror.rule(lambda seen: Reply(200, DOCUMENT, {"Docker-Content-Digest": digest(DOCUMENT)}))
    client.hosts('server = "http://reg.test"')
    async with client.open("reg.test") as repository:
        assert await repository.resolve("1", LIMIT) == digest(DOCUMENT)
    (seen,) = mirror.seen
    assert seen.target == "http://reg.test/v2/app/manifests/1"
    assert seen.headers["proxy-authorization"] == basic(Credentials("me", "s3cret!"))


async def test_a_proxy_that_refuses(client: Client, mirror: FakeRegistry) -> None:
    client.environment = {"https_proxy": f"http://me:s3cret@{mirror.domain}"}
    mirror.rule(Reply(407))
    async with client.open("reg.test") as repository:
        with pytest.raises(
            Unavailable, match=rf"https://reg\.test \(by the proxy http://{mirror.domain}\): the proxy refuses with 407"
        ) as raised:
            await repository.resolve("1", LIMIT)
    assert "s3cret" not in str(raised.value)
    assert mirror.seen[0].method == "CONNECT"
    assert mirror.seen[0].target == "reg.test:443"


async def test_a_proxy_that_is_gone(client: Client) -> None:
    async with FakeRegistry() as gone:
        client.environment = {"https_proxy": f"http://me:s3cret@{gone.domain}"}
    async with client.open("reg.test") as repository:
        with pytest.raises(Unavailable, match=r"can't be reached") as raised:
            await repository.resolve("1", LIMIT)
    assert "s3cret" not in str(raised.value)


async def test_http_with_settings_for_tls(client: Client, registry: FakeRegistry, keys: Path) -> None:
    """TLS first, plain http where it isn't spoken; from then on without a further try."""
    async with FakeRegistry(certificates.server(keys, "server")) as secure:
        fill(secure)
        client.hosts(f'server = "http://{secure.domain}"\nskip_verify = true')
        async with client.open("reg.test") as repository:
            assert await fetch(repository) == DATA
        assert len(secure.seen) == 1
        client.hosts(f'server = "http://{secure.domain}"\nca = "{keys}/other.pem"')
        async with client.open("reg.test") as repository:
            with pytest.raises(FailedPrecondition, match="not trusted"):  # it does speak TLS
                await fetch(repository)
    client.hosts(f'server = "http://{registry.domain}"\nskip_verify = true')
    async with client.open("reg.test") as repository:
        assert await repository.resolve("1", LIMIT) == digest(DOCUMENT)
        assert await fetch(repository) == DATA
    assert registry.greetings == 1
    assert client.pauses == []


async def test_a_host_that_is_away_is_away_over_http_too(client: Client) -> None:
    async with FakeRegistry() as gone:
        pass
    client.hosts(f'server = "http://{gone.domain}"\nskip_verify = true')
    async with client.open("reg.test") as repository:
        with pytest.raises(Unavailable, match=f"http://{gone.domain} can't be reached"):
            await repository.resolve("1", LIMIT)


@asynccontextmanager
async def tunnel(authorization: str) -> AsyncIterator[tuple[str, list[str]]]:
    """A proxy that does CONNECT for who shows `authorization`; its address, and what was asked of it."""
    asked: list[str] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head.split("\r\n", 1)[0])
        if f"Proxy-Authorization: {authorization}\r\n" not in head:
            writer.write(b"HTTP/1.1 407 no\r\nContent-Length: 0\r\n\r\n")
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", int(asked[-1].split(" ")[1].rpartition(":")[2]))
        writer.write(b"HTTP/1.1 200 connected\r\n\r\n")
        try:
            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        finally:
            far_writer.close()

    async with serving(connected) as address:
        yield address, asked


async def test_tls_through_a_proxy(client: Client, keys: Path) -> None:
    """The proxy sees where it goes, and its own password; neither the registry's nor a header."""
    certificates.make(keys, "named", issuer="ca", names="DNS:reg.test")
    async with FakeRegistry(certificates.server(keys, "named")) as registry, tunnel(basic(Credentials("me", "s3cret"))) as (proxy, asked):
        fill(registry)
        client.environment = {"HTTPS_PROXY": f"http://me:s3cret@{proxy}", "NO_PROXY": "other.test"}
        client.hosts(f'server = "https://reg.test:{registry.port}"\nca = "{keys}/ca.pem"\n[header]\nx-own = "1"')
        async with client.open("reg.test") as repository:
            assert await repository.resolve("1", LIMIT) == digest(DOCUMENT)
            assert await fetch(repository) == DATA
        assert set(asked) == {f"CONNECT reg.test:{registry.port} HTTP/1.1"}
        assert all("proxy-authorization" not in seen.headers and seen.headers["x-own"] == "1" for seen in registry.seen)

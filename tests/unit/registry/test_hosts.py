"""hosts.toml: every key, and what is refused with which words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import timeouts
from agent.errdefs import InvalidArgument
from agent.registry.hosts import PULL, RESOLVE, Authority, Certificate, Host, find_hosts


def write(directory: Path, name: str, text: str) -> Path:
    folder = directory / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.toml").write_text(text)
    return folder


def urls(hosts: tuple[Host, ...]) -> list[str]:
    return [f"{host}{host.path}" + (f"?ns={host.namespace}" if host.namespace else "") for host in hosts]


@pytest.mark.parametrize(
    ("domain", "url"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("quay.io", "https://quay.io/v2"),
        ("reg.test:5000", "https://reg.test:5000/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("localhost", "http://localhost/v2"),
        ("reg.localhost:80", "http://reg.localhost:80/v2"),
        ("127.0.0.2:5000", "http://127.0.0.2:5000/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("localhost:443", "https://localhost:443/v2"),
        ("127.0.0.1.nip.io", "https://127.0.0.1.nip.io/v2"),
    ],
)
def test_without_any_file(tmp_path: Path, domain: str, url: str) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        assert urls(find_hosts(directory, domain)) == [url]
    (host,) = find_hosts(tmp_path, domain)
    assert {PULL, RESOLVE} <= host.capabilities
    assert (host.skip_verify, host.headers, host.dial_timeout) == (False, (), timeouts.REGISTRY_DIAL)


def test_every_key(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        "reg.test",
        """
        server = "https://up.test"
        capabilities = ["pull"]
        ca = "/etc/top.pem"
        skip_verify = true
        dial_timeout = "1m1.5s"
        [header]
          x-top = "t"

        [host."https://b.test/us/"]
          capabilities = ["Pull", "resolve", "push", "referrers"]
          ca = ["one.pem", "sub/two.pem"]
          client = [["c.cert", "c.key"], ["both.pem", ""]]
          [host."https://b.test/us/".header]
            x-custom = ["1", "2"]
            Authorization = "hush"

        [host."http://a.test:5000/root"]
          override_path = true
          client = ["one.pem", "two.pem"]

        [host."reg.test"]
          client = "both.pem"
          dial_timeout = "200ms"
        """,
    )
    b, a, own, server = find_hosts(tmp_path, "reg.test")
    assert urls((b, a, own, server)) == [
        "https://b.test/us/v2?ns=reg.test",
        "https://a.test:5000/root?ns=reg.test",
        "https://reg.test/v2",
        "https://up.test/v2?ns=reg.test",
    ]
    file = folder / "hosts.toml"
    named = f'{file}: host."https://b.test/us/".'
    assert b.capabilities == {"pull", "resolve", "push", "referrers"}
    assert b.authorities == (Authority(folder / "one.pem", f"{named}ca"), Authority(folder / "sub/two.pem", f"{named}ca"))
    assert b.certificates == (
        Certificate(folder / "c.cert", folder / "c.key", f"{named}client"),
        Certificate(folder / "both.pem", None, f"{named}client"),
    )
    assert b.headers == (("x-custom", "1"), ("x-custom", "2"), ("Authorization", "hush"))
    assert "hush" not in repr(b)
    assert [pair.certificate.name for pair in a.certificates] == ["one.pem", "two.pem"]
    assert RESOLVE in a.capabilities
    assert [host.plain_too for host in (b, a, own, server)] == [False, True, False, False]
    assert (own.certificates[0].certificate, own.dial_timeout) == (folder / "both.pem", 0.2)
    assert server.capabilities == {"pull"}
    assert server.authorities == (Authority(Path("/etc/top.pem"), f"{file}: ca"),)
    assert (server.skip_verify, server.dial_timeout, server.headers) == (True, 61.5, (("x-top", "t"),))


def test_which_directory_counts(tmp_path: Path) -> None:
    write(tmp_path, "_default", 'server = "https://default.test"')
    assert urls(find_hosts(tmp_path, "reg.test:5000")) == ["https://default.test/v2?ns=reg.test:5000"]
    write(tmp_path, "reg.test:5000", 'server = "https://colon.test"')
    assert urls(find_hosts(tmp_path, "reg.test:5000")) == ["https://colon.test/v2?ns=reg.test:5000"]
    write(tmp_path, "reg.test_5000_", 'server = "https://underscore.test"')
    assert urls(find_hosts(tmp_path, "reg.test:5000")) == ["https://underscore.test/v2?ns=reg.test:5000"]
    assert urls(find_hosts(tmp_path, "reg.test")) == ["https://default.test/v2?ns=reg.test"]


def test_mirrors_of_docker_hub(tmp_path: Path) -> None:
    write(tmp_path, "docker.io", 'server = "https://docker.io"\n[host."https://registry-1.docker.io"]\n[host."https://m.test"]')
    assert urls(find_hosts(tmp_path, "docker.io")) == [
        "https://registry-1.docker.io/v2",
        "https://m.test/v2?ns=docker.io",
        "https://registry-1.docker.io/v2",
    ]


def test_a_mirror_of_everything_comes_before_the_registry_itself(tmp_path: Path) -> None:
    write(tmp_path, "_default", '[host."https://m.test"]')
    assert urls(find_hosts(tmp_path, "docker.io")) == ["https://m.test/v2?ns=docker.io", "https://registry-1.docker.io/v2"]
    assert urls(find_hosts(tmp_path, "localhost:5000"))[1] == "http://localhost:5000/v2"


def test_certificates_in_the_way_of_docker(tmp_path: Path) -> None:
    folder = tmp_path / "reg.test"
    folder.mkdir()
    for name in ("ca.crt", "b.crt", "client.cert", "client.key", "lone.cert", "README"):
        (folder / name).touch()
    (host,) = find_hosts(tmp_path, "reg.test")
    assert [authority.path.name for authority in host.authorities] == ["b.crt", "ca.crt"]
    assert [(pair.certificate.name, pair.key and pair.key.name) for pair in host.certificates] == [
        ("client.cert", "client.key"),
        ("lone.cert", None),
    ]
    (tmp_path / "localhost:5000").mkdir()
    (tmp_path / "localhost:5000/ca.crt").touch()
    (host,) = find_hosts(tmp_path, "localhost:5000")
    assert (urls((host,)), host.plain_too) == (["https://localhost:5000/v2"], True)


@pytest.mark.parametrize(
    ("url", "setting", "first", "plain_too"),
    [
        ("http://a.test:5000", "skip_verify = true", "https://a.test:5000", True),
        ("http://a.test", "ca = 'a.pem'", "https://a.test", True),
        ("http://a.test:80", "skip_verify = true", "http://a.test:80", False),
        ("http://a.test:5000", "dial_timeout = '1s'", "http://a.test:5000", False),
        ("https://a.test:5000", "skip_verify = true", "https://a.test:5000", False),
    ],
)
def test_http_with_settings_for_tls(tmp_path: Path, url: str, setting: str, first: str, plain_too: bool) -> None:
    """As in "Bypass TLS Verification Example" of containerd's docs/hosts.md: such a host is asked over TLS first."""
    write(tmp_path, "reg.test", f'[host."{url}"]\n{setting}')
    host = find_hosts(tmp_path, "reg.test")[0]
    assert (str(host), host.plain_too) == (first, plain_too)
    assert host.secure is (url.startswith("https"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("server = ", "it is not TOML"),
        ("server = 1", "server: it is not a string"),
        ("host = 1", 'host: it does not consist of tables [host."URL"]'),
        ('[host]\n"https://a.test" = 1', "host: it does not consist"),
        ("mirror = true", "mirror = True: there is no such key; there are capabilities, ca, client, skip_verify, header,"),
        ('[host."https://a.test"]\nserver = "b"', "host.\"https://a.test\".server = 'b': there is no such key"),
        ('[host."https://a.test"]\ncapabilites = []', 'host."https://a.test".capabilites'),
        ('capabilities = ["pull", "fly"]', "capabilities = ['pull', 'fly']: there is no capability 'fly'"),
        ("capabilities = 1", "capabilities = 1: it is neither a string nor an array of strings"),
        ("ca = [1]", "ca = [1]: it is neither"),
        ('client = [["a"]]', "client = [['a']]: it is neither a path nor"),
        ('client = [["a", 1]]', "it is neither a path nor"),
        ("client = 1", "it is neither a path nor"),
        ('skip_verify = "yes"', "skip_verify = 'yes': it is not true or false"),
        ("override_path = 1\nserver = 'a.test'", "override_path = 1: it is not true or false"),
        ("header = 1", "header = 1: it is not a table"),
        ('[header]\nx = ["a\\nb"]', "header.x: it is neither a line of ASCII text nor"),
        ("[header]\nx = 1", "header.x: it is neither a line"),
        ('[header]\n"x y" = "1"', "header: 'x y' can't be the name of a header"),
        ('dial_timeout = "5"', "dial_timeout = '5': it is not a duration"),
        ('dial_timeout = "5s6"', "it is not a duration"),
        ("dial_timeout = 5", "it is not a duration"),
        ('server = "ftp://a.test"', "server: 'ftp://a.test' is not a URL"),
        ('server = "https://"', "server: 'https://' is not a URL"),
        ('server = "https://[x"', "is not a URL"),
        ('server = "https://a:b"', "is not a URL"),
        ('[host."https://a.test?x=1"]', "is not a URL"),
        ('server = "https://me:s3cret@a.test"', "server: credentials don't belong in a URL"),
        ('[host."https://me:s3cret@a.test"]', 'host."https://...@a.test": credentials don\'t belong'),
        ('[host."https://me:s3cret@a.test:x"]', "'https://...@a.test:x' is not a URL"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, sentence: str) -> None:
    folder = write(tmp_path, "reg.test", text)
    with pytest.raises(InvalidArgument, match=f"^{re.escape(str(folder))}/hosts.toml: .*{re.escape(sentence)}") as refused:
        find_hosts(tmp_path, "reg.test")
    assert "s3cret" not in str(refused.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    folder = write(tmp_path, "reg.test", "")
    (folder / "hosts.toml").write_bytes(b"\xff")
    with pytest.raises(InvalidArgument, match="it is not TOML"):
        find_hosts(tmp_path, "reg.test")
    (folder / "hosts.toml").unlink()
    (folder / "hosts.toml").mkdir()
    with pytest.raises(InvalidArgument, match="it can't be read: Is a directory"):
        find_hosts(tmp_path, "reg.test")


VALUES = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), max_size=9),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
KEYS = st.sampled_from(["server", "capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", "other"])


def toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return str(value) if isinstance(value, int) else f'"{value}"'


@given(st.dictionaries(KEYS, VALUES, max_size=4), st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_file_is_used_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, top: dict[str, object], mirror: dict[str, object]
) -> None:
    text = "\n".join(f"{key} = {toml(value)}" for key, value in top.items())
    text += '\n[host."https://m.test"]\n' + "\n".join(f"{key} = {toml(value)}" for key, value in mirror.items())
    directory = tmp_path_factory.getbasetemp()
    write(directory, "any.test", text)
    try:
        hosts, refused = find_hosts(directory, "any.test"), None
    except InvalidArgument as error:
        hosts, refused = (), error
    assert "any.test/hosts.toml: " in str(refused) if refused else len(hosts) == 2

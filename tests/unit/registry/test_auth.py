"""Challenges and what is shown for them."""

from __future__ import annotations

import base64
import json
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errdefs import InvalidArgument, OrlopError, PermissionDenied, Unknown
from agent.registry.auth import Authorizer, Challenge, Credentials, parse_challenges

BEARER = 'Bearer realm="https://auth.test/token",service="reg",scope="repository:a/b:pull"'
PASSWORD = Credentials(username="me", password="s3cret")
SECRETS = ("s3cret", "refr3sh", "t0ken")


def authorizer(credentials: Credentials = PASSWORD, *, host: str = "reg.test", secure: bool = True) -> Authorizer:
    return Authorizer(host, "a/b", credentials, secure=secure)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("headers", "challenges"),
    [
        ([], []),
        ([""], []),
        (["Basic"], [Challenge("basic")]),
        ([BEARER], [Challenge("bearer", {"realm": "https://auth.test/token", "service": "reg", "scope": "repository:a/b:pull"})]),
        (['BEARER Realm = "a\\"b\\\\c" , error=invalid_token'], [Challenge("bearer", {"realm": 'a"b\\c', "error": "invalid_token"})]),
        (['Basic realm="x", Bearer realm="y"'], [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y"})]),
        (["Basic", 'Bearer realm="y"'], [Challenge("basic"), Challenge("bearer", {"realm": "y"})]),
        (["Bearer a=1, a=2"], [Challenge("bearer", {"a": "1"})]),
        (["a=1, Basic"], [Challenge("basic")]),
        (["Basic", "realm=x"], [Challenge("basic")]),
    ],
)
def test_challenges(headers: list[str], challenges: list[Challenge]) -> None:
    assert parse_challenges(headers) == challenges


def test_a_scheme_with_a_token_does_not_hide_the_others() -> None:
    schemes = [challenge.scheme for challenge in parse_challenges(["Negotiate YII/x+y==, Basic realm=x"])]
    assert schemes[0] == "negotiate"
    assert schemes[-1] == "basic"


TOKENS = st.text("abcXYZ019-_.!", min_size=1)


@given(
    st.lists(st.tuples(TOKENS, st.dictionaries(TOKENS.map(str.lower), st.text(st.characters(max_codepoint=255)), max_size=4)), max_size=4)
)
def test_what_was_written_is_read(challenges: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = ", ".join(f"{scheme} {', '.join(f'{name}={quoted(value)}' for name, value in found.items())}" for scheme, found in challenges)
    assert parse_challenges([header]) == [Challenge(scheme.lower(), found) for scheme, found in challenges]


@given(st.lists(st.text()), st.binary())
def test_nothing_that_a_registry_says_breaks_it(headers: list[str], answer: bytes) -> None:
    asked, said = authorizer(), ""
    try:
        if asked.challenged(parse_challenges(headers)) is not None:
            asked.granted(answer)
    except OrlopError as error:
        said = str(error)
    assert "s3cret" not in said


def test_nothing_is_shown_unasked() -> None:
    assert authorizer().header() == ""


def test_basic() -> None:
    asked = authorizer()
    assert asked.challenged(parse_challenges(["Basic realm=x"])) is None
    assert asked.header() == basic("me", "s3cret")
    with pytest.raises(PermissionDenied, match=r"reg\.test does not accept the credentials"):
        asked.challenged(parse_challenges(["Basic realm=x"]))


def test_a_password_is_exchanged_for_a_token() -> None:
    asked = authorizer()
    request = asked.challenged(parse_challenges(["Basic realm=x", BEARER]))
    assert request is not None
    assert request.form == b""
    assert (request.authorization, request.headers) == (basic("me", "s3cret"), {})
    url = urlsplit(request.url)
    assert (url.scheme, url.netloc, url.path) == ("https", "auth.test", "/token")
    assert parse_qs(url.query) == {"service": ["reg"], "scope": ["repository:a/b:pull"]}
    asked.granted(b'{"token": "t0ken", "expires_in": 60}')
    assert asked.header() == "Bearer t0ken"
    assert asked.challenged(parse_challenges([BEARER])) is not None  # it has run out


def test_nobody_in_particular_gets_a_token_too() -> None:
    asked = authorizer(Credentials())
    request = asked.challenged(parse_challenges(['Bearer realm="https://auth.test/token?x=1"']))
    assert request is not None
    assert (request.authorization, request.headers) == ("", {})
    assert parse_qs(urlsplit(request.url).query) == {"x": ["1"], "scope": ["repository:a/b:pull"]}
    asked.granted(b'{"access_token": "other"}')
    assert asked.header() == "Bearer other"


def test_an_identity_token_is_posted() -> None:
    asked = authorizer(Credentials(username="00000000", identity_token="refr3sh"))
    request = asked.challenged(parse_challenges([BEARER.replace("a/b:pull", "a/b:pull repository:c:pull")]))
    assert request is not None
    assert "refr3sh" not in request.url
    assert request.authorization == ""
    assert parse_qs(request.form.decode()) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["refr3sh"],
        "client_id": ["orlop"],
        "service": ["reg"],
        "scope": ["repository:a/b:pull repository:c:pull"],
    }


def test_a_registry_token_is_sent_as_it_is() -> None:
    asked = authorizer(Credentials(username="me", password="s3cret", registry_token="t0ken"))
    assert asked.header() == "Bearer t0ken"
    with pytest.raises(PermissionDenied, match="does not accept"):
        asked.challenged(parse_challenges([BEARER]))


@pytest.mark.parametrize("credentials", [Credentials(), Credentials(identity_token="x")])
def test_what_nobody_can_answer(credentials: Credentials) -> None:
    with pytest.raises(PermissionDenied, match="wants credentials" if not credentials else "it offers basic"):
        authorizer(credentials).challenged(parse_challenges(["Basic realm=x"]))
    with pytest.raises(PermissionDenied):
        authorizer(credentials).challenged([])


@pytest.mark.parametrize(
    "realm", ["", "auth.test", "ftp://auth.test/", "file:///etc/shadow", "https://", "https://u:p@auth.test/", "https://[x/", "https://ä/"]
)
def test_realms_that_are_none(realm: str) -> None:
    with pytest.raises(PermissionDenied, match="no URL of a token server"):
        authorizer().challenged([Challenge("bearer", {"realm": realm})])


def test_a_password_never_leaves_tls() -> None:
    challenge = [Challenge("bearer", {"realm": "http://auth.test/token"})]
    with pytest.raises(PermissionDenied, match="unencrypted"):
        authorizer().challenged(challenge)
    assert authorizer(secure=False).challenged(challenge) is not None
    assert authorizer(Credentials()).challenged(challenge) is not None  # nothing to lose
    assert authorizer().challenged([Challenge("bearer", {"realm": "http://127.0.0.1:5001/token"})]) is not None


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b"null", b'{"token": 1}', b'{"token": "a\\r\\nb"}', b'{"token": "\\u00e4"}', b"[" * 100_000, b"\xff"]
)
def test_token_servers_that_give_none(answer: bytes) -> None:
    with pytest.raises(Unknown, match=r"reg\.test answered without a token"):
        authorizer().granted(answer)


def auth_config(**fields: str) -> Credentials:
    names = ("username", "password", "auth", "server_address", "identity_token", "registry_token")
    return Credentials.from_auth_config(**{**dict.fromkeys(names, ""), **fields})


def test_the_fields_of_an_auth_config() -> None:
    assert auth_config(auth=base64.b64encode(b"me:s3cret:x").decode()) == Credentials("me", "s3cret:x")
    assert auth_config(auth=base64.b64encode(b"me:s3cret\0\0").decode()) == PASSWORD
    assert auth_config(username="me", password="s3cret", auth="!") == PASSWORD
    assert not auth_config(server_address="quay.io")
    for wrong in ("!", base64.b64encode(b"s3cret").decode(), base64.b64encode(b"\xff:s3cret").decode()):
        with pytest.raises(InvalidArgument, match=r"auth\.auth is not base64 of 'user:password'$"):
            auth_config(auth=wrong)
    with pytest.raises(InvalidArgument, match="registry_token"):
        auth_config(registry_token="a\nb")


@pytest.mark.parametrize(
    ("address", "host", "fits"),
    [
        ("", "anything", True),
        ("https://index.docker.io/v1/", "registry-1.docker.io", True),
        ("docker.io", "registry-1.docker.io", True),
        ("quay.io/org", "quay.io", True),
        ("https://quay.io", "mirror.test", False),
        ("quay.io", "quay.io:5000", False),
        ("https://quay.io:5000/v2/", "quay.io:5000", True),
    ],
)
def test_who_may_see_credentials(address: str, host: str, fits: bool) -> None:
    credentials = auth_config(username="me", password="s3cret", server_address=address)
    assert credentials.are_for(host) is fits
    asked = authorizer(credentials, host=host)
    if fits:
        asked.challenged([Challenge("basic")])
        assert asked.header()
    else:
        with pytest.raises(PermissionDenied):
            asked.challenged([Challenge("basic")])


def test_nothing_secret_is_ever_printed() -> None:
    credentials = Credentials("me", "s3cret", "refr3sh", "t0ken")
    request = authorizer(Credentials("me", "s3cret", "refr3sh")).challenged(parse_challenges([BEARER]))
    for value in (credentials, request, [credentials], {"credentials": credentials}, authorizer(credentials)):
        shown = f"{value!r} {value}" + json.dumps(value, default=repr)
        assert not [secret for secret in SECRETS if secret in shown]

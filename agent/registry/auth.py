"""How a registry wants to be convinced, sans-IO: challenges in, an Authorization header or a request for a token out.

`agent.registry.client` sends the requests and holds one `Authorizer` per host and pull. Nothing here, and no error from here,
shows a password or a token: secrets are in objects that hide them.
Challenges: RFC 9110, 11.6.1. Tokens: https://distribution.github.io/distribution/spec/auth/token/ and .../oauth/.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from agent.errdefs import InvalidArgument, PermissionDenied, Unknown
from agent.registry.names import api_host, is_loopback

_CLIENT_ID = "orlop"
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_ITEM = re.compile(rf'(?P<name>{_TOKEN})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>{_TOKEN}))|(?P<scheme>{_TOKEN})', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, repr=False)
class Credentials:
    """What a pull may show a registry: the AuthConfig of the CRI. Empty fields are not there; a value, but one that hides itself."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    """A refresh token, exchanged at the registry's token server."""
    registry_token: str = ""
    """A bearer token for the registry itself."""
    server_address: str = ""
    """The only host that may see them; empty: every host that the operator lets the image come from."""

    @classmethod
    def from_auth_config(
        cls, *, username: str, password: str, auth: str, server_address: str, identity_token: str, registry_token: str
    ) -> Credentials:
        """From the fields of CRI's AuthConfig; `auth` is base64 of "user:password", as in Docker's config.json.

        Raises:
            InvalidArgument: `auth` isn't, or the registry token can't be in a header.
        """
        if auth and not username:
            try:
                username, colon, password = base64.b64decode(auth, validate=True).decode().rstrip("\0").partition(":")
            except (binascii.Error, UnicodeDecodeError):
                colon = ""
            if not colon:
                raise InvalidArgument("auth.auth is not base64 of 'user:password'") from None
        if not (registry_token.isascii() and registry_token.isprintable()):
            raise InvalidArgument("auth.registry_token has characters that can't be in a header")
        return cls(username, password, identity_token, registry_token, _address_host(server_address))

    def are_for(self, host: str) -> bool:
        """Whether `host` (with its port, if any) may see them."""
        return not self.server_address or api_host(self.server_address) == api_host(host)

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)

    def __repr__(self) -> str:
        return "Credentials(hidden)" if self else "Credentials()"


@dataclass(frozen=True)
class Challenge:
    """One way to authenticate; the scheme and the parameters' names are in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class TokenRequest:
    """A request to a token server: POST of `form`, or GET without one."""

    url: str
    authorization: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    form: bytes = b""


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all WWW-Authenticate headers of a response, in order. What can't be read is passed over."""
    found: list[tuple[str, dict[str, str]]] = []
    for header in headers:
        before = len(found)
        for item in _ITEM.finditer(header):  # a comma may stand between parameters or challenges: only '=' tells them apart
            if item["scheme"]:
                found.append((item["scheme"].lower(), {}))
            elif len(found) > before:
                value = item["plain"] if item["quoted"] is None else _ESCAPED.sub(r"\1", item["quoted"])
                found[-1][1].setdefault(item["name"].lower(), value)
    return [Challenge(scheme, parameters) for scheme, parameters in found]


class Authorizer:
    """What to send to one host about one repository.

    `header()` goes with each request. After a 401, `challenged()`: it may want a token request sent, whose answer is for `granted()`;
    then the request is sent again with the new `header()`.
    """

    def __init__(self, host: str, repository: str, credentials: Credentials, *, secure: bool) -> None:
        """`secure`: the host is talked to over TLS."""
        self._host = host
        self._scope = f"repository:{repository}:pull"
        self._credentials = credentials if credentials.are_for(host) else Credentials()
        self._secure = secure
        self._header = f"Bearer {self._credentials.registry_token}" if self._credentials.registry_token else ""

    def header(self) -> str:
        """The value of Authorization; empty for none."""
        return self._header

    def secrets(self) -> list[str]:
        """What must not be seen in anything that the host or its token server writes."""
        credentials = self._credentials
        known = [credentials.password, credentials.identity_token, credentials.registry_token, self._header.partition(" ")[2]]
        if credentials.username:
            known.append(self._basic().partition(" ")[2])
        return sorted(filter(None, known), key=len, reverse=True)

    def challenged(self, challenges: Sequence[Challenge]) -> TokenRequest | None:
        """What has to be asked of a token server now; None: `header()` has the answer already.

        Raises:
            PermissionDenied: there is nothing else that could be shown to the host.
        """
        if self._header and not (self._header.startswith("Bearer ") and not self._credentials.registry_token):
            raise PermissionDenied(f"{self._host} does not accept the credentials")
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        if (bearer := by_scheme.get("bearer")) is not None and not self._credentials.registry_token:
            return self._token_request(bearer)
        if "basic" in by_scheme and self._credentials.username:
            self._header = self._basic()
            return None
        if not self._credentials:
            raise PermissionDenied(f"{self._host} wants credentials, and there are none for it")
        offered = ", ".join(by_scheme) or "no way that it could be done"
        raise PermissionDenied(f"{self._host} does not take the kind of credentials that there are; it offers {offered}"[:300])

    def granted(self, answer: bytes) -> None:
        """Take what the token server answered.

        Raises:
            Unknown: there is no token in it.
        """
        try:
            document = json.loads(answer)
            token = document.get("token") or document.get("access_token")
        except (ValueError, RecursionError, AttributeError):
            token = None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise Unknown(f"the token server of {self._host} answered without a token")
        self._header = f"Bearer {token}"

    def _basic(self) -> str:
        pair = f"{self._credentials.username}:{self._credentials.password}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def _token_request(self, challenge: Challenge) -> TokenRequest:
        realm = self._realm(challenge.parameters.get("realm", ""))
        # The registry knows its own names best, a mirror above all.
        asked = [("scope", scope) for scope in challenge.parameters.get("scope", self._scope).split()]
        asked += [("service", service)] if (service := challenge.parameters.get("service", "")) else []
        if self._credentials.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": self._credentials.identity_token, "client_id": _CLIENT_ID}
            scopes = " ".join(value for key, value in asked if key == "scope")
            text = urlencode({**form, "service": service, "scope": scopes})
            return TokenRequest(urlunsplit(realm), "", {"Content-Type": "application/x-www-form-urlencoded"}, text.encode())
        query = urlencode([*parse_qsl(realm.query, keep_blank_values=True), *asked])
        return TokenRequest(urlunsplit(realm._replace(query=query)), self._basic() if self._credentials.username else "")

    def _realm(self, text: str) -> SplitResult:
        """The token server's URL. Often another host than the registry's, and named by the registry alone: that is the protocol."""
        try:
            realm = urlsplit(text)
            host = realm.hostname or ""
        except ValueError:
            realm, host = SplitResult("", "", "", "", ""), ""
        if realm.scheme not in ("http", "https") or not host or realm.username is not None or not text.isascii():
            raise PermissionDenied(f"{self._host} sends for tokens to {text[:200]!r}, which is no URL of a token server")
        # containerd would send them. A registry that is reached over TLS has no reason to have a password pass in the open, and who
        # could read it there could have put the realm into the way of it. Anonymous requests have nothing to lose.
        if self._secure and self._credentials and realm.scheme == "http" and not is_loopback(host):
            raise PermissionDenied(f"{self._host} sends for tokens to {text[:200]!r}, where credentials would go unencrypted")
        return realm._replace(fragment="")


def _address_host(address: str) -> str:
    """The host of "https://index.docker.io/v1/" or "quay.io", as AuthConfig has both."""
    return address.partition("://")[2].partition("/")[0] if "://" in address else address.partition("/")[0]

"""TLS contexts for registry hosts. Reads files and blocks; called by `agent.registry.client`."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import cache, partial

from agent.errdefs import InvalidArgument
from agent.registry.hosts import Host


def tls_context(host: Host) -> ssl.SSLContext:
    """How to talk TLS to a host: by the system's CAs and those set for it, with the certificates that it may ask for.

    Raises:
        InvalidArgument: a certificate or key can't be used; names the setting and the file.
    """
    if not (host.authorities or host.certificates or host.skip_verify):
        return default_context()
    context = _context()
    for authority in host.authorities:
        _load(f"{authority.named}: {authority.path}", partial(context.load_verify_locations, cafile=authority.path))
    for pair in host.certificates:
        named = f"{pair.named}: {pair.certificate}" + (f" and {pair.key}" if pair.key else "")
        # The empty password: never ask for one on the terminal.
        _load(named, partial(context.load_cert_chain, pair.certificate, pair.key, password=""))
    if host.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@cache
def default_context() -> ssl.SSLContext:
    """By the system's CAs alone."""
    return _context()


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    # Python 3.13 insists on extensions that the private CAs of many a node lack, and that Go's programs there never asked for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _load(named: str, load: Callable[[], None]) -> None:
    try:
        load()
    except ssl.SSLError as error:
        raise InvalidArgument(
            f"{named}: it holds no certificate or key in PEM that can be used ({error.reason or error.args[-1]})"
        ) from error
    except OSError as error:
        raise InvalidArgument(f"{named}: it can't be read: {error.strerror}") from error

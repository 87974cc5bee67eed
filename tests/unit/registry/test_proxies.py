from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errdefs import InvalidArgument
from agent.registry.proxies import Proxies

PROXY = "http://proxy.test:3128"


def proxy_for(no_proxy: str, authority: str, scheme: str = "https") -> str | None:
    return Proxies({"HTTPS_PROXY": PROXY, "HTTP_PROXY": "plain.test", "NO_PROXY": no_proxy}).proxy_for(scheme, authority)


def test_by_scheme() -> None:
    assert proxy_for("", "quay.io") == PROXY
    assert proxy_for("", "quay.io", "http") == "http://plain.test"
    assert Proxies({}).proxy_for("https", "quay.io") is None
    assert Proxies({"https_proxy": PROXY, "HTTPS_PROXY": " "}).proxy_for("https", "quay.io") == PROXY
    assert Proxies({"HTTPS_PROXY": PROXY, "https_proxy": "http://other.test"}).proxy_for("https", "quay.io") == PROXY


@pytest.mark.parametrize("authority", ["localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000"])
def test_this_machine_is_reached_without(authority: str) -> None:
    assert proxy_for("", authority) is None


@pytest.mark.parametrize(
    ("entry", "authority", "direct"),
    [
        ("*", "quay.io", True),
        ("quay.io", "quay.io", True),
        ("quay.io", "quay.io:5000", True),
        ("quay.io", "cdn.quay.io", True),
        ("quay.io", "notquay.io", False),
        (".quay.io", "cdn.quay.io", True),
        (".quay.io", "quay.io", False),
        ("*.quay.io", "cdn.quay.io", True),
        ("QUAY.io", "Quay.IO", True),
        ("quay.io:443", "quay.io", True),
        ("quay.io:5000", "quay.io", False),
        ("quay.io:5000", "quay.io:5000", True),
        ("10.0.0.0/8", "10.1.2.3:5000", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "reg.test", False),
        ("10.1.2.3", "10.1.2.3:5000", True),
        ("10.1.2.3:80", "10.1.2.3:5000", False),
        ("10.1.2.3:5000", "10.1.2.3:5000", True),
        ("fd00::/8", "[fd00::1]:5000", True),
        ("[fd00::1]", "[fd00::1]", True),
        ("[fd00::1]:5000", "[fd00::1]:5000", True),
        ("a.test, quay.io ,b.test", "quay.io", True),
        ("2.3", "10.1.2.3", True),
    ],
)
def test_exceptions(entry: str, authority: str, direct: bool) -> None:
    assert proxy_for(entry, authority) == (None if direct else PROXY)


@pytest.mark.parametrize("url", ["socks5://proxy.test", "http://", "http://[x", "http://u:s3cret@proxy.test:x"])
def test_proxies_that_are_none(url: str) -> None:
    with pytest.raises(InvalidArgument, match="the environment's https_proxy is not the URL of an HTTP proxy") as refused:
        Proxies({"https_proxy": url})
    assert "s3cret" not in str(refused.value)


@given(st.text(), st.text())
def test_anything_in_no_proxy_is_taken(no_proxy: str, authority: str) -> None:
    assert proxy_for(no_proxy, authority) in (None, PROXY)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errdefs import InvalidArgument
from agent.images.reference import parse_reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox:x", "docker.io/library/busybox:x"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
        ("Host/x", "Host/x:latest"),
        ("[2001:db8::1]:5000/x:v", "[2001:db8::1]:5000/x:v"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"quay.io/a/b:v2@{DIGEST}", f"quay.io/a/b:v2@{DIGEST}"),
    ],
)
def test_canonical_form(text: str, canonical: str) -> None:
    assert str(parse_reference(text)) == canonical


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "not a repository name"),
        ("Busybox", "lower case"),
        ("a//b", "not a repository name"),
        ("../etc", "not a re"),
        ("x:", "not a tag"),
        ("x:-y", "not a tag"),
        ("x:" + "y" * 129, "not a tag"),
        ("x@sha256:12", "not a digest"),
        ("x@", "not a digest"),
        ("ab" * 32, "image id"),
        ("a" * 256, "more than 255"),
        ("host.example:port/x", "not a registry"),
        ("a_b.c/e", "not a registry"),  # an underscore can't be in a host name
        ("x y", "not a repository name"),
        ("x\n", "not a repository name"),
    ],
)
def test_what_is_not_a_reference(text: str, hint: str) -> None:
    with pytest.raises(InvalidArgument, match=hint):
        parse_reference(text)


@given(st.text(alphabet="aB0./:@-_[]\n ", max_size=40))
def test_canonical_forms_are_fixed_points(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidArgument:
        return
    assert parse_reference(str(reference)) == reference


def test_parts_as_cri_lists_them() -> None:
    reference = parse_reference(f"busybox:1@{DIGEST}")
    assert reference.tagged == "docker.io/library/busybox:1"
    assert reference.with_digest(DIGEST) == f"docker.io/library/busybox@{DIGEST}"
    assert parse_reference(f"busybox@{DIGEST}").tagged == ""

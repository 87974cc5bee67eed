"""What the copier's errors become on the daemon's side."""

from __future__ import annotations

import errno

import pytest

from agent.errdefs import Internal, InvalidArgument, NotFound, OrlopError, ResourceExhausted
from agent.logs import protocol

FULL = "No space left on device"


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        pytest.param(OSError(errno.ENOENT, "the log can't be opened"), NotFound, "the log can't be opened", id="a sentence of ours"),
        pytest.param(OSError(errno.ENOSPC, FULL, "/var/log/a"), ResourceExhausted, f"/var/log/a: {FULL}", id="the kernel's, of a file"),
        pytest.param(OSError("no number"), Internal, "no number", id="without a number"),
        pytest.param(InvalidArgument("bad"), InvalidArgument, "bad", id="an error class"),
        pytest.param(ValueError("odd"), Internal, "odd", id="a bug"),
    ],
)
def test_an_error_arrives_as_its_class_and_sentence(error: Exception, kind: type[OrlopError], sentence: str) -> None:
    with pytest.raises(kind) as raised:
        protocol.check(protocol.decode(protocol.encode(protocol.refusal(error))))
    assert str(raised.value) == sentence

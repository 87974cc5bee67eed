"""Error classes and status codes."""

from __future__ import annotations

import errno
import os

import grpc
import pytest

from agent import errdefs
from agent.errdefs import Code, OrlopError


@pytest.mark.parametrize("code", sorted(set(Code) - {Code.OK, Code.OUT_OF_RANGE}))
def test_every_code_that_somebody_acts_on_has_a_class_of_its_own(code: Code) -> None:
    error = errdefs.from_code(code, "sentence")
    assert error.code is code
    assert str(error) == "sentence"


@pytest.mark.parametrize("code", [0, Code.OUT_OF_RANGE, 16, 17, 99, -1])
def test_a_code_that_nobody_knows_is_unknown(code: int) -> None:
    assert type(errdefs.from_code(code, "x")) is errdefs.Unknown


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (errno.ENOSPC, errdefs.ResourceExhausted, "the disk is full (No space left on device); make room there"),
        (errno.EDQUOT, errdefs.ResourceExhausted, "make room there"),
        (errno.EIO, errdefs.Unavailable, "the disk fails (Input/output error); see the kernel's log"),
        (errno.EROFS, errdefs.Unavailable, "see the kernel's log"),
    ],
)
def test_a_bad_disk_is_told_with_what_to_do(number: int, kind: type[OrlopError], advice: str) -> None:
    told = errdefs.of_disk(OSError(number, os.strerror(number), "/var/lib/orlop/x"))
    assert type(told) is kind
    assert str(told).startswith("/var/lib/orlop/x could not be written: ")
    assert advice in str(told)


def test_other_errors_are_none_of_a_disk() -> None:
    assert errdefs.of_disk(FileNotFoundError(errno.ENOENT, "No such file or directory")) is None


def test_the_numbers_are_grpcs() -> None:
    assert {code.name: code.value for code in Code} == {
        code.name: code.value[0] for code in grpc.StatusCode if code is not grpc.StatusCode.UNAUTHENTICATED
    }


def test_no_shim_can_send_what_says_that_the_connection_is_gone() -> None:
    assert type(errdefs.from_code(errdefs.Closed.code, "x")) is errdefs.Unavailable
    assert type(errdefs.from_code(errdefs.Busy.code, "x")) is errdefs.FailedPrecondition


def test_all_classes_have_one_base() -> None:
    classes = [item for item in vars(errdefs).values() if isinstance(item, type) and issubclass(item, Exception)]
    assert all(issubclass(item, OrlopError) for item in classes)

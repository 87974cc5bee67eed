from __future__ import annotations

import signal

import pytest

from agent.errdefs import InvalidArgument
from agent.pods import signals
from cri.api import api_pb2 as cri


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("9", 9),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("RTMAX-1", signal.SIGRTMAX - 1),
        ("SIGPOLL", signal.SIGIO),
    ],
)
def test_names_and_numbers(text: str, number: int) -> None:
    assert signals.parse(text, "f") == number


@pytest.mark.parametrize("text", ["", "0", "65", "SIGNOPE", "SIGRTMIN+99", "-9", "15; rm", "²", "9" * 5000, "SIGRTMIN+²", "SIGRTMIN+"])
def test_no_signal(text: str) -> None:
    with pytest.raises(InvalidArgument, match="f "):
        signals.parse(text, "f")


@pytest.mark.parametrize("value", [value for value in cri.Signal.values() if value])
def test_every_cri_signal_is_known_here_and_comes_back_with_the_same_number(value: cri.Signal) -> None:
    number = signals.from_cri(value, "f")
    assert number is not None
    assert signals.from_cri(signals.to_cri(number), "f") == number


def test_the_default_is_left_to_the_image() -> None:
    assert signals.from_cri(cri.SIGNAL_RUNTIME_DEFAULT, "f") is None

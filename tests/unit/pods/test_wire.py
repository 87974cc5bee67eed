from __future__ import annotations

import pytest

from agent.pods import wire
from agent.pods.wire import chunks, element
from cri.api import api_pb2 as cri


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 16383, 16384, 100_000])
def test_joined_elements_are_the_list_response(size: int) -> None:
    items = [cri.Container(id="a", labels={"k": "x" * size}), cri.Container(id="b")]
    joined = b"".join(element(1, item.SerializeToString()) for item in items)
    assert cri.ListContainersResponse.FromString(joined) == cri.ListContainersResponse(containers=items)


def test_chunks_say_together_what_the_list_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "CHUNK", 250)
    items = [cri.Container(id=str(number), labels={"k": "x" * 100}) for number in range(7)]
    messages = list(chunks(element(1, item.SerializeToString()) for item in items))
    assert [len(cri.StreamContainersResponse.FromString(message).containers) for message in messages] == [3, 3, 1]
    assert cri.ListContainersResponse.FromString(b"".join(messages)) == cri.ListContainersResponse(containers=items)


def test_nothing_makes_no_message() -> None:
    assert list(chunks([])) == []

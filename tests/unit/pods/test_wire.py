from __future__ import annotations

import pytest

from agent.pods.wire import element
from cri.api import api_pb2 as cri


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 16383, 16384, 100_000])
def test_joined_elements_are_the_list_response(size: int) -> None:
    items = [cri.Container(id="a", labels={"k": "x" * size}), cri.Container(id="b")]
    joined = b"".join(element(1, item.SerializeToString()) for item in items)
    assert cri.ListContainersResponse.FromString(joined) == cri.ListContainersResponse(containers=items)

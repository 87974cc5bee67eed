from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given

from agent.errdefs import DataLoss
from agent.network import Attachment
from tests.unit.network.fakes import NETNS, conflist
from tests.unit.network.test_conf import JSON

ATTACHMENT = Attachment("s1", NETNS, "podnet", "1.0.0", conflist(), (("IgnoreUnknown", "1"),), {"dns": {"servers": ["10.0.0.10"]}})


def test_it_survives_the_ledger() -> None:
    stored = json.loads(json.dumps(ATTACHMENT.to_json() | {"added by the holder": 1}))
    assert Attachment.from_json(stored) == ATTACHMENT


@pytest.mark.parametrize("key", list(ATTACHMENT.to_json()))
@given(value=JSON)
def test_a_torn_record_is_data_loss(key: str, value: object) -> None:
    try:
        read = Attachment.from_json(ATTACHMENT.to_json() | {key: value})
    except DataLoss:
        return
    assert isinstance(read.netns, Path)
    assert json.dumps(read.to_json())


@pytest.mark.parametrize("key", list(ATTACHMENT.to_json()))
def test_a_missing_key_is_data_loss(key: str) -> None:
    stored = ATTACHMENT.to_json()
    del stored[key]
    with pytest.raises(DataLoss, match="stored CNI attachment"):
        Attachment.from_json(stored)


def test_text_that_can_not_be_bytes_is_data_loss() -> None:
    with pytest.raises(DataLoss, match="stored CNI attachment"):
        Attachment.from_json(ATTACHMENT.to_json() | {"config": "\ud800"})

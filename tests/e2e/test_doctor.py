"""`orlop doctor` on a node that is fit, on one that isn't, and without a daemon."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.conftest import one_pair
from tests.e2e.daemon import Daemon

pytestmark = [pytest.mark.e2e, one_pair]


def checks(daemon: Daemon) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    done = daemon.orlop("--output", "json", "doctor", check=False)
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(done.stdout):
        found.setdefault(finding["check"], []).append(finding)
    return done.returncode, found


def test_a_fit_node_and_what_is_said_when_parts_are_missing(daemon: Daemon) -> None:
    code, found = checks(daemon)
    assert code == 0
    assert {finding["verdict"] for findings in found.values() for finding in findings} <= {"ok", "limited"}
    assert [finding["verdict"] for finding in found["daemon"]] == ["ok"]
    assert daemon.pair.engine in found[f"handler {daemon.pair.engine}"][1]["what"]

    daemon.stop()
    configuration = daemon.cni / "10-e2e.conflist"
    hidden = configuration.rename(daemon.cni / "hidden")
    code, found = checks(daemon)
    hidden.rename(configuration)
    assert code == 1
    assert found["network"][0]["verdict"] == "bad"
    assert found["daemon"][0]["verdict"] == "limited"
    daemon.start()

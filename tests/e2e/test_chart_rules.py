"""The chart's alerts, judged by promtool: each one fires when it should, not a minute before, and not for what is well."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import toolbox
from tests.helm import CHART

pytestmark = pytest.mark.e2e

RULES = sorted((CHART / "rules").glob("*.yaml"))
NODE = {"instance": "10.0.0.7:9745", "job": "orlop", "node": "node-1"}


@dataclass(frozen=True)
class Case:
    """Series have promtool's notation, a sample a minute."""

    series: Mapping[str, str]
    fires: int
    """Minutes after the first sample."""
    summary: str
    well: Mapping[str, str]
    """With these it never fires."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the alert, besides those of the node."""
    node: Mapping[str, str] = field(default_factory=lambda: NODE)


def one(metric: str, values: str, *, well: str, fires: int, summary: str, **labels: str) -> Case:
    return Case({named(metric, labels): values}, fires, summary, {named(metric, labels): well}, labels)


def named(metric: str, labels: Mapping[str, str]) -> str:
    return f"{metric}{{{','.join(f'{name}={value!r}' for name, value in labels.items())}}}"


LAG = "orlop_event_loop_lag_seconds_bucket"
CASES = {
    "OrlopLeaks": one(
        "orlop_leaks", "0 2x40", well="0x40", fires=11, summary="2 leaked shim of containerd on node-1", kind="shim", owner="containerd"
    ),
    "OrlopRuncInitLeaked": Case(
        {named("orlop_leaks", {"kind": "runc_init", "owner": "cri-o"}): "0 1x40"}, 6, "1 runc init without a container on node-1",
        {named("orlop_leaks", {"kind": "shim", "owner": "cri-o"}): "0 1x40"}, {"kind": "runc_init", "owner": "cri-o"},
    ),
    "OrlopLeakOld": one(
        "orlop_oldest_leak_seconds", "86400 90000x40", well="86400x40", fires=11,
        summary="A mount of docker is leaked for 1d 1h 0m 0s on node-1", kind="mount", owner="docker",
    ),
    "OrlopMissing": one(
        "orlop_missing", "0 1x40", well="0x40", fires=11, summary="1 netns gone behind Orlop's back on node-1", kind="netns"
    ),
    "OrlopAuditStale": one(
        "orlop_last_audit_timestamp_seconds", "0x40", well="0+60x40", fires=16, summary="No audit of node-1 has ended for 16m 0s"
    ),
    "OrlopAuditUnknown": one(
        "orlop_unknown", "0 1x40", well="0x40", fires=16, summary="shim of containerd can't be looked at on node-1",
        kind="shim", owner="containerd",
    ),
    "OrlopReleasePending": one(
        "orlop_oldest_pending_release_seconds", "900 960x40", well="900x40", fires=6,
        summary="The release of a mount is tried for 16m 0s on node-1", kind="mount",
    ),
    "OrlopQuarantined": one(
        "orlop_ledger_quarantined", "0 3x40", well="0x40", fires=1, summary="3 records of the ledger can't be read on node-1"
    ),
    "OrlopBlockingCalls": one(
        "orlop_event_loop_blocking_calls_total", "0 1x40", well="7x40", fires=1,
        summary="open blocked the event loop on node-1", call="open",
    ),
    "OrlopEventLoopLag": Case(
        {named(LAG, {"le": "0.25"}): "0x40", named(LAG, {"le": "0.5"}): "0+120x40", named(LAG, {"le": "+Inf"}): "0+120x40"},
        11, "Orlop answers 497.5ms late on node-1",
        {named(LAG, {"le": "0.25"}): "0+120x40", named(LAG, {"le": "0.5"}): "0+120x40", named(LAG, {"le": "+Inf"}): "0+120x40"},
    ),
    "OrlopShimDeleteLies": one(
        "orlop_shim_delete_lies_total", "0 1x40", well="7x40", fires=1, summary="`shim delete` left something behind on node-1"
    ),
    "OrlopLogsLost": one(
        "orlop_log_write_errors_total", "0 1x40", well="7x40", fires=1, summary="Lines of container logs are lost on node-1"
    ),
}  # fmt: skip
NAMELESS = Case(
    {named("orlop_leaks", {"kind": "fifo", "owner": "orlop"}): "0 1x40"}, 11, "1 leaked fifo of orlop on 10.0.0.7:9745", {},
    {"kind": "fifo", "owner": "orlop"}, {"instance": "10.0.0.7:9745"},
)  # fmt: skip
"""Where nobody tells Prometheus the node's name."""


def alerts() -> dict[str, dict[str, Any]]:
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def promtool(*arguments: str | Path) -> str:
    """Runs it; what it says. Fails with that if it isn't content."""
    done = subprocess.run(
        [toolbox.prometheus("promtool"), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def judged(name: str, case: Case) -> list[dict[str, Any]]:
    """promtool's tests of one alert."""
    rule = alerts()[name]
    # The job is not in what is summed up.
    node = {label: value for label, value in case.node.items() if label != "job" or "sum by" not in rule["expr"]}
    expected = {
        "exp_labels": {**node, **case.labels, **rule["labels"]},
        "exp_annotations": {**rule["annotations"], "summary": case.summary},
    }
    silent, firing = ({"alertname": name, "eval_time": f"{case.fires - before}m", "exp_alerts": []} for before in (1, 0))
    well = [{"alertname": name, "eval_time": f"{minute}m", "exp_alerts": []} for minute in (1, case.fires, 40)]
    made = [(case.series, [silent, {**firing, "exp_alerts": [expected]}]), (case.well, well)]
    return [{"interval": "1m", "input_series": written(series, case.node), "alert_rule_test": tests} for series, tests in made if series]


def written(series: Mapping[str, str], node: Mapping[str, str]) -> list[dict[str, str]]:
    labels = ",".join(f"{name}={value!r}" for name, value in node.items())
    return [{"series": name.replace("}", f",{labels}}}").replace("{,", "{"), "values": values} for name, values in series.items()]


def checked(folder: Path, tests: Sequence[Mapping[str, Any]]) -> str:
    document = {"rule_files": [str(file) for file in RULES], "evaluation_interval": "1m", "tests": tests}
    (folder / "test.yaml").write_text(json.dumps(document))  # JSON is YAML
    return promtool("test", "rules", folder / "test.yaml")


@pytest.mark.parametrize("file", RULES, ids=lambda file: str(file.stem))
def test_prometheus_understands_them(file: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", "--lint=all", "--lint-fatal", file)


def test_each_alert_fires_in_time_and_for_its_reason_only(tmp_path: Path) -> None:
    assert CASES.keys() == alerts().keys()
    tests = [test for name, case in CASES.items() for test in judged(name, case)]
    checked(tmp_path, [*tests, *judged("OrlopLeaks", NAMELESS)])


def test_that_check_sees_an_alert_that_does_not_fire(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="OrlopMissing"):
        checked(tmp_path, judged("OrlopMissing", one("orlop_missing", "0x40", well="0x40", fires=11, summary="", kind="netns")))

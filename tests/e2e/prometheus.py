"""Debian's Prometheus on the loopback interface: it scrapes one address, and evaluates the alerts that the chart has."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e import toolbox
from tests.e2e.client import until
from tests.e2e.registry import free_port

NODE = "node-1"
"""What the chart's PodMonitor would make the label `node`."""


class Prometheus:
    """One that runs."""

    def __init__(self, address: str) -> None:
        self._address = address

    def query(self, text: str) -> list[dict[str, Any]]:
        """The samples of an instant query, with their labels in `metric` and time and value in `value`."""
        return list(self._get("query", query=text)["result"])

    def alerts(self) -> Counter[tuple[str, ...]]:
        """Those that fire: name, and kind and owner where they have them."""
        firing = [alert["labels"] for alert in self._get("alerts")["alerts"] if alert["state"] == "firing"]
        assert all(labels["node"] == NODE for labels in firing)
        return Counter(tuple(labels[name] for name in ("alertname", "kind", "owner") if name in labels) for labels in firing)

    def _get(self, what: str, **arguments: str) -> dict[str, Any]:
        url = f"http://{self._address}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        data: dict[str, Any] = document["data"]
        return data


@contextmanager
def serving(folder: Path, target: str, groups: list[Mapping[str, Any]]) -> Iterator[Prometheus]:
    """One that scrapes `target` and evaluates `groups` (a PrometheusRule's) once a second, without their patience (`for`)."""
    folder.mkdir()
    hasty = [{**group, "rules": [{**rule, "for": "0s"} for rule in group["rules"]]} for group in groups]
    scrape = {"job_name": "orlop", "static_configs": [{"targets": [target], "labels": {"node": NODE}}]}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yml")],
        "scrape_configs": [scrape],
    }
    for name, document in (("rules.yml", {"groups": hasty}), ("prometheus.yml", config)):
        (folder / name).write_text(json.dumps(document))  # JSON is YAML
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([toolbox.prometheus(), *options], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    prometheus = Prometheus(address)
    try:
        until(lambda: process.poll() is not None or ready(address), what="Prometheus serves", detail=(folder / "log").read_text)
        assert process.poll() is None, (folder / "log").read_text()
        yield prometheus
    finally:
        process.terminate()
        process.wait(30)


def ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False

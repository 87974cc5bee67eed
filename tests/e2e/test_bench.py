"""`orlop bench` of two Orlops against each other: every measurement has numbers, and nothing is left of it, also when it is cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from agent.bench.run import FAMILIES
from tests.e2e.client import BUSYBOX, until
from tests.e2e.conftest import clean_afterwards, one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.node import CGROUP_PARENT
from tests.e2e.registry import DockerRegistry
from tests.e2e.toolbox import REPO, Pair

pytestmark = [pytest.mark.e2e, one_pair]

SMALL = ("--pods", "2", "--parallel", "2", "--containers", "4", "--repeats", "3", "--turns", "1", "--log-bytes", "100000")


@pytest.fixture
def daemons(tmp_path: Path, pair: Pair, busybox: Path) -> Iterator[list[Daemon]]:
    """Two, each with the image; all that a bench makes on them has to be gone at the end."""
    both = [Daemon(tmp_path, pair, name=name) for name in ("a", "b")]
    for daemon in both:
        daemon.start()
        daemon.orlop("image", "import", busybox)
    with clean_afterwards(*(daemon.root for daemon in both)):
        yield both
        for daemon in both:
            assert daemon.client.pods() == []
            daemon.stop()
    for daemon in both:
        daemon.client.close()


def command(daemons: list[Daemon], logs: Path, *more: str) -> list[str]:
    sockets = [str(daemon.socket) for daemon in daemons]
    fixed = ["--image", BUSYBOX, "--cgroup-parent", CGROUP_PARENT, "--log-root", str(logs)]
    return [sys.executable, "-m", "agent.cli.main", "bench", *sockets, *fixed, *more]


def test_two_daemons(daemons: list[Daemon], tmp_path: Path) -> None:
    with DockerRegistry(tmp_path / "registry") as registry:
        registry.push_image("large", [{"file": b"x" * 100_000}], "1")
        restarts = [option for daemon in daemons for option in ("--restart", f"{daemon.socket}=true")]
        cgroups = [option for daemon in daemons for option in ("--cgroup", f"{daemon.socket}={CGROUP_PARENT}")]
        files = ["--json", str(tmp_path / "bench.json"), "--svg", str(tmp_path / "bench.svg")]
        large = ["--large-image", f"{registry.address}/large:1"]
        argv = command(daemons, tmp_path / "logs", *SMALL, *restarts, *cgroups, *files, *large)
        done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "bench.json").read_text())
    assert {row["family"] for row in document["measurements"]} == set(FAMILIES)
    missing = {row["key"]: result["reason"] for row in document["measurements"] for result in row["results"] if not result["samples"]}
    assert missing == {}
    assert ElementTree.parse(tmp_path / "bench.svg").getroot().tag.endswith("svg")
    for title in ("pod start: the three above", "log, lines of 4 KiB", "pull and unpack"):
        assert f"\n{title} " in done.stdout
    assert not any((tmp_path / "logs").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_cut_off(daemons: list[Daemon], tmp_path: Path, number: signal.Signals) -> None:
    argv = command(daemons, tmp_path / "logs", "--only", "lists", "--containers", "30")
    with subprocess.Popen(argv, cwd=REPO, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as bench:
        until(lambda: len(daemons[0].client.containers()) > 5, what="the bench has made containers")
        bench.send_signal(number)
        _, said = bench.communicate(timeout=60)
    assert bench.returncode == 130, said
    assert "Traceback" not in said
    assert not any((tmp_path / "logs").iterdir())

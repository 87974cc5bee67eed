"""`orlop watch` on a node that never had Orlop, beside a containerd: it tells what leaks, and that it is gone; and it changes nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

from tests.e2e import containerd
from tests.e2e.client import Client, until
from tests.e2e.conftest import clean_afterwards, one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.test_foreign import NOW, is_containerd, leak_init, leak_mount, leak_netns, leak_shim
from tests.e2e.toolbox import REPO, Pair

pytestmark = [pytest.mark.e2e, one_pair]

ADDRESS = "127.0.0.1:9745"
UNIT = REPO / "deploy/orlop-watch.service"


@pytest.fixture
def never(tmp_path: Path, pair: Pair) -> Iterator[Daemon]:
    """A daemon that was never started, for its configuration."""
    daemon = Daemon(tmp_path, pair, log_settings='format = "json"')
    daemon.state.rmdir()
    with clean_afterwards(daemon.root):
        yield daemon
        assert not daemon.state.exists()
        assert not daemon.root.exists()
    daemon.client.close()


@pytest.fixture
def other(never: Daemon, tmp_path: Path, busybox: Path, pause: Path) -> Iterator[Client]:
    with containerd.serving(tmp_path / "containerd", never.pair, busybox, pause) as client:
        yield client


def orlop(never: Daemon, *arguments: str, without: str = "") -> list[str | Path]:
    """A command with the capabilities that the unit leaves the watch, but one, and no others."""
    [line] = [line for line in UNIT.read_text().splitlines() if line.startswith("CapabilityBoundingSet=")]
    kept = (f"+{name.removeprefix('CAP_').lower()}" for name in line.partition("=")[2].split() if name != without)
    privileges = ("setpriv", "--bounding-set", ",".join(("-all", *kept)), "--inh-caps", "-all", "--no-new-privs")
    return [*privileges, sys.executable, "-m", "agent.cli.main", *arguments, "--config", never.config, *NOW]


def command(never: Daemon) -> list[str | Path]:
    return orlop(never, "watch", "--address", ADDRESS, "--interval", "1")


@contextmanager
def watching(never: Daemon, tmp_path: Path) -> Iterator[None]:
    """It runs, and has told systemd so; its log is `never.log`. It ends by SIGTERM, in order."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, never.log.open("wb") as log:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "ORLOP_TIMEOUTS": "FOREIGN_LIST=1"}
        process = subprocess.Popen(command(never), cwd=REPO, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            assert systemd.recv(100) == b"READY=1"
            yield
            process.terminate()
            assert process.wait(30) == 0, never.log_tail()
            assert systemd.recv(100) == b"STOPPING=1"
        finally:
            process.kill()
            process.wait()


def scrape() -> dict[tuple[str, ...], float]:
    """What isn't 0: name and values of its labels, in the order of their names."""
    with urllib.request.urlopen(f"http://{ADDRESS}/metrics", timeout=10) as answer:
        families = list(parsed(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value for sample in samples if sample.value}


def leaks() -> dict[tuple[str, ...], float]:
    """By kind and owner."""
    return {key[1:]: value for key, value in scrape().items() if key[0] == "orlop_leaks"}


def told(never: Daemon, event: str) -> Counter[tuple[str, str]]:
    """Kind and what of each line in its log with this event."""
    entries: list[dict[str, Any]] = [json.loads(line) for line in never.log.read_text().splitlines()]
    return Counter((entry["kind"], entry["what"]) for entry in entries if entry["event"] == event)


def audited(result: str, times: int = 1) -> None:
    """Waits until so many more audits have ended so."""
    before = scrape().get(("orlop_audits_total", result), 0)
    until(lambda: scrape().get(("orlop_audits_total", result), 0) >= before + times, what=f"an audit is {result}", detail=scrape)


def test_a_leak_is_told_by_metrics_and_log_and_that_it_is_gone(never: Daemon, other: Client, tmp_path: Path) -> None:
    other.run_container(other.run_pod())
    with watching(never, tmp_path):
        audited("complete")
        assert leaks() == {}
        planted = leak_shim(never) | leak_init(never, tmp_path / "init") | leak_mount() | leak_netns()
        expected = Counter((kind, "unknown" if kind == "netns" else "containerd") for kind in planted.values())
        until(lambda: leaks() == expected, what="all are counted", detail=scrape)
        until(lambda: len(told(never, "audit: leaked")) == len(planted), what="all are told", detail=never.log_tail)
        assert told(never, "audit: leaked") == Counter((kind, what) for what, kind in planted.items())

        second = subprocess.run(command(never), cwd=REPO, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
        assert (second.returncode, second.stderr.splitlines()[-1].startswith(f"orlop: metrics can't be served on {ADDRESS}")) == (1, True)

        [pid] = [int(entry.name) for entry in Path("/proc").iterdir() if is_containerd(entry)]
        os.kill(pid, signal.SIGSTOP)
        try:
            audited("partial")
            assert any(name == "orlop_unknown" for name, *_ in scrape())
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: leaks() == expected, what="they are counted again", detail=scrape)
        assert sum(value for (name, *_), value in scrape().items() if name == "orlop_leaks_found_total") == len(planted)

        never.orlop("reap", *NOW, "--yes")
        until(lambda: leaks() == {}, what="none is left", detail=scrape)
        until(lambda: told(never, "found no more").keys() >= told(never, "audit: leaked").keys(), what="it is told that they are gone")


@pytest.mark.parametrize("without", ["", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE", "CAP_NET_ADMIN"])
def test_each_capability_of_the_unit_is_needed(never: Daemon, without: str) -> None:
    """CAP_NET_RAW is, where iptables is the legacy one."""
    as_nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    with subprocess.Popen([*as_nobody, "bash", "-c", "echo -n crun > /proc/self/comm; echo; read"], stdin=-1, stdout=-1) as process:
        assert process.stdout
        process.stdout.readline()
        done = subprocess.run(
            orlop(never, "audit", "--output", "json", without=without),
            cwd=REPO, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        process.communicate(b"\n")
    assert {finding["state"] for finding in json.loads(done.stdout)} == ({"unknown"} if without else set()), done.stdout

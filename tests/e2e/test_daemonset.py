"""The chart's DaemonSet with the image of `make image`, as a pod under Orlop, beside a containerd: Prometheus gets to know what leaks."""

from __future__ import annotations

import json
import re
import sys
import tarfile
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as parsed

from deploy.image import build, built
from deploy.iptables_save import NAMES
from tests import helm
from tests.e2e import containerd, prometheus, toolbox
from tests.e2e.client import Client, until
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.daemonset import Objects, pod_of
from tests.e2e.test_foreign import leak_init, leak_mount, leak_netns, leak_shim
from tests.e2e.toolbox import REPO

pytestmark = pytest.mark.e2e

NAME = "leaks-orlop"
ADDRESS = "127.0.0.1:9745"
CAPABILITIES = {"dac_read_search": 2, "net_admin": 12, "net_raw": 13, "sys_ptrace": 19}
"""linux/capability.h"""
PATIENCE = 60.0


@pytest.fixture
def objects(daemon: Daemon) -> Objects:
    """With a containerd's leaks counted at once, and the ledger of an Orlop that isn't in its usual places."""
    values = {
        "watch": {"interval": 10, "grace": 0},
        "config": daemon.config.read_text().replace('level = "debug"', 'format = "json"'),
        "extraHostPaths": [{"name": "orlop", "path": str(daemon.root)}],
        "prometheusRule": {"enabled": True},
    }
    [texts] = helm.render(values)
    return helm.documents(texts)


@pytest.fixture
def other(daemon: Daemon, tmp_path: Path, busybox: Path, pause: Path) -> Iterator[Client]:
    with containerd.serving(tmp_path / "containerd", daemon.pair, busybox, pause) as client:
        yield client


@contextmanager
def running(daemon: Daemon, objects: Objects, folder: Path) -> Iterator[str]:
    """The pod runs; the id of its container. Afterwards it ends in order, and its image is removed."""
    folder.mkdir()
    daemon.orlop("image", "import", built())
    manifest = folder / "pod.yaml"
    pod = pod_of(objects, NAME, folder, ADDRESS.partition(":")[0])
    manifest.write_text(yaml.safe_dump(pod))
    done = daemon.orlop("--output", "json", "run", manifest, "--log-root", folder / "logs")
    container = str(json.loads(done.stdout)["containers"]["watch"]["id"])
    yield container
    daemon.client.stop(container, pod["spec"]["terminationGracePeriodSeconds"])
    assert daemon.client.status(container).exit_code == 0
    daemon.client.remove_all()
    daemon.orlop("image", "rm", pod["spec"]["containers"][0]["image"])


def scrape() -> dict[tuple[str, ...], float]:
    """What isn't 0: name and values of its labels, in the order of their names."""
    try:
        with urllib.request.urlopen(f"http://{ADDRESS}/metrics", timeout=10) as answer:
            families = list(parsed(answer.read().decode()))
    except OSError:
        return {}
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value for sample in samples if sample.value}


def wait_for(what: str, condition: Any, detail: Any = scrape) -> None:
    until(condition, what=what, within=PATIENCE, detail=detail)


def process_of(container: str) -> Path:
    """The only process in the cgroup of a container."""
    [process] = [entry for entry in Path("/proc").glob("[0-9]*") if container in (entry / "cgroup").read_text()]
    return process


def alone_and_bound(daemon: Daemon, watch: str) -> None:
    """What the chart says of its rights is so."""
    status = dict(line.split(":\t", 1) for line in (process_of(watch) / "status").read_text().splitlines() if ":\t" in line)
    may = sum(1 << number for number in CAPABILITIES.values())
    assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")] == [may, may, may, 0, 0]
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for path in ("/run/containerd/made", "/var/lib/cni/made", "/usr/made"):
        assert b"Read-only file system" in daemon.client.exec_sync(watch, "/usr/bin/python3", "-c", f"open({path!r}, 'w')").stderr


@one_pair
def test_its_pod_finds_what_leaks_on_the_node_and_prometheus_is_told(
    daemon: Daemon, objects: Objects, other: Client, tmp_path: Path
) -> None:
    other.run_container(other.run_pod())
    earlier = daemon.client.run_container(goes := daemon.client.run_pod())
    [rule] = [document for name, document in objects.items() if name.startswith("PrometheusRule/")]
    with (
        running(daemon, objects, tmp_path / "watch") as watch,
        prometheus.serving(tmp_path / "prometheus", ADDRESS, rule["spec"]["groups"]) as told,
    ):
        wait_for("an audit is complete", lambda: scrape().get(("orlop_audits_total", "complete")))
        assert {name: value for name, value in scrape().items() if name[0] in ("orlop_leaks", "orlop_missing", "orlop_unknown")} == {}
        assert daemon.client.exec_sync(watch, "/usr/local/bin/orlop", "audit").stdout == b"clean: the node is as the ledger says\n"
        alone_and_bound(daemon, watch)

        mounts = process_of(watch) / "mountinfo"
        assert earlier in mounts.read_text()
        daemon.client.stop_pod(goes)
        daemon.client.remove_pod(goes)
        assert earlier not in mounts.read_text(), "no rootfs is held that was there when it started"

        planted = leak_shim(daemon) | leak_init(daemon, tmp_path / "init") | leak_mount() | leak_netns()
        expected = {(kind, "unknown" if kind == "netns" else "containerd"): n for kind, n in Counter(planted.values()).items()}
        wait_for("all are counted", lambda: {key[1:]: n for key, n in scrape().items() if key[0] == "orlop_leaks"} == expected)
        alerts = Counter({("OrlopLeaks", *key) for key in expected}) + Counter([("OrlopRuncInitLeaked", "runc_init", "containerd")])
        wait_for("the alerts fire", lambda: told.alerts() == alerts, told.alerts)
        assert {sample["metric"]["node"] for sample in told.query("orlop_leaks > 0")} == {prometheus.NODE}

        daemon.orlop("reap", "--grace", "0", "--yes")
        wait_for("none is left", lambda: not any(key[0] == "orlop_leaks" for key in scrape()))
        wait_for("no alert fires", lambda: not told.alerts(), told.alerts)


def test_the_rules_of_either_iptables_are_read(tmp_path: Path) -> None:
    """In network namespaces of their own: to look at a legacy table makes it."""
    for family in ("iptables", "ip6tables"):
        save = tmp_path / f"{family}-save"
        save.symlink_to(REPO / "deploy/iptables_save.py")
        script = f"{family}-nft -t nat -N BY-NFT; {{legacy}} {sys.executable} {save} -t nat; cat {NAMES[family]}"
        for legacy, read, made in ((f"{family}-legacy -t nat -N BY-LEGACY;", {"BY-NFT", "BY-LEGACY"}, True), ("", {"BY-NFT"}, False)):
            done = toolbox.run("unshare", "--net", "bash", "-ec", script.format(legacy=legacy))
            assert set(re.findall("^:(BY-[A-Z]+) ", done.stdout, re.MULTILINE)) == read
            assert done.stdout.endswith("nat\n") == made


def test_the_image_is_the_same_when_it_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")  # nothing can be fetched from here; it was for the first one
    build(again := tmp_path / "image.tar")
    made = []
    for archive in (again, built()):
        with tarfile.open(archive) as tar:
            made.append(tar.getnames())  # digests
    assert made[0] == made[1]

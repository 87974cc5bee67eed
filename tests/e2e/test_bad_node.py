"""A node that isn't as it should be: no network, plugins and shims that are missing, fail, print garbage or hang.

Each is told with its name and its words, leaves nothing, and is over as soon as the node is right again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, pod_namespaces, refused, until
from tests.e2e.conftest import clean_afterwards, one_pair
from tests.e2e.daemon import CNI_PLUGINS, Daemon
from tests.e2e.toolbox import Pair

pytestmark = [pytest.mark.e2e, one_pair]

SHIMS = {
    "garbage": 'echo "what a day"',
    "failing": "echo no disk in the drive >&2; exit 3",
    "mute": "exec sleep 1000",
    "killed": "kill -9 $$",
}


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory, pair: Pair, busybox: Path) -> Iterator[Daemon]:
    """A daemon with a handler for each kind of bad shim, and a folder for bad plugins."""
    home = tmp_path_factory.mktemp("bad")
    handlers = [(name, executable(home / "shims" / name, script), pair.engine_path) for name, script in SHIMS.items()]
    handlers += [("missing", home / "shims" / "missing", pair.engine_path), ("no-engine", pair.shim_path, home / "shims" / "engine")]
    settings = "".join(f'[runtimes.{name}]\npath = "{shim}"\nengine = "{engine}"\n' for name, shim, engine in handlers)
    daemon = Daemon(home, pair, handler_settings=settings, timeouts="CNI=1.0;SHIM_START=1.0")
    drop_in = daemon.config.parent / "conf.d" / "cni.toml"
    drop_in.parent.mkdir()
    drop_in.write_text(f'[cni]\nbin_dirs = ["{home}/plugins", "{CNI_PLUGINS}"]\n')
    daemon.start()
    daemon.orlop("image", "import", busybox)
    with clean_afterwards(daemon.root):
        yield daemon
        daemon.stop()
    daemon.client.close()


def network_ready(kubelet: Client) -> cri.RuntimeCondition:
    conditions = kubelet.runtime.Status(cri.StatusRequest()).status.conditions
    found: cri.RuntimeCondition = next(condition for condition in conditions if condition.type == "NetworkReady")
    return found


class TestNetwork:
    @pytest.fixture
    def conflist(self, shared_daemon: Daemon, kubelet: Client) -> Iterator[Path]:
        """The configuration of the pod network; what a test makes of it is undone."""
        path = shared_daemon.cni / "10-e2e.conflist"
        good = path.read_text()
        yield path
        path.unlink(missing_ok=True)
        until(lambda: not network_ready(kubelet).status, what="the network is gone")
        path.write_text(good)
        until(lambda: network_ready(kubelet).status, what="the network is back")
        kubelet.run_pod()

    def with_plugin(self, kubelet: Client, conflist: Path, script: str) -> None:
        """The pod network with one more plugin, `bad`, behind the others."""
        plugin = conflist.parent.parent / "plugins" / "bad"
        plugin.unlink(missing_ok=True)
        network = json.loads(conflist.read_text())
        network["plugins"].append({"type": "bad"})
        conflist.write_text(json.dumps(network))
        until(lambda: "no plugin bad" in network_ready(kubelet).message, what="the configuration is read")
        executable(plugin, script)
        until(lambda: network_ready(kubelet).status, what="the plugin is found")

    def test_no_configuration(self, kubelet: Client, conflist: Path) -> None:
        conflist.unlink()
        until(lambda: not network_ready(kubelet).status, what="the missing network is noticed")
        condition = network_ready(kubelet)
        assert condition.reason
        assert str(conflist.parent) in condition.message
        with refused(grpc.StatusCode.UNAVAILABLE, "network", str(conflist.parent)):
            kubelet.run_pod()
        host = pod_namespaces()
        host.network = cri.NODE
        kubelet.run_pod(namespaces=host)  # needs none

    @pytest.mark.parametrize(
        "text", ["{", '{"cniVersion": "1.0.0", "name": "../x", "plugins": [{"type": "bridge"}]}'], ids=["torn", "name"]
    )
    def test_a_configuration_that_is_none(self, kubelet: Client, conflist: Path, text: str) -> None:
        """It may be one that is being written: what was there before stays in force; without one before there is no network."""
        conflist.write_text(text)
        until(lambda: "its last good version stays in force" in network_ready(kubelet).message, what="the broken file is noticed")
        kubelet.run_pod()
        conflist.unlink()
        until(lambda: not network_ready(kubelet).status, what="the network is gone")
        conflist.write_text(text)
        until(lambda: conflist.name in network_ready(kubelet).message, what="the broken file is noticed again")
        with refused(grpc.StatusCode.UNAVAILABLE, conflist.name):
            kubelet.run_pod()

    def test_a_plugin_that_is_not_there(self, kubelet: Client, conflist: Path) -> None:
        network = json.loads(conflist.read_text())
        network["plugins"][0]["type"] = "not-there"
        conflist.write_text(json.dumps(network))
        until(lambda: not network_ready(kubelet).status, what="the plugin is missed")
        with refused(grpc.StatusCode.UNAVAILABLE, "no plugin not-there"):
            kubelet.run_pod()

    def test_a_plugin_that_fails(self, kubelet: Client, conflist: Path) -> None:
        """One plugin after the other, since a new configuration takes a moment and a new plugin none."""
        self.with_plugin(kubelet, conflist, "false")
        unlucky = '{"cniVersion": "1.0.0", "code": 7, "msg": "all out of luck"}'
        for script, code, words in (
            (f"echo '{unlucky}'; test $CNI_COMMAND != ADD", grpc.StatusCode.UNKNOWN, "all out of luck"),
            ("echo what a day; test $CNI_COMMAND != ADD", grpc.StatusCode.UNKNOWN, "what a day"),
            ("test $CNI_COMMAND != ADD || echo what a day", grpc.StatusCode.INTERNAL, "what a day"),
            ("test $CNI_COMMAND != ADD || exec sleep 1000", grpc.StatusCode.DEADLINE_EXCEEDED, "killed"),
            ("test $CNI_COMMAND != ADD || kill -9 $$", grpc.StatusCode.UNKNOWN, "signal 9"),
        ):
            executable(conflist.parent.parent / "plugins" / "bad", f"cat >/dev/null; {script}")
            with refused(code, "CNI plugin bad", "ADD", words):
                kubelet.run_pod()
            assert kubelet.pods() == []

    def test_a_plugin_that_does_not_let_go(self, kubelet: Client, conflist: Path) -> None:
        """The address must not be given to others while it is in use: the pod isn't stopped until DEL has worked."""
        allowed = conflist.parent / "allowed"
        answer = '{"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.1/24"}]}'
        self.with_plugin(
            kubelet,
            conflist,
            f"cat >/dev/null; test $CNI_COMMAND = ADD && echo '{answer}' || test -e {allowed} || {{ echo not yet; false; }}",
        )
        pod = kubelet.run_pod()
        container = kubelet.run_container(pod)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, pod.id, "CNI plugin bad", "not yet"):
            kubelet.stop_pod(pod)
        assert kubelet.pod_status(pod).state == cri.SANDBOX_NOTREADY
        assert kubelet.status(container).state == cri.CONTAINER_EXITED
        with refused(grpc.StatusCode.FAILED_PRECONDITION, pod.id, "CNI plugin bad"):
            kubelet.remove_pod(pod)
        leaks = {condition.type: condition for condition in kubelet.runtime.Status(cri.StatusRequest()).status.conditions}
        assert not leaks["NoLeakedResources"].status
        allowed.touch()
        kubelet.remove_pod(pod)
        allowed.unlink()


class TestShims:
    def run(self, kubelet: Client, handler: str, code: grpc.StatusCode, *words: str) -> None:
        with refused(code, *words):
            kubelet.run_pod(handler=handler)
        assert kubelet.pods() == []
        assert kubelet.pod_status(kubelet.run_pod()).state == cri.SANDBOX_READY, "others don't notice"

    def test_missing(self, kubelet: Client) -> None:
        self.run(kubelet, "missing", grpc.StatusCode.NOT_FOUND, "'missing'", "shims/missing")

    def test_garbage(self, kubelet: Client) -> None:
        self.run(kubelet, "garbage", grpc.StatusCode.INTERNAL, "what a day")

    def test_failing(self, kubelet: Client) -> None:
        self.run(kubelet, "failing", grpc.StatusCode.UNKNOWN, "no disk in the drive", "3")

    def test_mute(self, kubelet: Client) -> None:
        self.run(kubelet, "mute", grpc.StatusCode.DEADLINE_EXCEEDED, "shims/mute", "1 s")

    def test_killed(self, kubelet: Client) -> None:
        self.run(kubelet, "killed", grpc.StatusCode.UNKNOWN, "shims/killed", "9")

    def test_without_an_engine(self, kubelet: Client) -> None:
        pod = kubelet.run_pod(handler="no-engine")
        container = kubelet.create_container(pod)
        with refused(grpc.StatusCode.UNKNOWN, "shims/engine"):
            kubelet.start(container)
        assert kubelet.status(container).reason == "StartError"


def test_a_shim_that_comes_later(kubelet: Client, shared_daemon: Daemon, pair: Pair) -> None:
    """As an installer brings it, without a restart."""
    path = shared_daemon.config.parent / "shims" / "missing"
    path.symlink_to(pair.shim_path)
    try:
        pod = kubelet.run_pod(handler="missing")
        assert kubelet.exec_sync(kubelet.run_container(pod), "echo", "fine").stdout == b"fine\n"
        kubelet.remove_pod(pod)
    finally:
        path.unlink()

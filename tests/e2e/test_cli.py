"""The `orlop` command against a real daemon: what people type, what programs parse, and how errors read."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cri.api import api_pb2 as cri
from tests.e2e.client import BUSYBOX, Client, until
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.toolbox import REPO
from tests.images import busybox_image, make_docker_archive, make_oci_layout

pytestmark = [pytest.mark.e2e, one_pair]

COMMAND = (sys.executable, "-m", "agent.cli.main")
Orlop = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def first_pod(shared_daemon: Daemon) -> None:
    """With the first pod of no kubelet comes the cgroup of such pods, which goes with the daemon."""
    shared_daemon.client.runtime.RunPodSandbox(
        cri.RunPodSandboxRequest(config=cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="first", uid="first", namespace="e2e")))
    )
    shared_daemon.client.remove_all()


@pytest.fixture
def orlop(shared_daemon: Daemon, first_pod: None, kubelet: Client) -> Orlop:
    """The command; what it makes is removed after the test."""
    return shared_daemon.orlop


@pytest.fixture
def run(orlop: Orlop, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`orlop run` of a pod with these fields of its spec."""

    def run_pod(*flags: str, check: bool = True, name: str = "web", **spec: Any) -> subprocess.CompletedProcess[str]:
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "e2e"}, "spec": spec}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(manifest))
        return orlop("run", path, "--log-root", tmp_path / "logs", *flags, check=check)

    return run_pod


def container(*command: str, name: str = "app", **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": BUSYBOX, "command": list(command) or ["sleep", "1000000"], **fields}


def sentence(done: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> None:
    """The command failed, and said why in one sentence for people."""
    assert done.returncode == code, done
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr
    assert all(word in lines[-1] for word in words), done.stderr


class TestRun:
    def test_a_pod(self, orlop: Orlop, run: Callable[..., Any], kubelet: Client) -> None:
        done = run(
            containers=[
                container("sh", "-c", 'echo "$WORD from $HOSTNAME"; sleep 1000000', env=[{"name": "WORD", "value": "hello"}]),
                container(name="side", resources={"limits": {"cpu": "100m", "memory": "32Mi"}}),
            ],
            initContainers=[container("sh", "-c", "echo prepared", name="prepare")],
        )
        assert re.search(r"^sandbox web +ok +\d+ ms$", done.stderr, re.MULTILINE)
        for step in ("container prepare created", "init container prepare runs", "container app started", "container side started"):
            assert f"\n{step} " in done.stderr
        [pod] = kubelet.pods()
        assert pod.labels["io.kubernetes.pod.name"] == "web"
        assert {item.metadata.name: item.state for item in kubelet.containers()} == {
            "prepare": cri.CONTAINER_EXITED,
            "app": cri.CONTAINER_RUNNING,
            "side": cri.CONTAINER_RUNNING,
        }
        until(lambda: orlop("logs", "web/app").stdout == "hello from web\n", what="it said hello")
        assert orlop("logs", "prepare").stdout == "prepared\n"
        assert orlop("exec", "web/side", "--", "hostname").stdout == "web\n"
        done = orlop("rm", "e2e/web", "--grace", "0")
        assert done.stdout == "e2e/web removed\n"
        assert kubelet.pods() == []

    def test_json(self, run: Callable[..., Any], kubelet: Client) -> None:
        containers = [container("sh", "-c", "exit 3"), container("true", name="other")]
        done = run("--wait", "-o", "json", check=False, containers=containers)
        assert done.returncode == 3
        told = json.loads(done.stdout)
        assert told["pod_sandbox_id"] == kubelet.pods()[0].id
        assert {name: entry["exit_code"] for name, entry in told["containers"].items()} == {"app": 3, "other": 0}
        assert done.stderr == ""

    @pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 7", 7)])
    def test_wait_and_remove(self, run: Callable[..., Any], kubelet: Client, command: str, code: int) -> None:
        assert run("--wait", check=False, containers=[container("sh", "-c", command)]).returncode == code
        assert len(kubelet.pods()) == 1
        assert run("--rm", check=False, name="gone", containers=[container("sh", "-c", command)]).returncode == code
        assert [pod.metadata.name for pod in kubelet.pods()] == ["web"]

    def test_sidecars_run_on(self, run: Callable[..., Any], kubelet: Client) -> None:
        sidecar = container(name="proxy", restartPolicy="Always")
        run("--wait", initContainers=[sidecar], containers=[container("true")])
        assert {item.metadata.name: item.state for item in kubelet.containers()} == {
            "proxy": cri.CONTAINER_RUNNING,
            "app": cri.CONTAINER_EXITED,
        }

    def test_fields_that_need_a_cluster_are_named(self, run: Callable[..., Any]) -> None:
        done = run(
            serviceAccountName="robot",
            restartPolicy="Always",
            securityContext={"fsGroup": 1},
            containers=[container(livenessProbe={}, securityContext={"procMount": "Default"})],
        )
        ignored = {line.removeprefix("ignored: ") for line in done.stderr.splitlines() if line.startswith("ignored: ")}
        assert ignored == {
            "spec.serviceAccountName",
            "spec.restartPolicy Always: nothing is started again",
            "spec.securityContext.fsGroup",
            "container app.livenessProbe",
            "container app: securityContext.procMount",
        }

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ({"containers": []}, "spec.containers"),
            ({"containers": [{"name": "app"}]}, "image"),
            ({"containers": [container(image="orlop.test/none:latest")]}, "orlop.test/none:latest"),
            ({"containers": [container("/no/such/program")]}, "/no/such/program"),
            ({"containers": [container()], "initContainers": [container("sh", "-c", "exit 4", name="init")]}, "init ended with 4"),
            ({"containers": [container()], "runtimeClassName": "nope"}, "'nope'"),
            ({"containers": [container(resources={"limits": {"cpu": "many"}})]}, "'many' is not a quantity"),
            ({"containers": [container(volumeMounts=[{"name": "data", "mountPath": "/data"}])]}, "'data' is not a hostPath"),
            ({"containers": [container(env=[{"name": "A", "valueFrom": {}}])]}, "valueFrom"),
            ({"containers": "none"}, "not a valid Pod manifest"),
        ],
        ids=["no containers", "no image", "image", "program", "init", "handler", "quantity", "volume", "env", "type"],
    )
    def test_what_fails_is_taken_down_again(self, run: Callable[..., Any], kubelet: Client, spec: dict[str, Any], words: str) -> None:
        sentence(run(check=False, **spec), words)
        assert kubelet.pods() == []

    def test_manifests_that_are_none(self, orlop: Orlop, tmp_path: Path) -> None:
        for name, content in {"list": b"[1]", "kind": b"kind: Job", "torn": b"{a: [", "binary": b"\xff\xfe\x00"}.items():
            (tmp_path / name).write_bytes(content)
            sentence(orlop("run", tmp_path / name, check=False), str(tmp_path / name))
        sentence(orlop("run", tmp_path / "none.yaml", check=False), "none.yaml")

    def test_logs_that_have_no_place(self, run: Callable[..., Any], tmp_path: Path, kubelet: Client) -> None:
        (tmp_path / "logs").touch()
        sentence(run(check=False, containers=[container()]), str(tmp_path / "logs"))
        assert kubelet.pods() == []

    def test_interrupted_it_takes_the_pod_down(self, shared_daemon: Daemon, kubelet: Client, tmp_path: Path) -> None:
        (tmp_path / "pod.yaml").write_text(
            yaml.safe_dump({"kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": [container()]}})
        )
        command = [
            *COMMAND,
            "--socket",
            str(shared_daemon.socket),
            "run",
            "--wait",
            str(tmp_path / "pod.yaml"),
            "--log-root",
            str(tmp_path),
        ]
        running = subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True)
        until(lambda: any(item.state == cri.CONTAINER_RUNNING for item in kubelet.containers()), what="the container runs")
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=30)
        assert running.returncode == 130
        assert "Traceback" not in said
        assert kubelet.pods() == []


class TestPs:
    def test_table(self, orlop: Orlop, kubelet: Client, tmp_path: Path) -> None:
        pod = kubelet.run_pod("web", log_directory=tmp_path)
        running, ended = kubelet.run_container(pod, name="app"), kubelet.run_container(pod, ["true"], name="done")
        kubelet.wait_exit(ended)
        kubelet.stop_pod(kubelet.run_pod("old"))
        header, *lines = orlop("ps").stdout.splitlines()
        assert header.split() == ["POD", "POD", "ID", "IP", "CONTAINER", "ID", "STATE", "AGE", "IMAGE"]
        assert [(line.split()[0], "NOTREADY" in line) for line in lines] == [("e2e/old", True), *[("e2e/web", False)] * 3]
        assert any(running[:13] in line and "RUNNING" in line and BUSYBOX in line for line in lines)
        assert any(ended[:13] in line and "EXITED" in line for line in lines)

    def test_json(self, orlop: Orlop, kubelet: Client) -> None:
        assert json.loads(orlop("--output", "json", "ps").stdout) == []
        pod = kubelet.run_pod("web")
        container_id = kubelet.run_container(pod, name="app", attempt=2)
        [shown] = json.loads(orlop("ps", "-o", "json").stdout)
        assert (shown["id"], shown["namespace"], shown["name"], shown["state"]) == (pod.id, "e2e", "web", "READY")
        network = kubelet.pod_status(pod).network
        assert shown["ips"] == [network.ip, network.additional_ips[0].ip]
        [inside] = shown["containers"]
        assert (inside["id"], inside["name"], inside["attempt"], inside["state"]) == (container_id, "app", 2, "RUNNING")
        assert inside["created_at"] == kubelet.status(container_id).created_at


class TestLogs:
    @pytest.fixture
    def app(self, kubelet: Client, tmp_path: Path) -> str:
        pod = kubelet.run_pod("web", log_directory=tmp_path)
        script = "echo one; echo two >&2; sleep 0.5; printf three; until [ -e /tmp/stop ]; do sleep 0.05; done; echo; echo four"
        return kubelet.run_container(pod, ["sh", "-c", script], name="app")

    def test_streams_and_times(self, orlop: Orlop, kubelet: Client, app: str) -> None:
        until(lambda: len(kubelet.logs(app)) >= 2, what="there are two lines")
        done = orlop("logs", app[:8])
        assert (done.stdout, done.stderr) == ("one\n", "two\n")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\S+ one\n", orlop("logs", "-t", "web/app").stdout)
        records = [json.loads(line) for line in orlop("logs", "app", "-o", "json").stdout.splitlines()]
        shown = {(record["stream"], record["partial"], record["text"]) for record in records}  # the streams are in no order
        assert {("stdout", False, "one"), ("stderr", False, "two")} <= shown

    def test_follow_through_a_rotation(self, shared_daemon: Daemon, kubelet: Client, app: str) -> None:
        command = [*COMMAND, "--socket", str(shared_daemon.socket), "logs", "-f", "app"]
        following = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert following.stdout
        assert following.stdout.readline() == b"one\n"
        log = Path(kubelet.status(app).log_path)
        log.rename(log.with_suffix(".1"))
        kubelet.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=app))
        kubelet.exec_sync(app, "touch", "/tmp/stop")
        rest, _ = following.communicate(timeout=20)
        assert (rest, following.returncode) == (b"three\nfour\n", 0)

    def test_without_a_log(self, orlop: Orlop, kubelet: Client, tmp_path: Path) -> None:
        container_id = kubelet.run_container(kubelet.run_pod())
        sentence(orlop("logs", container_id, check=False), "has no log")
        created = kubelet.create_container(kubelet.run_pod(log_directory=tmp_path))
        sentence(orlop("logs", created, check=False), str(tmp_path), "No such file")


class TestExec:
    def test_output_and_code(self, orlop: Orlop, kubelet: Client) -> None:
        kubelet.run_container(kubelet.run_pod("web"), name="app")
        done = orlop("exec", "web/app", "sh", "-c", "echo out; echo err >&2; exit 3", check=False)
        assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)
        assert orlop("exec", "app", "echo", "-o", "--timeout").stdout == "-o --timeout\n", "what follows the container is the command's"
        told = json.loads(orlop("exec", "-o", "json", "app", "--", "echo", "ä").stdout)
        assert (told["stdout"], told["stderr"], told["exit_code"]) == ("ä\n", "", 0)

    def test_errors(self, orlop: Orlop, kubelet: Client) -> None:
        sentence(orlop("exec", "nope", "true", check=False), "'nope'")
        kubelet.run_container(kubelet.run_pod("web"), name="app")
        sentence(orlop("exec", "app", "/no/such", check=False), "/no/such")
        sentence(orlop("exec", "--timeout", "1", "app", "sleep", "100", check=False), "1 s")
        kubelet.run_container(kubelet.run_pod("other"), name="app")
        sentence(orlop("exec", "app", "true", check=False), "'app' could be any of", "use an id")
        assert orlop("exec", "other/app", "true").returncode == 0


class TestRm:
    def test_several(self, orlop: Orlop, kubelet: Client) -> None:
        first, second = kubelet.run_pod("first"), kubelet.run_pod("second")
        kubelet.run_container(first)
        done = orlop("rm", "--grace", "0", first.id[:10], "nope", "second", check=False)
        assert done.stdout == f"{first.id[:10]} removed\nsecond removed\n"
        sentence(done, "nope: there is no pod 'nope'")
        assert kubelet.pods() == []
        pod = kubelet.run_pod("third")
        told = json.loads(orlop("rm", "-o", "json", "third", "nope", check=False).stdout)
        assert told == [
            {"pod": "third", "id": pod.id, "removed": True, "error": ""},
            {"pod": "nope", "id": "", "removed": False, "error": "there is no pod 'nope'"},
        ]
        assert second.id


class TestImages:
    def test_import_list_and_remove(self, orlop: Orlop, tmp_path: Path) -> None:
        before = orlop("image", "ls").stdout
        layers = [{"file": b"content"}]
        for number, archive in enumerate((
            make_oci_layout(tmp_path / "layout", {"orlop.test/made:0": layers}),
            make_oci_layout(tmp_path / "layout.tar", {"orlop.test/made:1": layers}),
            make_docker_archive(tmp_path / "docker.tar", {"orlop.test/made:2": layers}),
        )):  # fmt: skip
            name = f"orlop.test/made:{number}"
            [told] = json.loads(orlop("image", "import", archive, "-o", "json").stdout)
            assert name in told["tags"]
            rows = {tag: row for row in json.loads(orlop("-o", "json", "image", "ls").stdout) for tag in row["tags"]}
            assert rows[name]["id"] == told["id"]
            assert rows[name]["size"] > 0
            assert name in orlop("image", "ls").stdout
        assert (
            orlop("image", "rm", "orlop.test/made:0", "orlop.test/made:1").stdout
            == "orlop.test/made:0 removed\norlop.test/made:1 removed\n"
        )
        assert json.loads(orlop("image", "rm", "orlop.test/made:2", "-o", "json").stdout) == {"removed": ["orlop.test/made:2"]}
        assert orlop("image", "ls").stdout == before

    def test_containers_keep_the_layers_they_stand_on(self, orlop: Orlop, kubelet: Client, tmp_path: Path) -> None:
        name = "orlop.test/short-lived:latest"
        orlop("image", "import", busybox_image(tmp_path / "image.tar", name, {"Env": ["SHORT=lived"]}))
        container_id = kubelet.run_container(kubelet.run_pod(), image=name)
        orlop("image", "rm", name)
        assert kubelet.exec_sync(container_id, "ls", "/bin/busybox").stdout == b"/bin/busybox\n"

    def test_errors(self, orlop: Orlop, tmp_path: Path) -> None:
        sentence(orlop("image", "import", tmp_path / "none.tar", check=False), "none.tar")
        (tmp_path / "text.tar").write_text("no archive")
        sentence(orlop("image", "import", tmp_path / "text.tar", check=False), "text.tar")
        sentence(orlop("image", "rm", "orlop.test/none:latest", check=False), "'orlop.test/none:latest' is not on this node")


def test_nobody_serves(orlop: Orlop, tmp_path: Path) -> None:
    nobody = ("--socket", tmp_path / "none.sock")
    for command in (("ps",), ("image", "ls"), ("rm", "web"), ("logs", "app"), ("exec", "app", "true")):
        done = orlop(*nobody, *command, check=False)
        assert done.returncode == 1
        assert f"nobody serves {tmp_path}/none.sock" in done.stderr
        assert "Traceback" not in done.stderr


def test_usage(orlop: Orlop) -> None:
    assert "Usage: orlop" in orlop("--help").stdout
    assert orlop("--version").stdout.startswith("orlop, version ")
    assert orlop("nope", check=False).returncode == 2

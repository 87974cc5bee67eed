"""The core, with each pair: what a kubelet does with pods and containers every day, and that each call's end is the end."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from cri.api import admin_pb2 as admin
from cri.api import api_pb2 as cri
from tests.e2e.client import BUSYBOX, Client, LogLine, parse_log, pod_namespaces, refused, until
from tests.e2e.node import processes, runc_inits, shims

pytestmark = pytest.mark.e2e

COUNTER = "i=0; until [ -e /tmp/stop ]; do echo $i; i=$((i+1)); done"
MIB = 1 << 20
TAKE_THEIR_TIME = "pods.sandbox_run.directory=delay(1);pods.container_create.snapshot=delay(1)"
"""Calls that are made at the same time come while the first one is at work still, however slow the machine is."""


def wait_for_log(kubelet: Client, container: str, text: str) -> None:
    until(lambda: any(line.text == text for line in kubelet.logs(container)), what=f"the log says {text!r}")


def texts(lines: list[LogLine], stream: str) -> list[str]:
    return [line.text for line in lines if line.stream == stream]


class TestLife:
    def test_a_pod_and_its_container_from_begin_to_end(self, kubelet: Client, tmp_path: Path) -> None:
        begin = time.time_ns()
        pod = kubelet.run_pod("web", log_directory=tmp_path, hostname="web", labels={"app": "web"}, annotations={"note": "ä"})
        status = kubelet.pod_status(pod)
        assert (status.id, status.state, status.metadata) == (pod.id, cri.SANDBOX_READY, pod.config.metadata)
        assert (dict(status.labels), dict(status.annotations)) == ({"app": "web"}, {"note": "ä"})
        assert begin < status.created_at < time.time_ns()
        assert status.linux.namespaces.options == pod.config.linux.security_context.namespace_options

        container = kubelet.create_container(pod, ["sh", "-c", "echo out; echo err >&2; sleep 1000"], name="app", labels={"tier": "front"})
        created = kubelet.status(container)
        assert (created.state, created.started_at, created.finished_at) == (cri.CONTAINER_CREATED, 0, 0)
        assert begin < created.created_at < time.time_ns()

        kubelet.start(container)
        running = kubelet.status(container)
        assert (running.state, running.metadata.name, dict(running.labels)) == (cri.CONTAINER_RUNNING, "app", {"tier": "front"})
        assert created.created_at == running.created_at < running.started_at < time.time_ns()
        assert running.finished_at == 0
        image = kubelet.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=BUSYBOX))).image
        assert (running.image.image, running.image_ref, running.image_id) == (BUSYBOX, image.id, image.id)
        assert running.log_path == f"{tmp_path}/app_0.log"
        for text in ("out", "err"):  # before it is killed: started is not yet run
            wait_for_log(kubelet, container, text)

        kubelet.stop(container)
        exited = kubelet.status(container)
        assert (exited.state, exited.exit_code, exited.reason) == (cri.CONTAINER_EXITED, 137, "Error")
        assert running.started_at < exited.finished_at < time.time_ns()
        assert sorted((line.stream, line.text, line.whole) for line in kubelet.logs(container)) == [
            ("stderr", "err", True),
            ("stdout", "out", True),
        ]
        kubelet.remove(container)
        assert kubelet.containers() == []
        assert (tmp_path / "app_0.log").exists(), "the log is the kubelet's to remove"

        kubelet.stop_pod(pod)
        stopped = kubelet.pod_status(pod)
        assert (stopped.state, stopped.network.ip) == (cri.SANDBOX_NOTREADY, "")
        assert stopped.created_at == status.created_at
        kubelet.remove_pod(pod)
        assert kubelet.pods() == []
        with refused(grpc.StatusCode.NOT_FOUND, pod.id):
            kubelet.pod_status(pod)

    def test_exit_codes(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        containers = {code: kubelet.run_container(pod, ["sh", "-c", f"exit {code}"]) for code in (0, 3, 255)}
        exits = {code: kubelet.wait_exit(container) for code, container in containers.items()}
        assert {code: (status.exit_code, status.reason) for code, status in exits.items()} == {
            0: (0, "Completed"),
            3: (3, "Error"),
            255: (255, "Error"),
        }

    def test_out_of_memory(self, kubelet: Client) -> None:
        """The reason's spelling is the CRI's (api.proto): the kubelet looks for it. The limit is the kubelet's usual way of saying it."""
        resources = cri.LinuxContainerResources(memory_limit_in_bytes=16 * MIB, memory_swap_limit_in_bytes=16 * MIB, oom_score_adj=999)
        config = cri.LinuxContainerConfig(resources=resources)
        pod = kubelet.run_pod()
        container = kubelet.run_container(pod, ["tail", "/dev/zero"], linux=config)
        until(lambda: kubelet.status(container).reason == "OOMKilled", what="the exit is known to be the OOM killer's")
        assert kubelet.status(container).exit_code == 137
        forked = kubelet.run_container(pod, ["sh", "-c", "tail /dev/zero; echo $?; exit 3"], linux=config)
        assert kubelet.wait_exit(forked).exit_code == 3, "only a child was killed"

    def test_addresses_of_both_families(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        network = kubelet.pod_status(pod).network
        assert network.ip.startswith("10.199.")
        [other] = network.additional_ips
        assert other.ip.startswith("fd00:199:")
        container = kubelet.run_container(pod)
        shown = kubelet.exec_sync(container, "ip", "-o", "addr").stdout.decode()
        assert f" {network.ip}/" in shown
        assert f" {other.ip}/" in shown
        assert "127.0.0.1/8" in shown

    def test_the_containers_of_a_pod_share_one_shim(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        first, second = kubelet.run_container(pod), kubelet.run_container(pod)
        assert len(shims(pod.id)) == 1

        def namespaces(container: str) -> dict[str, bytes]:
            kinds = ("net", "ipc", "uts", "pid", "mnt")
            return {kind: kubelet.exec_sync(container, "readlink", f"/proc/1/ns/{kind}").stdout for kind in kinds}

        ours, theirs = namespaces(first), namespaces(second)
        assert {kind for kind in ours if ours[kind] == theirs[kind]} == {"net", "ipc", "uts"}
        kubelet.stop(first)
        kubelet.remove(first)
        assert kubelet.status(second).state == cri.CONTAINER_RUNNING

    def test_restart_after_an_exit(self, kubelet: Client, tmp_path: Path) -> None:
        pod = kubelet.run_pod(log_directory=tmp_path)
        [shim] = shims(pod.id)
        first = kubelet.run_container(pod, ["sh", "-c", "echo first; exit 1"], name="app")
        assert kubelet.wait_exit(first).exit_code == 1
        second = kubelet.run_container(pod, ["sh", "-c", "echo second; sleep 1000"], name="app", attempt=1)
        kubelet.remove(first)
        assert kubelet.status(second).metadata.attempt == 1
        wait_for_log(kubelet, second, "second")
        assert shims(pod.id) == [shim], "the pod's shim outlives its containers"
        assert kubelet.pod_status(pod).state == cri.SANDBOX_READY

    def test_restart_after_a_failed_start(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        failed = kubelet.create_container(pod, ["/no/such/program"], name="app")
        with refused(grpc.StatusCode.UNKNOWN, "/no/such/program"):
            kubelet.start(failed)
        status = kubelet.status(failed)
        assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 128, "StartError")
        assert "/no/such/program" in status.message
        assert status.finished_at > status.created_at
        assert runc_inits() == []
        with refused(grpc.StatusCode.FAILED_PRECONDITION, failed, "exited"):
            kubelet.start(failed)
        again = kubelet.run_container(pod, name="app", attempt=1)
        kubelet.remove(failed)
        assert kubelet.status(again).state == cri.CONTAINER_RUNNING

    @pytest.mark.field_fault("20", "21")
    def test_calls_at_the_same_time_get_one_answer(self, kubelet: Client) -> None:
        """A kubelet that timed out and asks again doesn't get a second pod, nor 'the name is taken'."""
        kubelet.admin.Failpoints(admin.FailpointsRequest(configure=TAKE_THEIR_TIME))
        with ThreadPoolExecutor(4) as pool:
            config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="same", uid="same", namespace="e2e"))
            config.linux.cgroup_parent = kubelet.cgroup_parent("same")
            config.linux.security_context.namespace_options.CopyFrom(pod_namespaces())
            request = cri.RunPodSandboxRequest(config=config)
            pods = {answer.pod_sandbox_id for answer in pool.map(kubelet.runtime.RunPodSandbox, [request] * 4)}
            [pod] = pods
            metadata = cri.ContainerMetadata(name="same")
            container = cri.ContainerConfig(metadata=metadata, image=cri.ImageSpec(image=BUSYBOX), command=["sleep", "1000"])
            container.linux.security_context.namespace_options.CopyFrom(pod_namespaces())
            create = cri.CreateContainerRequest(pod_sandbox_id=pod, config=container, sandbox_config=config)
            containers = {answer.container_id for answer in pool.map(kubelet.runtime.CreateContainer, [create] * 4)}
            [container_id] = containers
            list(pool.map(kubelet.start, [container_id] * 4))
            list(pool.map(kubelet.stop, [container_id] * 4))
            list(pool.map(kubelet.stop_pod, [pod] * 4))
            list(pool.map(kubelet.remove_pod, [pod] * 4))
        kubelet.admin.Failpoints(admin.FailpointsRequest(configure=""))
        assert kubelet.pods() == []

    def test_many_pods_at_once(self, kubelet: Client, tmp_path: Path) -> None:
        def live(number: int) -> tuple[str, int, list[str]]:
            (tmp_path / str(number)).mkdir()
            pod = kubelet.run_pod(log_directory=tmp_path / str(number), hostname=f"host-{number}")
            containers = [kubelet.run_container(pod, ["sh", "-c", f"hostname; exit {number}"]), kubelet.run_container(pod)]
            said = kubelet.exec_sync(containers[1], "hostname").stdout.decode().strip()
            ended = kubelet.wait_exit(containers[0])
            lines = texts(kubelet.logs(containers[0]), "stdout")
            kubelet.stop_pod(pod)
            kubelet.remove_pod(pod)
            return said, ended.exit_code, lines

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(live, range(8))) == [(f"host-{number}", number, [f"host-{number}"]) for number in range(8)]


class TestSandboxTask:
    """Pods whose sandbox is a process: of a handler with `sandbox = "task"`, or for a PID namespace that the containers share."""

    @pytest.mark.parametrize(("handler", "pid"), [("task", cri.CONTAINER), ("task", cri.POD), ("", cri.POD)])
    def test_from_begin_to_end(self, kubelet: Client, tmp_path: Path, handler: str, pid: cri.NamespaceMode) -> None:
        options = cri.NamespaceOption(network=cri.POD, pid=pid, ipc=cri.POD)
        pod = kubelet.run_pod(handler=handler, log_directory=tmp_path, hostname="task", namespaces=options)
        assert kubelet.pod_status(pod).network.ip.startswith("10.199.")
        first, second = kubelet.run_container(pod, ["sh", "-c", "hostname; exit 2"]), kubelet.run_container(pod)
        assert kubelet.wait_exit(first).exit_code == 2
        assert texts(kubelet.logs(first), "stdout") == ["task"]
        seen = kubelet.exec_sync(second, "ps", "-o", "args").stdout.decode().splitlines()
        assert ("/bin/sleep 1000000" in seen) == (pid == cri.POD)
        assert len(shims(pod.id)) == 1
        kubelet.remove(first)
        assert kubelet.pod_status(pod).state == cri.SANDBOX_READY
        kubelet.stop_pod(pod)
        assert kubelet.status(second).exit_code == 137
        assert shims(pod.id) == []
        kubelet.remove_pod(pod)

    def test_a_pod_ends_with_its_process(self, kubelet: Client) -> None:
        pod = kubelet.run_pod(handler="task")
        container = kubelet.run_container(pod)
        details = kubelet.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True)).info["info"]
        os.kill(json.loads(details)["pid"], signal.SIGKILL)
        until(lambda: kubelet.pod_status(pod).state == cri.SANDBOX_NOTREADY, what="the sandbox is not ready any more")
        with refused(grpc.StatusCode.FAILED_PRECONDITION, pod.id, "lost"):
            kubelet.create_container(pod)
        assert kubelet.status(container).state == cri.CONTAINER_RUNNING, "its own PID namespace is another one"
        kubelet.stop_pod(pod)
        assert kubelet.status(container).exit_code == 137


class TestExec:
    def test_output_and_exit_code(self, kubelet: Client) -> None:
        container = kubelet.run_container(kubelet.run_pod(), env={"WORD": "ä".encode()})
        executed = kubelet.exec_sync(container, "sh", "-c", 'printf "$WORD"; printf err >&2; exit 3')
        assert (executed.stdout, executed.stderr, executed.exit_code) == ("ä".encode(), b"err", 3)
        assert kubelet.exec_sync(container, "true") == cri.ExecSyncResponse()

    def test_a_timeout_kills(self, kubelet: Client) -> None:
        container = kubelet.run_container(kubelet.run_pod())
        begin = time.monotonic()
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "sleep", "1 s"):
            kubelet.exec_sync(container, "sleep", "4321", timeout=1)
        assert 1 <= time.monotonic() - begin < 5
        assert [process for process in processes() if process.argv == ("sleep", "4321")] == []
        assert kubelet.exec_sync(container, "echo", "on").stdout == b"on\n"

    @pytest.mark.field_fault("0c")
    def test_a_background_child_that_holds_the_output(self, kubelet: Client) -> None:
        """Bounded by the call's own timeout; the child is the container's, and stays."""
        container = kubelet.run_container(kubelet.run_pod())
        begin = time.monotonic()
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "output"):
            kubelet.exec_sync(container, "sh", "-c", "echo begun; sleep 4322 &", timeout=1)
        assert 1 <= time.monotonic() - begin < 8
        assert [process.argv for process in processes() if process.argv == ("sleep", "4322")] == [("sleep", "4322")]
        assert kubelet.exec_sync(container, "echo", "on").stdout == b"on\n"

    def test_an_answer_is_never_larger_than_the_kubelet_takes(self, kubelet: Client) -> None:
        container = kubelet.run_container(kubelet.run_pod())
        small = kubelet.exec_sync(container, "sh", "-c", f"head -c {5 * MIB} /dev/zero; head -c {4 * MIB} /dev/zero >&2; exit 2")
        assert (len(small.stdout), len(small.stderr), small.exit_code) == (5 * MIB, 4 * MIB, 2)
        for command in ("head -c 20000000 /dev/zero", "head -c 20000000 /dev/zero | tee /dev/stderr"):
            large = kubelet.exec_sync(container, "sh", "-c", f"{command}; exit 7")
            assert large.exit_code == 7
            assert 15 * MIB < len(large.stdout) + len(large.stderr) <= 16 * MIB, command

    def test_a_command_that_is_not_there(self, kubelet: Client) -> None:
        container = kubelet.run_container(kubelet.run_pod())
        with refused(grpc.StatusCode.UNKNOWN, "/no/such/program"):
            kubelet.exec_sync(container, "/no/such/program")
        assert kubelet.exec_sync(container, "echo", "on").stdout == b"on\n"

    def test_only_in_what_runs(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        created = kubelet.create_container(pod)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, created, "created"):
            kubelet.exec_sync(created, "true")
        kubelet.start(created)
        kubelet.stop(created)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, created, "exited"):
            kubelet.exec_sync(created, "true")

    def test_a_container_that_ends_ends_its_execs(self, kubelet: Client) -> None:
        container = kubelet.run_container(kubelet.run_pod())
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(kubelet.exec_sync, container, "sh", "-c", "echo begun; sleep 4323")
            until(lambda: any(process.argv == ("sleep", "4323") for process in processes()), what="the exec runs")
            kubelet.stop(container)
            assert running.result(20).exit_code == 137


class TestLogs:
    def test_long_lines_are_cut_and_the_last_needs_no_newline(self, kubelet: Client, tmp_path: Path) -> None:
        pod = kubelet.run_pod(log_directory=tmp_path)
        script = "head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'crlf\\r\\n'; echo; printf unfinished"
        container = kubelet.run_container(pod, ["sh", "-c", script])
        kubelet.wait_exit(container)
        lines = kubelet.logs(container)
        assert [(len(line.text), line.whole) for line in lines[:3]] == [(16384, False), (16384, False), (7232, True)]
        assert {character for line in lines[:3] for character in line.text} == {"x"}
        assert [(line.text, line.whole) for line in lines[3:]] == [("crlf", True), ("", True), ("unfinished", False)]
        moments = [line.time for line in lines]
        assert moments == sorted(moments)
        assert (Path(kubelet.status(container).log_path).stat().st_mode & 0o777) == 0o640

    def test_rotation_under_load_loses_and_doubles_nothing(self, kubelet: Client, tmp_path: Path) -> None:
        pod = kubelet.run_pod(log_directory=tmp_path)
        container = kubelet.run_container(pod, ["sh", "-c", COUNTER])
        log = Path(kubelet.status(container).log_path)
        rotated = [log.with_suffix(f".{number}") for number in range(4)]
        for old in rotated:
            until(lambda: log.exists() and log.stat().st_size > 100_000, what="the log grows")
            log.rename(old)
            kubelet.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container))
            assert log.exists()
        kubelet.exec_sync(container, "touch", "/tmp/stop")
        kubelet.wait_exit(container)
        numbers = [parse_log(line).text for file in [*rotated, log] for line in file.read_text().splitlines()]
        assert numbers == [str(number) for number in range(len(numbers))]
        assert len(numbers) > 5000

    def test_reopen_is_for_running_containers(self, kubelet: Client, tmp_path: Path) -> None:
        pod = kubelet.run_pod(log_directory=tmp_path)
        container = kubelet.create_container(pod)
        request = cri.ReopenContainerLogRequest(container_id=container)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, container, "created"):
            kubelet.runtime.ReopenContainerLog(request)
        kubelet.start(container)
        kubelet.stop(container)
        log = Path(kubelet.status(container).log_path)
        log.rename(log.with_suffix(".0"))
        with refused(grpc.StatusCode.FAILED_PRECONDITION, container, "exited"):
            kubelet.runtime.ReopenContainerLog(request)
        assert not log.exists(), "after an error no new file may be there"

    def test_without_a_log_path_output_is_discarded(self, kubelet: Client) -> None:
        container = kubelet.run_container(kubelet.run_pod(), ["sh", "-c", f"head -c {MIB} /dev/zero; exit 4"])
        status = kubelet.wait_exit(container)
        assert (status.exit_code, status.log_path) == (4, "")

    def test_a_terminal(self, kubelet: Client, tmp_path: Path) -> None:
        pod = kubelet.run_pod(log_directory=tmp_path)
        container = kubelet.run_container(pod, ["sh", "-c", "tty; echo err >&2; echo $TERM; exit 2"], tty=True)
        assert kubelet.wait_exit(container).exit_code == 2
        assert texts(kubelet.logs(container), "stdout") == ["/dev/pts/0", "err", "xterm"]


class TestStop:
    TRAPPING = "trap 'echo bye; exit 5' {signal}; echo ready; while :; do sleep 0.05; done"

    def test_the_stop_signal_and_time_to_act_on_it(self, kubelet: Client, tmp_path: Path) -> None:
        pod = kubelet.run_pod(log_directory=tmp_path)
        container = kubelet.run_container(pod, ["sh", "-c", self.TRAPPING.format(signal="TERM")])
        wait_for_log(kubelet, container, "ready")
        begin = time.monotonic()
        kubelet.stop(container, grace=30)
        assert time.monotonic() - begin < 10
        status = kubelet.status(container)
        assert (status.state, status.exit_code, status.stop_signal) == (cri.CONTAINER_EXITED, 5, cri.SIGNAL_SIGTERM)
        assert texts(kubelet.logs(container), "stdout") == ["ready", "bye"]

    def test_a_stop_signal_of_the_containers_own(self, kubelet: Client, tmp_path: Path) -> None:
        pod = kubelet.run_pod(log_directory=tmp_path)
        command = ["sh", "-c", self.TRAPPING.format(signal="USR1")]
        container = kubelet.run_container(pod, command, stop_signal=cri.SIGNAL_SIGUSR1)
        wait_for_log(kubelet, container, "ready")
        kubelet.stop(container, grace=30)
        status = kubelet.status(container)
        assert (status.exit_code, status.stop_signal) == (5, cri.SIGNAL_SIGUSR1)

    def test_grace_runs_out(self, kubelet: Client) -> None:
        container = kubelet.run_container(kubelet.run_pod())  # init of a PID namespace without a handler: SIGTERM is nothing to it
        begin = time.monotonic()
        kubelet.stop(container, grace=1)
        assert 1 <= time.monotonic() - begin < 5
        assert kubelet.status(container).exit_code == 137

    @pytest.mark.field_fault("22")
    def test_a_second_stop_shortens_the_first(self, kubelet: Client) -> None:
        container = kubelet.run_container(kubelet.run_pod())
        begin = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(kubelet.stop, container, grace=60)
            kubelet.stop(container, grace=1)
            first.result(5)
        assert time.monotonic() - begin < 5
        assert kubelet.status(container).exit_code == 137

    def test_stopping_again_changes_nothing(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        container = kubelet.run_container(pod, ["sh", "-c", "exit 3"])
        before = kubelet.wait_exit(container)
        kubelet.stop(container)
        kubelet.stop(container, grace=30)
        assert kubelet.status(container) == before
        created = kubelet.create_container(pod)
        kubelet.stop(created)
        assert kubelet.status(created).state == cri.CONTAINER_CREATED

    def test_a_container_and_its_children_end_together(self, kubelet: Client) -> None:
        container = kubelet.run_container(kubelet.run_pod(), ["sh", "-c", "sleep 4324 & sleep 4324"])
        until(lambda: len([p for p in processes() if p.argv == ("sleep", "4324")]) == 2, what="both sleep")
        kubelet.stop(container)
        assert [p for p in processes() if p.argv == ("sleep", "4324")] == []


class TestRemove:
    def test_pods_go_whatever_state_they_are_in(self, kubelet: Client) -> None:
        pods = [kubelet.run_pod() for _ in range(4)]
        empty, running, stopped, mixed = pods
        kubelet.run_container(running)
        kubelet.run_container(stopped)
        kubelet.stop_pod(stopped)
        kubelet.create_container(mixed)
        kubelet.wait_exit(kubelet.run_container(mixed, ["true"]))
        for pod in pods:
            kubelet.remove_pod(pod)
        assert (kubelet.pods(), kubelet.containers(), shims(empty.id)) == ([], [], [])

    def test_stop_and_remove_as_often_as_one_likes(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        container = kubelet.run_container(pod)
        for _ in range(2):
            kubelet.stop_pod(pod)
            assert kubelet.pod_status(pod).state == cri.SANDBOX_NOTREADY
            assert kubelet.status(container).exit_code == 137
            assert shims(pod.id) == []
        for _ in range(2):
            kubelet.remove(container)
        for _ in range(2):
            kubelet.remove_pod(pod)
            kubelet.stop_pod(pod)

    @pytest.mark.field_fault("S2")
    def test_nothing_begins_in_a_stopped_pod(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        created = kubelet.create_container(pod)
        kubelet.stop_pod(pod)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, pod.id, "not ready"):
            kubelet.create_container(pod)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, pod.id, "not ready"):
            kubelet.start(created)
        assert kubelet.status(created).state == cri.CONTAINER_CREATED

    def test_a_removed_running_container(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        container = kubelet.run_container(pod)
        kubelet.remove(container)
        assert kubelet.containers() == []
        assert kubelet.pod_status(pod).state == cri.SANDBOX_READY

    def test_names_are_free_again(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        for _ in range(2):
            kubelet.remove(kubelet.run_container(pod, name="app"))
        request = cri.RunPodSandboxRequest(config=pod.config)
        with refused(grpc.StatusCode.ALREADY_EXISTS, pod.id):
            kubelet.runtime.RunPodSandbox(request)
        kubelet.remove_pod(pod)
        kubelet.runtime.RunPodSandbox(request)

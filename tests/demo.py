"""`make demo`: the main job end to end, on a node of the demo's own.

It runs inside `tests/e2e/enter` (own network, mount, process and IPC namespaces, own cgroup), with private directories and
socket, so it never meets another runtime of the machine; the shim and the engine are Debian's, from `tests/e2e/toolbox.py`.
Exits non-zero if a step fails or if anything is left on the node that was not there before.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cri.api import api_pb2 as cri
from tests.e2e import toolbox
from tests.e2e.daemon import STATES, Daemon
from tests.e2e.node import CGROUP_PARENT, NodeSnapshot, shims
from tests.images import busybox_image

IMAGE = "demo.orlop.dev/busybox:latest"
METRICS = "127.0.0.1:9745"
SHOWN = (
    "orlop_leaks", "orlop_dead_shim_cleanups", "orlop_shim_delete_lies", "orlop_runc_init", "orlop_cgroup_cleanups", "orlop_mount_busy",
    "orlop_ledger_quarantined", "orlop_oldest_pending",
)  # fmt: skip
MANIFEST = f"""\
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: demo}}
spec:
  containers:
  - name: server
    image: {IMAGE}
    command: [sh, -c, 'mkdir /www && hostname > /www/index.html && echo serving && exec httpd -f -p 8080 -h /www']
  - name: counter
    image: {IMAGE}
    command: [sh, -c, 'i=0; while :; do echo "count $i"; i=$((i+1)); sleep 1; done']
"""


class Demo:
    """The story, told as it happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemon = Daemon(
            folder,
            toolbox.Pair("2.1", "crun"),
            name="demo",
            settings=f'metrics_address = "{METRICS}"',
            log_settings='level = "debug"\nformat = "json"',
        )
        self.cri = self.daemon.client.runtime

    def say(self, text: str) -> None:
        print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)

    def orlop(self, *arguments: str | Path) -> str:
        print(f"$ orlop {' '.join(map(str, arguments))}", flush=True)
        done = self.daemon.orlop(*arguments)
        print((done.stderr + done.stdout).rstrip(), flush=True)
        return done.stdout

    def run(self) -> None:
        """The story; raises when a step of it doesn't hold."""
        self.say("orlop serve: private socket, state and root; shim of containerd 2.1, crun")
        self.daemon.start()
        print(f"socket {self.daemon.socket}, pid {self.daemon.pid}")
        self.say("an image from this machine's static busybox, no registry")
        archive = self.folder / "busybox.tar"
        busybox_image(archive, IMAGE)
        self.orlop("image", "import", archive)
        self.say("a pod of two containers, from a Kubernetes manifest")
        manifest = self.folder / "pod.yaml"
        manifest.write_text(MANIFEST)
        self.orlop("run", manifest, "--log-root", self.folder / "logs")
        self.orlop("ps")
        sandbox = self.sandbox()
        ip = self.status(sandbox).status.network.ip
        self.say("exec and logs")
        self.orlop("exec", "web/server", "--", "wget", "-q", "-O", "-", f"http://{ip}:8080/")
        time.sleep(2.1)
        assert "count 1" in self.orlop("logs", "web/counter")
        self.kill_shim(sandbox, ip)
        self.say("remove the pod, audit, metrics")
        self.orlop("rm", "web", "--grace", "2")
        self.orlop("audit")
        self.metrics()
        self.orlop("image", "rm", IMAGE)

    def kill_shim(self, sandbox: str, ip: str) -> None:
        (shim,) = shims(sandbox)
        self.say(f"SIGKILL the pod's shim, pid {shim.pid}")
        began = time.time()
        os.kill(shim.pid, signal.SIGKILL)
        while self.running(sandbox) or not [new for new in shims(sandbox) if new.pid != shim.pid]:
            assert time.time() - began < 30, "no new shim, or containers that don't exit"
            time.sleep(0.02)
        status = self.status(sandbox).status
        names = {item.id: item.metadata.name for item in self.containers(sandbox)}
        for moment, line in self.steps(began, sandbox, names):
            print(f"{(moment - began) * 1000:9.1f} ms  {line}")
        assert status.state == cri.SANDBOX_READY
        assert status.network.ip == ip
        print(f"{(time.time() - began) * 1000:9.1f} ms  sandbox READY, same IP {ip}, new shim pid {shims(sandbox)[0].pid}")
        self.say("the kubelet would run the containers again in the same sandbox; so do we")
        for item in self.containers(sandbox):
            self.again(sandbox, item)
        self.orlop("ps")
        self.orlop("exec", "web/server", "--", "wget", "-q", "-O", "-", f"http://{ip}:8080/")

    def again(self, sandbox: str, item: cri.Container) -> None:
        """What the kubelet does with a container that exited: the same once more, as the next attempt."""
        response = self.status(sandbox).status
        log_directory = f"{self.folder}/logs/demo_web_{response.metadata.uid}"
        commands = {
            "server": "mkdir /www && hostname > /www/index.html && exec httpd -f -p 8080 -h /www",
            "counter": "echo again; exec sleep 1000",
        }
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=item.metadata.name, attempt=1),
            image=cri.ImageSpec(image=IMAGE),
            command=["sh", "-c", commands[item.metadata.name]],
            log_path=f"{item.metadata.name}/1.log",
        )
        config.linux.security_context.namespace_options.pid = cri.CONTAINER
        pod = cri.PodSandboxConfig(metadata=response.metadata, log_directory=log_directory)
        request = cri.CreateContainerRequest(pod_sandbox_id=sandbox, config=config, sandbox_config=pod)
        container = self.cri.CreateContainer(request).container_id
        self.cri.StartContainer(cri.StartContainerRequest(container_id=container))
        self.cri.RemoveContainer(cri.RemoveContainerRequest(container_id=item.id))

    def sandbox(self) -> str:
        (item,) = self.cri.ListPodSandbox(cri.ListPodSandboxRequest()).items
        return str(item.id)

    def status(self, sandbox: str) -> Any:
        return self.cri.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox))

    def containers(self, sandbox: str) -> list[cri.Container]:
        wanted = cri.ContainerFilter(pod_sandbox_id=sandbox)
        return list(self.cri.ListContainers(cri.ListContainersRequest(filter=wanted)).containers)

    def running(self, sandbox: str) -> bool:
        return any(item.state == cri.CONTAINER_RUNNING for item in self.containers(sandbox))

    def steps(self, since: float, sandbox: str, names: dict[str, str]) -> Iterator[tuple[float, str]]:
        """What the daemon's log says it did, one line per step of the teardown."""
        from datetime import datetime

        for line in self.daemon.log.read_text().splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            if not entry or (moment := datetime.fromisoformat(entry["timestamp"]).timestamp()) < since:
                continue
            subject = str(entry.get("id") or entry.get("container") or entry.get("shim") or entry.get("sandbox") or "")
            name = f"container {names[subject]}" if subject in names else "the pod's shim" if subject == sandbox else subject
            if entry["event"] == "teardown step":
                yield moment, f"{entry['step'].replace('_', ' '):<14} {name:<20} {entry['ms']:.1f} ms"
            elif subject in names or subject == sandbox:
                yield moment, f"{entry['event']} {name}"

    def metrics(self) -> None:
        text = urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=5).read().decode()
        lines = [line for line in text.splitlines() if line.startswith(SHOWN)]
        print("\n".join(lines))
        entries = sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("orlop_ledger_entries{"))
        print(f"orlop_ledger_entries over all kinds and states: {entries:.0f}")
        assert not entries

    def end(self) -> None:
        self.daemon.stop()
        self.daemon.client.close()


def main() -> int:
    if not CGROUP_PARENT:
        if os.geteuid() != 0:
            print("The demo mounts, unshares and starts containers: it needs root.", file=sys.stderr)
            return 2
        toolbox.prepare()
        enter = str(Path(__file__).parent / "e2e" / "enter")
        os.execv(enter, [enter, sys.executable, "-m", "tests.demo"])
    with tempfile.TemporaryDirectory(prefix="orlop-demo-") as name:
        folder = Path(name)
        before = NodeSnapshot.take(folder / "root")
        demo = Demo(folder)
        try:
            demo.run()
        except BaseException:
            print(demo.daemon.log_tail(20), file=sys.stderr)
            raise
        finally:
            demo.end()
        demo.say("what is on the node now and was not before")
        own = tuple(f"{kind} {folder}" for kind in ("file", "directory") for folder in (STATES, demo.daemon.root))
        left = [thing for thing in before.left() if not thing.startswith(own)]  # its database and empty directories aside
        shutil.rmtree(STATES)
        print("\n".join(left) or "nothing")
        return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())

"""A containerd beside the agent, in the places of its release: somebody else's pods on the same node."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.e2e import toolbox
from tests.e2e.client import Client, until
from tests.e2e.daemon import CNI_PLUGINS, PAUSE, bridge_network
from tests.e2e.node import CGROUP_PARENT, CGROUPS
from tests.e2e.toolbox import Pair

STATE = Path("/run/containerd")
SOCKET = STATE / "containerd.sock"
BUNDLES = STATE / "io.containerd.runtime.v2.task/k8s.io"
ENGINE_ROOT = STATE / "runc/k8s.io"


@contextmanager
def serving(home: Path, pair: Pair, *images: Path) -> Iterator[Client]:
    """One that serves CRI and has these images; afterwards its pods are removed, and nothing of it is left on the node."""
    home.mkdir()
    (home / "cni").mkdir()
    (home / "cni/10.conflist").write_text(json.dumps(bridge_network("foreign")))
    (home / "config.toml").write_text(f"""\
version = 3
root = "{home}/root"
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{PAUSE}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{CNI_PLUGINS}"]
conf_dir = "{home}/cni"
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "it"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.it]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{pair.shim_path}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.it.options]
BinaryName = "{pair.engine_path}"
""")
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [toolbox.containerd(), "--config", home / "config.toml"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    client = Client(SOCKET)
    try:
        until(lambda: SOCKET.exists() or process.poll(), what="containerd serves", detail=(home / "log").read_text)
        for image in images:
            toolbox.run(toolbox.containerd("ctr"), "--address", SOCKET, "--namespace", "k8s.io", "images", "import", image)
        yield client
        client.remove_all()
    finally:
        client.close()
        process.terminate()
        process.wait(30)
        tidy()


def tidy() -> None:
    """What a containerd leaves on purpose, and cgroups of pods, which are a kubelet's to remove."""
    for left in [*STATE.iterdir(), Path("/run/nri"), Path("/opt/containerd")]:
        if left.name != "s":
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    for pod in [*CGROUPS.glob(f"{CGROUP_PARENT.strip('/')}/pod*"), *CGROUPS.glob(f"*{CGROUP_PARENT}/pod*")]:
        with suppress(OSError):  # the agent's own pods run on
            pod.rmdir()

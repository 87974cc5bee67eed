"""What `tests.uml.orlop` has done on the node's side, as `python -m tests.uml.inside COMMAND`.

    up        runs a pod with a container
    down      it runs still; takes it down, and nothing may be left
    driver    prints the cgroup driver that a kubelet is told

`tests.uml.stage` has pods live and looks at what is left, too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from glob import glob
from pathlib import Path

from click.testing import CliRunner

from agent.cli.main import main as cli
from agent.config.settings import load
from cri.api import api_pb2 as cri
from tests.e2e.client import Client, until
from tests.e2e.node import nat_chains

LOGS = Path("/var/log/pods")
TRACES = (
    "/var/lib/cni/networks/*/[0-9]*.*.*.*",  # addresses that host-local has given away
    "/var/lib/cni/networks/*/*:*",
    "/var/lib/cni/results/*",
    "/var/lib/orlop/snapshots/containers/*",
    "/var/lib/orlop/io.containerd.runtime.v2.task/*/*",
    "/run/netns/*",
    "/run/systemd/transient/cri-orlop-*",
    "/sys/fs/cgroup/e2e*/*pod*",
    "/sys/fs/cgroup/orlop*/*pod*",
    "/sys/fs/cgroup/system.slice/orlop-shims.service/" + "[0-9a-f]" * 64,
)
"""What a pod leaves where it isn't taken down."""


def main() -> None:
    commands: dict[str, Callable[..., None]] = {"up": up, "down": down, "driver": driver}
    commands[sys.argv[1]](Client(load().socket), *sys.argv[2:])


def up(client: Client) -> None:
    client.run_container(client.run_again(client.pod_config("survivor")))


def down(client: Client) -> None:
    [container] = client.containers()
    assert container.state == cri.CONTAINER_RUNNING
    assert client.exec_sync(container.id, "echo", "on").stdout == b"on\n"
    client.remove_all()
    nothing_is_left(client)


def driver(client: Client) -> None:
    config: cri.RuntimeConfigResponse = client.runtime.RuntimeConfig(cri.RuntimeConfigRequest())
    print(cri.CgroupDriver.Name(config.linux.cgroup_driver).lower())


def live(client: Client, config: cri.PodSandboxConfig) -> None:
    """A pod's whole life."""
    LOGS.mkdir(exist_ok=True)
    pod = client.run_again(config)
    address = client.pod_status(pod).network.ip
    container = client.run_container(pod, ["sh", "-c", "ip -o addr; sleep 1000000"], name="app")
    until(lambda: any(f" {address}/" in line.text for line in client.logs(container)), what="the container has the pod's address")
    assert client.exec_sync(container, "echo", "on").stdout == b"on\n"
    client.stop(container)
    assert client.status(container).exit_code == 137
    client.remove(container)
    client.stop_pod(pod)
    client.remove_pod(pod)
    assert client.pods() == []


def nothing_is_left(client: Client) -> None:
    """Of any pod: in the ledger, by the agent's own audit, and to the eye."""
    until(lambda: not client.ledger(), what="the ledger is empty", detail=client.ledger)
    audit = CliRunner().invoke(cli, ["audit"])
    assert audit.exit_code == 0, audit.output
    left = [path for pattern in TRACES for path in glob(pattern)]
    assert not left, left
    assert not list(nat_chains())
    links = subprocess.run(["ip", "-o", "link", "show", "type", "veth"], check=True, capture_output=True, text=True).stdout
    assert links == ""


if __name__ == "__main__":
    main()

"""What `tests.uml.orlop` has done on the node's side: a kubelet's calls, as `python -m tests.uml.inside COMMAND [ARGUMENT ...]`.

hang VERB POINT    lets VERB (run, start, stop) come as far as the failpoint POINT, where it stays; prints the pod's uid
retry UID          what a kubelet does with pod UID after a boot: it stops and removes the sandbox that it knew, and runs another
ledger             prints what the agent owns
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc

from agent.config.settings import load
from cri.api import admin_pb2 as admin
from cri.api import api_pb2 as cri
from tests.e2e.client import Client, until

LOGS = Path("/var/log/pods")


def main() -> None:
    commands: dict[str, Callable[..., None]] = {"hang": hang, "retry": retry, "ledger": ledger}
    commands[sys.argv[1]](Client(load().socket), *sys.argv[2:])


def hang(client: Client, verb: str, point: str) -> None:
    config = client.pod_config("victim")
    print(config.metadata.uid)
    act: Callable[[], object] = lambda: client.run_again(config)  # noqa: E731
    if verb != "run":
        pod = client.run_again(config)
        client.run_container(pod, name="neighbour")
        container = client.create_container(pod, name="victim")
        act = {"start": lambda: client.start(container), "stop": lambda: client.stop_pod(pod)}[verb]
    client.admin.Failpoints(admin.FailpointsRequest(configure=f"{point}=hang"))
    threading.Thread(target=_unanswered, args=(act,), daemon=True).start()
    until(lambda: point in client.admin.Failpoints(admin.FailpointsRequest()).passed, what=f"{verb} is at {point}", within=60)


def _unanswered(act: Callable[[], object]) -> None:
    with suppress(grpc.RpcError):
        act()


def retry(client: Client, uid: str) -> None:
    assert client.pods() == [], "sandboxes end with the boot"
    config = client.pod_config("victim", log_directory=LOGS)
    config.metadata.uid, config.linux.cgroup_parent = uid, client.cgroup_parent(uid)
    for _ in range(2):
        client.stop_pod("ab" * 32)
        client.remove_pod("ab" * 32)
        live(client, config)


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


def ledger(client: Client) -> None:
    for entry in client.ledger():
        print(f"{entry.kind}:{entry.key}")


if __name__ == "__main__":
    main()

"""GetContainerEvents: a listener sees whole lives, in order, with what a kubelet would otherwise have to ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, refused
from tests.e2e.conftest import one_pair

pytestmark = [pytest.mark.e2e, one_pair]

MIB = 1 << 20
CREATED, STARTED, STOPPED, DELETED = (
    cri.CONTAINER_CREATED_EVENT,
    cri.CONTAINER_STARTED_EVENT,
    cri.CONTAINER_STOPPED_EVENT,
    cri.CONTAINER_DELETED_EVENT,
)


@contextmanager
def listening(kubelet: Client) -> Iterator[Any]:
    """A stream of events that has begun; the events are read by iterating, with a deadline."""
    stream = kubelet.runtime.GetContainerEvents(cri.GetEventsRequest(), timeout=60)
    stream.initial_metadata()
    yield stream
    stream.cancel()


def take(stream: Any, number: int) -> list[cri.ContainerEventResponse]:
    return [next(stream) for _ in range(number)]


def test_a_whole_life(kubelet: Client) -> None:
    with listening(kubelet) as stream, listening(kubelet) as second:
        pod = kubelet.run_pod(labels={"a": "b"})
        container = kubelet.run_container(pod, ["sh", "-c", "exit 3"], name="web")
        kubelet.wait_exit(container)
        kubelet.remove(container)
        kubelet.stop_pod(pod)
        kubelet.remove_pod(pod)
        events = take(stream, 8)
        assert take(second, 8) == events
    assert [(event.container_id, event.container_event_type) for event in events] == [
        (pod.id, CREATED),
        (pod.id, STARTED),
        (container, CREATED),
        (container, STARTED),
        (container, STOPPED),
        (container, DELETED),
        (pod.id, STOPPED),
        (pod.id, DELETED),
    ]
    for event in events:
        assert event.pod_sandbox_status.id == pod.id
        assert event.pod_sandbox_status.metadata == pod.config.metadata, "the kubelet finds the pod by its uid"
    assert [event.created_at for event in events] == sorted(event.created_at for event in events)
    states = [[(status.id, status.state) for status in event.containers_statuses] for event in events]
    made, runs, ended = ([(container, state)] for state in (cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING, cri.CONTAINER_EXITED))
    assert states == [[], [], made, runs, ended, [], [], []]
    assert events[4].containers_statuses[0].exit_code == 3
    ready = [event.pod_sandbox_status.state == cri.SANDBOX_READY for event in events]
    assert ready == [True] * 6 + [False] * 2
    assert events[1].pod_sandbox_status.network.ip, "addresses are there when it has started"


def test_an_out_of_memory_kill_is_told_as_such(kubelet: Client) -> None:
    """The word of the OOM killer may come after the exit: the last event of it is right."""
    pod = kubelet.run_pod()
    linux = cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(memory_limit_in_bytes=16 * MIB))
    with listening(kubelet) as stream:
        kubelet.run_container(pod, ["tail", "/dev/zero"], linux=linux)
        reasons = []
        while "OOMKilled" not in reasons:
            event = next(stream)
            reasons += [status.reason for status in event.containers_statuses if event.container_event_type == STOPPED]


def test_a_pod_is_stopped_before_its_stop_has_ended(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod)
    with listening(kubelet) as stream:
        kubelet.stop_pod(pod)
        first, second = take(stream, 2)
    assert (first.container_id, first.container_event_type) == (pod.id, STOPPED)
    assert (second.container_id, second.container_event_type) == (container, STOPPED)


def test_the_pod_network_is_accepted(kubelet: Client) -> None:
    def tell(cidr: str) -> None:
        network = cri.NetworkConfig(pod_cidr=cidr)
        kubelet.runtime.UpdateRuntimeConfig(cri.UpdateRuntimeConfigRequest(runtime_config=cri.RuntimeConfig(network_config=network)))

    for cidr in ("", "10.1.0.0/16", "10.1.0.0/16, fd00::/64"):
        tell(cidr)
    for cidr in ("10.1.0.0", "pods", "10.1.0.0/16,", "10.1.0.0/99"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "pod_cidr", repr(cidr)):
            tell(cidr)

"""GetContainerEvents: what happened to containers and sandboxes, for a kubelet that listens instead of polling (evented PLEG, KEP-3386).

Events follow from changes of records, whoever makes them. A sandbox is told of like a container of its own name: created and
started when it is there, stopped when it is no longer ready (decisions.md 9: no process of it ends), deleted.
"""

from __future__ import annotations

import time
from functools import partial

from agent import log
from agent.pods import container_status, sandbox_status
from agent.pods.container import ContainerRecord, ContainerState
from agent.pods.context import Pods
from agent.pods.event_feed import Subscription
from agent.pods.sandbox import SandboxRecord
from cri.api import api_pb2 as cri

_log = log.get("pods")


def get_container_events(pods: Pods, request: cri.GetEventsRequest) -> Subscription:
    """CRI GetContainerEvents: events from now on, as wire bytes, until the client or the agent ends it."""
    return pods.events.subscribe()


def attach(pods: Pods) -> None:
    """Have the registry tell of its changes from now on; what was loaded before is no news."""
    pods.registry.containers.changed = partial(_container_changed, pods)
    pods.registry.sandboxes.changed = partial(_sandbox_changed, pods)


def _container_changed(pods: Pods, before: ContainerRecord | None, after: ContainerRecord | None) -> None:
    record = after or before
    if record is not None:
        for kind in _of_container(before, after):
            _publish(pods, record.id, record.sandbox_id, None, kind)


def _sandbox_changed(pods: Pods, before: SandboxRecord | None, after: SandboxRecord | None) -> None:
    record = after or before
    if record is not None:
        for kind in _of_sandbox(before, after):
            _publish(pods, record.id, record.id, record, kind)


def _of_container(before: ContainerRecord | None, after: ContainerRecord | None) -> list[cri.ContainerEventType]:
    if before is None:
        return [cri.CONTAINER_CREATED_EVENT]
    if after is None:
        return [cri.CONTAINER_DELETED_EVENT]
    if after.state is ContainerState.EXITED:  # told again when its reason is corrected: the OOM killer's work is known late at times
        return [cri.CONTAINER_STOPPED_EVENT]
    started = before.state is not after.state is ContainerState.RUNNING
    return [cri.CONTAINER_STARTED_EVENT] if started else []


def _of_sandbox(before: SandboxRecord | None, after: SandboxRecord | None) -> list[cri.ContainerEventType]:
    if before is None:
        return [cri.CONTAINER_CREATED_EVENT, cri.CONTAINER_STARTED_EVENT]
    if after is None:
        return [cri.CONTAINER_DELETED_EVENT]
    stopped = before.cri_state == cri.SANDBOX_READY != after.cri_state
    return [cri.CONTAINER_STOPPED_EVENT] if stopped else []


def _publish(pods: Pods, subject: str, sandbox_id: str, sandbox: SandboxRecord | None, kind: cri.ContainerEventType) -> None:
    """`sandbox` is given where the registry doesn't have it any more."""
    if not pods.events.listened_to:
        return
    if sandbox is None and (live := pods.registry.sandboxes.find(sandbox_id)) is not None:
        sandbox = live.record
    try:
        event = cri.ContainerEventResponse(
            container_id=subject,
            container_event_type=kind,
            created_at=time.time_ns(),
            pod_sandbox_status=None if sandbox is None else sandbox_status.to_status(sandbox),
            containers_statuses=[container_status.to_status(live.record) for live in pods.registry.containers_of(sandbox_id)],
        )
        pods.events.publish(event.SerializeToString())
    except Exception as error:  # whatever can't be shown of a pod: the change that this tells of goes on, with its teardown
        _log.error("no event", container=subject, error=str(error), exc_info=error)

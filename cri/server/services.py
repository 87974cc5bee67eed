"""Which verb answers which RPC."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from agent.pods import (
    container_create,
    container_events,
    container_log,
    container_remove,
    container_start,
    container_stats,
    container_status,
    container_stop,
    container_update,
    exec_sync,
    recovery,
    runtime_status,
    runtime_update,
    sandbox_metrics,
    sandbox_remove,
    sandbox_run,
    sandbox_stats,
    sandbox_status,
    sandbox_stop,
    sandbox_update,
)
from agent.pods.context import Pods
from cri.api import admin_pb2, api_pb2
from cri.server import admin, images
from cri.server.edge import Stream, StreamVerb, Verb

_PodsVerb = Callable[[Pods, Any], Awaitable[Message | bytes]]
_PodsStream = Callable[[Pods, Any], Stream]

_RUNTIME_READS: dict[str, _PodsVerb] = {
    "Version": runtime_status.version,
    "Status": runtime_status.status,
    "RuntimeConfig": runtime_status.runtime_config,
    "PodSandboxStatus": sandbox_status.pod_sandbox_status,
    "ListPodSandbox": sandbox_status.list_pod_sandbox,
    "ContainerStatus": container_status.container_status,
    "ListContainers": container_status.list_containers,
    "ContainerStats": container_stats.container_stats,
    "ListContainerStats": container_stats.list_container_stats,
    "PodSandboxStats": sandbox_stats.pod_sandbox_stats,
    "ListPodSandboxStats": sandbox_stats.list_pod_sandbox_stats,
    "ListMetricDescriptors": sandbox_metrics.list_metric_descriptors,
    "ListPodSandboxMetrics": sandbox_metrics.list_pod_sandbox_metrics,
    "UpdateRuntimeConfig": runtime_update.update_runtime_config,
}
_RUNTIME_STREAMS: dict[str, _PodsStream] = {
    "StreamPodSandboxes": sandbox_status.stream_pod_sandboxes,
    "StreamContainers": container_status.stream_containers,
    "StreamContainerStats": container_stats.stream_container_stats,
    "StreamPodSandboxStats": sandbox_stats.stream_pod_sandbox_stats,
    "StreamPodSandboxMetrics": sandbox_metrics.stream_pod_sandbox_metrics,
    "GetContainerEvents": container_events.get_container_events,
}
_RUNTIME_VERBS: dict[str, _PodsVerb] = {
    "RunPodSandbox": sandbox_run.run_pod_sandbox,
    "StopPodSandbox": sandbox_stop.stop_pod_sandbox,
    "RemovePodSandbox": sandbox_remove.remove_pod_sandbox,
    "UpdatePodSandboxResources": sandbox_update.update_pod_sandbox_resources,
    "CreateContainer": container_create.create_container,
    "StartContainer": container_start.start_container,
    "StopContainer": container_stop.stop_container,
    "RemoveContainer": container_remove.remove_container,
    "UpdateContainerResources": container_update.update_container_resources,
    "ReopenContainerLog": container_log.reopen_container_log,
    "ExecSync": exec_sync.exec_sync,
}
_IMAGE_READS: dict[str, _PodsVerb] = {
    "ListImages": images.list_images,
    "ImageStatus": images.image_status,
    "ImageFsInfo": images.image_fs_info,
}
_IMAGE_STREAMS: dict[str, _PodsStream] = {
    "StreamImages": images.stream_images,
}
_IMAGE_VERBS: dict[str, _PodsVerb] = {
    "PullImage": images.pull_image,
    "RemoveImage": images.remove_image,
}
_ADMIN_READS: dict[str, _PodsVerb] = {
    "Ledger": admin.ledger,
    "Pulls": admin.pulls,
    "History": admin.history,
    "Failpoints": admin.failpoints,
}
_ADMIN_VERBS: dict[str, _PodsVerb] = {
    "ImportImage": admin.import_image,
}


def verbs(pods: Pods, known: asyncio.Event) -> Mapping[ServiceDescriptor, Mapping[str, Verb | StreamVerb]]:
    """The tables of all services. What reads answers from the first moment. What changes something waits until it is `known` what there
    is, and then for the pod that it is about."""

    def after_recovery(verb: Verb) -> Verb:
        async def gated(request: Message) -> Message | bytes:
            await known.wait()
            await recovery.settled(pods, request)
            return await verb(request)

        return gated

    def table(
        reads: dict[str, _PodsVerb], changes: dict[str, _PodsVerb], streams: dict[str, _PodsStream] | None = None
    ) -> dict[str, Verb | StreamVerb]:
        return {
            **{name: partial(stream, pods) for name, stream in (streams or {}).items()},
            **{name: partial(verb, pods) for name, verb in reads.items()},
            **{name: after_recovery(partial(verb, pods)) for name, verb in changes.items()},
        }

    return {
        api_pb2.DESCRIPTOR.services_by_name["RuntimeService"]: table(_RUNTIME_READS, _RUNTIME_VERBS, _RUNTIME_STREAMS),
        api_pb2.DESCRIPTOR.services_by_name["ImageService"]: table(_IMAGE_READS, _IMAGE_VERBS, _IMAGE_STREAMS),
        admin_pb2.DESCRIPTOR.services_by_name["Admin"]: table(_ADMIN_READS, _ADMIN_VERBS),
    }

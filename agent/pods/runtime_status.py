"""Version, Status, RuntimeConfig: what the kubelet asks of the runtime itself."""

from __future__ import annotations

import json
from importlib import metadata

from agent.pods.context import Pods
from cri.api import api_pb2 as cri

NAME = "orlop"
_VERSION = metadata.version(NAME)
"""Read here, at import: it comes from files, and Version is asked for every few seconds."""
_KUBELET_API = "0.1.0"
"""What every runtime answers here; the field is older than the CRI's own versioning."""


async def version(pods: Pods, request: cri.VersionRequest) -> cri.VersionResponse:
    """CRI Version."""
    return cri.VersionResponse(version=_KUBELET_API, runtime_name=NAME, runtime_version=_VERSION, runtime_api_version="v1")


async def status(pods: Pods, request: cri.StatusRequest) -> cri.StatusResponse:
    """CRI Status: the two conditions the kubelet needs, and what this node can't do. `verbose` adds the agent's own view."""
    network = pods.network.status()
    pending = [resource for resource in pods.ledger.all() if resource.state == "failed"]
    conditions = [
        cri.RuntimeCondition(type="RuntimeReady", status=True),
        cri.RuntimeCondition(type="NetworkReady", status=network.ready, reason=network.reason, message=network.message),
        cri.RuntimeCondition(
            type="NoLeakedResources",
            status=not pending,
            reason="ReleasesPending" if pending else "",
            message=f"{len(pending)} resources could not be released yet; see `orlop audit`" if pending else "",
        ),
        cri.RuntimeCondition(
            type="NodeUnrestricted",
            status=not pods.facts.restrictions,
            reason="NodeRestricted" if pods.facts.restrictions else "",
            message="; ".join(pods.facts.restrictions),
        ),
    ]
    handlers = [cri.RuntimeHandler(name=name, features=_features(pods, name)) for name in ("", *sorted(pods.handlers))]
    info = {}
    if request.verbose:
        details = {
            "defaultHandler": pods.default_handler,
            "handlers": {
                name: {
                    "type": handler.runtime_type,
                    "engine": handler.engine,
                    "sandbox": handler.sandbox,
                    "noRecursiveReadOnly": pods.features[name].no_recursive_read_only,
                }
                for name, handler in pods.handlers.items()
            },
            "restrictions": list(pods.facts.restrictions),
            "sandboxes": len(pods.registry.sandboxes),
            "containers": len(pods.registry.containers),
            "pendingReleases": [resource.to_json() for resource in pending],
        }
        info["config"] = json.dumps(details)
    return cri.StatusResponse(
        status=cri.RuntimeStatus(conditions=conditions),
        info=info,
        runtime_handlers=handlers,
        features=cri.RuntimeFeatures(supplemental_groups_policy=True, mount_options=True),
    )


def _features(pods: Pods, name: str) -> cri.RuntimeHandlerFeatures:
    features = pods.features[pods.handler(name).name]
    return cri.RuntimeHandlerFeatures(recursive_read_only_mounts=features.recursive_read_only)


async def runtime_config(pods: Pods, request: cri.RuntimeConfigRequest) -> cri.RuntimeConfigResponse:
    """CRI RuntimeConfig: the cgroup driver that the kubelet must use too (KEP-4033)."""
    systemd = pods.handler("").systemd_cgroup
    return cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=cri.SYSTEMD if systemd else cri.CGROUPFS))

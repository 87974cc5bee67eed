"""The OCI runtime spec of a container, from its CRI config, its image and what the node allows.

Pure but for looks at host paths and devices, so it runs in a thread. One module per part of the spec: `process`, `mounts`,
`linux`. Defaults are those that containerd's CRI plugin has, because images and manifests are written for them.
"""

from __future__ import annotations

from typing import Any

from agent.aio import in_thread
from agent.pods.spec import linux, mounts, process
from agent.pods.spec.inputs import SpecInputs

OCI_VERSION = "1.0.2"
"""What the oldest engine served (runc 1.1, crun 1.8) takes; nothing newer is used."""


async def build(inputs: SpecInputs) -> dict[str, Any]:
    """The spec, as a JSON-able dict.

    Raises:
        InvalidArgument: a field of the CRI config that can't be; the message names it.
        NotFound: a host path or device that isn't there, a user that the image doesn't have.
    """
    return await in_thread(_build, inputs)


def _build(inputs: SpecInputs) -> dict[str, Any]:
    plan = mounts.plan(inputs)
    return {
        "ociVersion": OCI_VERSION,
        "process": process.build(inputs),
        "root": {"path": "rootfs", "readonly": inputs.security.readonly_rootfs},
        "mounts": plan.mounts,
        "annotations": _annotations(inputs),
        "linux": linux.build(inputs, plan.rootfs_propagation),
    }


def _annotations(inputs: SpecInputs) -> dict[str, str]:
    """By these shims group and decide; `hostname` and `sysctls` are left out since they'd change the whole pod."""
    metadata = inputs.sandbox.config.metadata
    return {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": inputs.config.metadata.name,
        "io.kubernetes.cri.sandbox-id": inputs.sandbox.id,
        "io.kubernetes.cri.sandbox-name": metadata.name,
        "io.kubernetes.cri.sandbox-namespace": metadata.namespace,
        "io.kubernetes.cri.sandbox-uid": metadata.uid,
        "io.kubernetes.cri.image-name": inputs.config.image.user_specified_image or inputs.config.image.image,
        **linux.scope_properties(inputs.handler),
    }

"""A sandbox that is a task: for runtimes whose sandbox is a VM or a kernel of its own (Kata, gVisor), and for pods whose
containers share a PID namespace, which only a process can keep alive.

The task runs the sandbox ("pause") image in the pod's pinned namespaces. It is the first task of the pod's shim and, since
the ledger releases the newest first, the last one to go.
"""

from __future__ import annotations

from typing import Any

from agent import failpoints, timeouts
from agent.aio import within
from agent.config.handlers import RuntimeHandler
from agent.errdefs import DeadlineExceeded, FailedPrecondition, OrlopError
from agent.images.image import Image
from agent.pods.context import Pods
from agent.pods.sandbox import Pin
from agent.pods.spec.linux import cgroups_path, scope_properties
from agent.runtime.v2.task import CreateTask
from agent.store.kinds import Kind
from agent.store.ledger import Intent
from cri.api import api_pb2 as cri

_SHARES = 2
"""cgroup v1 CPU shares of a process that only waits."""


def intents(sandbox_id: str, handler: RuntimeHandler) -> list[Intent]:
    """What the task owns beside the shim."""
    return [
        Intent(Kind.SNAPSHOT, sandbox_id, sandbox=sandbox_id),
        Intent(Kind.TASK, sandbox_id, sandbox=sandbox_id, data={"handler": handler.name}),
    ]


def needed(config: cri.PodSandboxConfig, handler: RuntimeHandler) -> bool:
    """Whether a sandbox of `config` is a task."""
    return handler.sandbox == "task" or config.linux.security_context.namespace_options.pid == cri.POD


async def ensure_image(pods: Pods) -> None:
    """Have the sandbox image on the node. It is pulled without credentials: a kubelet gives none with RunPodSandbox.

    Raises:
        FailedPrecondition: it is not here and can't be pulled.
    """
    if pods.images.find(pods.sandbox_image) is not None:
        return
    try:
        await pods.images.pull(pods.sandbox_image)
    except OrlopError as error:
        raise FailedPrecondition(
            f'this pod\'s sandbox needs a process (a shared PID namespace, or a handler with sandbox = "task"), and its image '
            f"{pods.sandbox_image!r} is not on this node and can't be pulled: {error}. Set `sandbox_image`, or `orlop image import` it"
        ) from error


async def start(
    pods: Pods,
    sandbox_id: str,
    config: cri.PodSandboxConfig,
    handler: RuntimeHandler,
    cgroup_parent: str,
    pins: dict[str, Pin],
    annotations: dict[str, str],
) -> int:
    """Create and start the task in a new shim; returns its pid.

    Raises:
        NotFound: the sandbox image has been removed since `ensure_image`.
        Unknown: the engine refused.
        DeadlineExceeded: shim or engine hung; the shim was killed under them.
    """
    image = pods.images.resolve(pods.sandbox_image)
    await failpoints.hit("pods.sandbox_task.snapshot")
    rootfs = await pods.images.prepare_rootfs(image.id, sandbox_id)
    await pods.ledger.hold(Kind.SNAPSHOT, sandbox_id)
    await failpoints.hit("pods.sandbox_task.create")
    request = CreateTask(
        id=sandbox_id,
        sandbox_id=sandbox_id,
        handler=handler,
        spec=_spec(image, config, handler, cgroups_path(cgroup_parent, sandbox_id, handler), pins, annotations, pods.facts.oom_score_floor),
        rootfs=list(rootfs),
    )
    try:
        return await within(timeouts.SANDBOX_TASK, _run(pods, request), f"the start of the task of sandbox {sandbox_id}")
    except DeadlineExceeded:
        # Nobody else could end it: the sandbox isn't listed yet, so no client knows what to stop.
        await pods.tasks.kill_shim(sandbox_id)
        raise


async def _run(pods: Pods, request: CreateTask) -> int:
    task = await pods.tasks.create(request)
    await failpoints.hit("pods.sandbox_task.start")
    await task.start()
    return task.pid


def _spec(
    image: Image,
    config: cri.PodSandboxConfig,
    handler: RuntimeHandler,
    cgroups_path: str,
    pins: dict[str, Pin],
    annotations: dict[str, str],
    oom_score_floor: int,
) -> dict[str, Any]:
    host_pid = config.linux.security_context.namespace_options.pid == cri.NODE
    namespaces: list[dict[str, str]] = [{"type": "mount"}, *({"type": kind, "path": pin.path} for kind, pin in pins.items())]
    if not host_pid:
        namespaces.append({"type": "pid"})
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 65535, "gid": 65535},
            "args": [*image.config.entrypoint, *image.config.cmd],
            "env": list(image.config.env),
            "cwd": image.config.working_dir or "/",
            "noNewPrivileges": True,
            "oomScoreAdj": max(-998, oom_score_floor),
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        ],
        "annotations": {**annotations, **scope_properties(handler)},
        "linux": {
            "cgroupsPath": cgroups_path,
            "namespaces": namespaces,
            "resources": {"cpu": {"shares": _SHARES}, "devices": [{"allow": False, "access": "rwm"}]},
        },
    }
    if "uts" in pins and not _keeps_host_kernel(handler):
        spec["hostname"] = config.hostname
    return spec


def _keeps_host_kernel(handler: RuntimeHandler) -> bool:
    """runc-like: the pinned UTS namespace carries the host name already, and setting it again needs a capability."""
    return handler.runtime_type.startswith("io.containerd.runc.")

"""RunPodSandbox: everything a pod owns before its first container.

All of it is written into the ledger first, in one transaction; then it is made, side by side where nothing depends on the
other; the sandbox is recorded last. Whatever fails on the way is released through the ledger, and what can't be released
stays there. A crash leaves ledger entries without a sandbox record, which the next start releases.
"""

from __future__ import annotations

import errno
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import failpoints, log
from agent.aio import in_thread, together
from agent.config.handlers import RuntimeHandler
from agent.errdefs import InvalidArgument, Unavailable
from agent.identifiers import new_id
from agent.linux.mounts import Mount
from agent.network import Attachment
from agent.pods import checks, pod_cgroup, sandbox_files, sandbox_task
from agent.pods.context import Pods
from agent.pods.exits import check_task
from agent.pods.registry import Sandbox
from agent.pods.sandbox import Pin, SandboxRecord, sandbox_name
from agent.pods.sysctls import Sysctls
from agent.store.kinds import Kind
from agent.store.ledger import Intent
from cri.api import api_pb2 as cri

_log = log.get("pods")

SHM_SIZE = 64 << 20
"""Bytes of /dev/shm, as containerd and Docker have it."""


@dataclass(frozen=True)
class Plan:
    """What a new sandbox will own: decided, with every key, before anything is made."""

    id: str
    config: cri.PodSandboxConfig
    handler: RuntimeHandler
    directory: Path
    cgroup_parent: str
    makes_cgroup: bool
    pins: dict[str, Path]
    sysctls: Sysctls
    attachment: Attachment | None
    with_task: bool

    def intents(self) -> list[Intent]:
        """The ledger entries, one for each thing to be made."""

        def intent(kind: Kind, key: str, **data: Any) -> Intent:
            return Intent(kind, key, sandbox=self.id, data=data)

        wanted = [intent(Kind.SANDBOX_DIR, str(self.directory)), intent(Kind.SHIM, self.id, handler=self.handler.name)]
        wanted += [intent(_PIN_KINDS[kind], str(path)) for kind, path in self.pins.items()]
        if "ipc" in self.pins:
            wanted.append(intent(Kind.SHM, str(self.directory / "shm")))
        if self.makes_cgroup:
            wanted.append(intent(Kind.CGROUP, self.cgroup_parent))
        if self.attachment is not None:
            wanted.append(intent(Kind.CNI, self.id, **self.attachment.to_json()))
        if self.with_task:
            wanted += sandbox_task.intents(self.id, self.handler)
        return wanted


_REFUSALS = frozenset({errno.ENOENT, errno.EINVAL, errno.ERANGE, errno.EACCES, errno.EPERM})
_PIN_KINDS = {"net": Kind.NETNS, "ipc": Kind.IPCNS, "uts": Kind.UTSNS}
_NAMESPACE_TYPES = {"net": "network", "ipc": "ipc", "uts": "uts"}


async def run_pod_sandbox(pods: Pods, request: cri.RunPodSandboxRequest) -> cri.RunPodSandboxResponse:
    """CRI RunPodSandbox. A repeated call while the first one runs gets the first one's sandbox.

    Raises:
        InvalidArgument: metadata missing, unknown handler, sysctls or namespaces that can't be.
        AlreadyExists: the same pod and attempt has a sandbox.
        Unavailable: no pod network, or the ledger can't be written.
        FailedPrecondition: the sandbox is a task, and its image can't be had.
    """
    config = request.config
    checks.sandbox(config)
    handler = pods.handler(request.runtime_handler)
    name = sandbox_name(config.metadata)

    async def run() -> str:
        sandbox_id = new_id()
        pods.registry.sandboxes.reserve(name, sandbox_id)
        try:
            await _run(pods, sandbox_id, config, handler)
        except BaseException:
            pods.registry.sandboxes.unreserve(name)
            raise
        return sandbox_id

    return cri.RunPodSandboxResponse(pod_sandbox_id=await pods.once(f"RunPodSandbox {name}", run))


async def _run(pods: Pods, sandbox_id: str, config: cri.PodSandboxConfig, handler: RuntimeHandler) -> None:
    if sandbox_task.needed(config, handler):
        await sandbox_task.ensure_image(pods)
    plan = await _plan(pods, sandbox_id, config, handler)
    await pods.ledger.intend(*plan.intents())
    try:
        record = await _acquire(pods, plan)
        await failpoints.hit("pods.sandbox_run.record")
        sandbox = Sandbox(record)
        await pods.registry.sandboxes.add(sandbox)
        await check_task(pods, sandbox)
    except Exception as error:
        for resource, failure in await pods.releases.release_owned(sandbox=sandbox_id):
            error.add_note(f"{resource.kind} {resource.key} is not released yet and stays in the ledger: {failure}")
        raise
    _log.info("sandbox runs", sandbox=sandbox_id, pod=config.metadata.name, namespace=config.metadata.namespace, ips=record.ips)


async def _plan(pods: Pods, sandbox_id: str, config: cri.PodSandboxConfig, handler: RuntimeHandler) -> Plan:
    options = config.linux.security_context.namespace_options
    host_network, host_ipc = options.network == cri.NODE, options.ipc == cri.NODE
    pins = {}
    if not host_network:
        pins["net"] = pods.netns_dir / f"cni-{uuid.uuid4()}"
        pins["uts"] = pods.state_dir / "namespaces" / f"{sandbox_id}-uts"
    if not host_ipc:
        pins["ipc"] = pods.state_dir / "namespaces" / f"{sandbox_id}-ipc"
    cgroup_parent = pod_cgroup.of(pods, handler, sandbox_id, config.linux.cgroup_parent)
    await pod_cgroup.settle(pods, cgroup_parent)
    missing = not await pods.cgroups.exists(cgroup_parent)
    attachment = None
    if not host_network:
        status = pods.network.status()
        if not status.ready:
            raise Unavailable(f"the pod network is not ready: {status.message}")
        attachment = pods.network.plan(sandbox_id, config, pins["net"])
    return Plan(
        id=sandbox_id,
        config=config,
        handler=handler,
        directory=pods.state_dir / "sandboxes" / sandbox_id,
        cgroup_parent=cgroup_parent,
        # Two pods may share a parent that neither finds; the ledger, asked last and without an await before the intent, says whose it is.
        makes_cgroup=missing and pods.ledger.get(Kind.CGROUP, cgroup_parent) is None,
        pins=pins,
        sysctls=Sysctls.split(config.linux.sysctls, host_network=host_network, host_ipc=host_ipc),
        attachment=attachment,
        with_task=sandbox_task.needed(config, handler),
    )


async def _acquire(pods: Pods, plan: Plan) -> SandboxRecord:
    _, _, pins = await together(_make_directory(pods, plan), _make_cgroup(pods, plan), _pin_namespaces(pods, plan))
    _, ips, pid = await together(_mount_shm(pods, plan), _attach(pods, plan), _start_shim(pods, plan, pins))
    return SandboxRecord(
        id=plan.id,
        config=plan.config,
        handler=plan.handler.name,
        created_at=time.time_ns(),
        directory=str(plan.directory),
        cgroup_parent=plan.cgroup_parent,
        pins=pins,
        ips=ips,
        has_task=plan.with_task,
        pid=pid,
    )


async def _make_directory(pods: Pods, plan: Plan) -> None:
    await failpoints.hit("pods.sandbox_run.directory")
    await in_thread(sandbox_files.write, plan.directory, plan.config)
    await pods.ledger.hold(Kind.SANDBOX_DIR, str(plan.directory))


async def _make_cgroup(pods: Pods, plan: Plan) -> None:
    if plan.makes_cgroup:
        await failpoints.hit("pods.sandbox_run.cgroup")
        await pod_cgroup.make(pods, plan.cgroup_parent)
        await pods.ledger.hold(Kind.CGROUP, plan.cgroup_parent)


async def _pin_namespaces(pods: Pods, plan: Plan) -> dict[str, Pin]:
    if not plan.pins:
        return {}
    await failpoints.hit("pods.sandbox_run.namespaces")
    with _telling_of(plan.sysctls.at_creation):
        inodes = await pods.namespaces.create(plan.pins, hostname=plan.config.hostname, sysctls=plan.sysctls.at_creation)
    await together(*(pods.ledger.hold(_PIN_KINDS[kind], str(path), {"inode": inodes[kind]}) for kind, path in plan.pins.items()))
    return {_NAMESPACE_TYPES[kind]: Pin(str(path), inodes[kind]) for kind, path in plan.pins.items()}


async def _mount_shm(pods: Pods, plan: Plan) -> None:
    if "ipc" not in plan.pins:
        return
    target = plan.directory / "shm"
    await failpoints.hit("pods.sandbox_run.shm")
    await pods.mounts.mount(Mount("tmpfs", "shm", ("nosuid", "nodev", "noexec", "mode=1777", f"size={SHM_SIZE}")), target)
    await pods.ledger.hold(Kind.SHM, str(target))


async def _attach(pods: Pods, plan: Plan) -> tuple[str, ...]:
    if plan.attachment is None:
        return ()
    await failpoints.hit("pods.sandbox_run.cni")
    result = await pods.network.add(plan.attachment)
    await pods.ledger.hold(Kind.CNI, plan.id)
    if plan.sysctls.of_interfaces:
        with _telling_of(plan.sysctls.of_interfaces):
            await pods.namespaces.write_sysctls(plan.pins["net"], plan.sysctls.of_interfaces)
    return result.ips


@contextmanager
def _telling_of(sysctls: dict[str, str]) -> Iterator[None]:
    """The kernel refuses keys that it doesn't have and values that it doesn't take: that is the request's fault."""
    try:
        yield
    except OSError as error:
        path = str(error.filename or "")
        if not path.startswith("/proc/sys/") or error.errno not in _REFUSALS:
            raise
        key = path.removeprefix("/proc/sys/").replace("/", ".")
        value = next((value for name, value in sysctls.items() if name.replace("/", ".") == key), "")
        raise InvalidArgument(f"config.linux.sysctls: {key!r} can't be set to {value!r}: {error.strerror}") from error


async def _start_shim(pods: Pods, plan: Plan, pins: dict[str, Pin]) -> int:
    """The pod's shim; with a sandbox task, its pid, else 0."""
    await failpoints.hit("pods.sandbox_run.shim")
    annotations = _annotations(plan.id, plan.config)
    if plan.with_task:
        return await sandbox_task.start(pods, plan.id, plan.config, plan.handler, plan.cgroup_parent, pins, annotations)
    await pods.tasks.start_shim(plan.id, plan.handler, annotations)
    return 0


def _annotations(sandbox_id: str, config: cri.PodSandboxConfig) -> dict[str, str]:
    """The annotations by which shims group and decide (runtime-v2 section 2), for the sandbox itself."""
    return {
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-id": sandbox_id,
        "io.kubernetes.cri.sandbox-name": config.metadata.name,
        "io.kubernetes.cri.sandbox-namespace": config.metadata.namespace,
        "io.kubernetes.cri.sandbox-uid": config.metadata.uid,
    }

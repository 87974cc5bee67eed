"""CreateContainer: a name, a checked OCI spec and a writable layer. No process yet (see container.py)."""

from __future__ import annotations

import contextlib
import posixpath
import time

from agent import failpoints, log
from agent.errdefs import FailedPrecondition, InvalidArgument
from agent.identifiers import new_id
from agent.images.image import Image
from agent.images.reference import parse_reference
from agent.pods import checks, image_volumes, signals
from agent.pods.container import ContainerRecord, ContainerState
from agent.pods.context import Pods
from agent.pods.registry import Container, Sandbox
from agent.pods.sandbox import SandboxState
from agent.pods.spec import build
from agent.pods.spec.inputs import SpecInputs
from agent.store.kinds import Kind
from agent.store.ledger import Intent
from cri.api import api_pb2 as cri

_log = log.get("pods")
_DEFAULT_STOP_SIGNAL = signals.parse("SIGTERM", "default")


async def create_container(pods: Pods, request: cri.CreateContainerRequest) -> cri.CreateContainerResponse:
    """CRI CreateContainer. A repeated call while the first one runs gets the first one's container.

    Raises:
        InvalidArgument: a field that can't be; the message names it.
        NotFound: no such sandbox, or the image isn't on the node.
        FailedPrecondition: the sandbox is not ready.
        AlreadyExists: the sandbox has a container of this name and attempt.
    """
    config = request.config
    checks.container(config)
    checks.log_directory("sandbox_config.log_directory", request.sandbox_config.log_directory)
    sandbox = pods.registry.sandboxes.get(request.pod_sandbox_id)
    log_directory = request.sandbox_config.log_directory or sandbox.record.config.log_directory
    name = f"{config.metadata.name}_{sandbox.record.id}_{config.metadata.attempt}"

    async def create() -> str:
        container_id = new_id()
        enter(sandbox)
        try:
            pods.registry.containers.reserve(name, container_id)
            try:
                await _create(pods, sandbox, container_id, config, log_directory)
            except BaseException:
                pods.registry.containers.unreserve(name)
                raise
        finally:
            sandbox.left()
        return container_id

    return cri.CreateContainerResponse(container_id=await pods.once(f"CreateContainer {name}", create))


def enter(sandbox: Sandbox) -> None:
    """Begin work in a sandbox that StopPodSandbox will wait for; the caller ends it with `sandbox.left()`.

    Raises:
        FailedPrecondition: the sandbox is not ready.
    """
    insist_on_ready(sandbox)
    sandbox.entered()


def insist_on_ready(sandbox: Sandbox) -> None:
    """Raises FailedPrecondition. To be asked again after a wait: StopPodSandbox doesn't wait for a create or start for ever."""
    if sandbox.record.state is not SandboxState.READY:
        raise FailedPrecondition(
            f"sandbox {sandbox.record.id} is {sandbox.record.state}, not ready: no container can be made or started in it"
        )


async def _create(pods: Pods, sandbox: Sandbox, container_id: str, config: cri.ContainerConfig, log_directory: str) -> None:
    image = pods.images.resolve(config.image.image)
    handler = pods.handler(sandbox.record.handler)
    config = image_volumes.resolved(pods.images, handler, config)
    stop_signal = _stop_signal(config, image)
    await pods.ledger.intend(Intent(Kind.SNAPSHOT, container_id, sandbox=sandbox.record.id, container=container_id))
    try:
        await failpoints.hit("pods.container_create.snapshot")
        rootfs = await pods.images.prepare_rootfs(image.id, container_id, image_volumes.image_ids(config))
        await pods.ledger.hold(Kind.SNAPSHOT, container_id)
        # Not before: from here on no layer that the spec speaks of can go.
        spec = await build(
            SpecInputs(
                container_id=container_id,
                sandbox=sandbox.record,
                handler=handler,
                config=config,
                image=image.config,
                passwd=await pods.images.read_file(image.id, "/etc/passwd") or b"",
                group=await pods.images.read_file(image.id, "/etc/group") or b"",
                facts=pods.facts,
                features=pods.features[handler.name],
                pid_namespace=pid_namespace(pods, sandbox, config),
                image_volumes=await image_volumes.mounts(pods.images, config),
            )
        )
        record = ContainerRecord(
            id=container_id,
            sandbox_id=sandbox.record.id,
            config=config,
            image_id=image.id,
            image_name=_image_name(image, config.image),
            spec=spec,
            rootfs=tuple(rootfs),
            log_path=posixpath.join(log_directory, config.log_path) if config.log_path and log_directory else "",
            created_at=time.time_ns(),
            stop_signal=stop_signal,
        )
        await failpoints.hit("pods.container_create.record")
        insist_on_ready(sandbox)
        await pods.registry.containers.add(Container(record))
    except Exception as error:
        for resource, failure in await pods.releases.release_owned(container=container_id):
            error.add_note(f"{resource.kind} {resource.key} is not released yet and stays in the ledger: {failure}")
        raise
    _log.info("container created", sandbox=sandbox.record.id, container=container_id, name=config.metadata.name, image=image.id)


def pid_namespace(pods: Pods, sandbox: Sandbox, config: cri.ContainerConfig) -> str | None:
    """The path of the PID namespace to join; "" for the host's; None for one of the container's own.

    Raises:
        NotFound, FailedPrecondition: the TARGET container doesn't exist or doesn't run.
        InvalidArgument: no TARGET, a POD namespace that the sandbox doesn't have, or an unknown mode.
    """
    options = config.linux.security_context.namespace_options
    match options.pid:
        case cri.NODE:
            return ""
        case cri.CONTAINER:
            return None
        case cri.TARGET:
            if not options.target_id:
                raise InvalidArgument("namespace_options.target_id must not be empty with pid TARGET")
            target = pods.registry.containers.get(options.target_id).record
            if target.sandbox_id != sandbox.record.id or target.state is not ContainerState.RUNNING:
                raise FailedPrecondition(f"namespace_options.target_id {options.target_id!r} is not a running container of this sandbox")
            return _namespace_of(pods, target.id)
        case cri.POD:
            if not sandbox.record.has_task:
                raise InvalidArgument(
                    "namespace_options.pid is POD, but the sandbox was run with a PID namespace per container: "
                    "the sandbox's own namespace_options.pid must be POD too"
                )
            return _namespace_of(pods, sandbox.record.id)
        case other:
            raise InvalidArgument(f"namespace_options.pid {other} is not one of the CRI")


def _namespace_of(pods: Pods, task_id: str) -> str:
    """The PID namespace of a task that runs: the number of one that has ended may be a stranger's by now."""
    task = pods.tasks.get(task_id)
    if task.exited is not None:
        raise FailedPrecondition(f"the process whose PID namespace is to be joined has ended: task {task_id}")
    return f"/proc/{task.pid}/ns/pid"


def _image_name(image: Image, wanted: cri.ImageSpec) -> str:
    """The tag that people know the image by: the kubelet asks by id, and shows the name that ContainerStatus has."""
    for name in (wanted.user_specified_image, wanted.image):
        with contextlib.suppress(InvalidArgument):
            if (tag := str(parse_reference(name))) in image.tags:
                return tag
    return image.tags[0] if image.tags else wanted.user_specified_image or wanted.image


def _stop_signal(config: cri.ContainerConfig, image: Image) -> int:
    wanted = signals.from_cri(config.stop_signal, "config.stop_signal")
    if wanted is not None:
        return wanted
    if image.config.stop_signal:
        try:
            return signals.parse(image.config.stop_signal, "image stop signal")
        except InvalidArgument:
            _log.warning("image names no known stop signal", image=image.id, signal=image.config.stop_signal)
    return _DEFAULT_STOP_SIGNAL

"""Which function releases which kind of resource. The order between kinds is the ledger's (`agent.store.kinds`)."""

from __future__ import annotations

from pathlib import Path

from agent.aio import in_thread
from agent.network import Attachment
from agent.pods import pod_cgroup, sandbox_files
from agent.pods.context import Pods
from agent.store.kinds import Kind
from agent.store.ledger import Resource


def register(pods: Pods) -> None:
    """Tell the release walker how each kind is released. Every function is idempotent."""

    async def task(resource: Resource) -> None:
        await pods.tasks.delete(resource.key)

    async def shim(resource: Resource) -> None:
        await pods.tasks.stop_shim(resource.key)

    async def log(resource: Resource) -> None:
        await pods.logs.close(resource.key)

    async def fifo(resource: Resource) -> None:
        await pods.logs.remove_fifos(resource.key)

    async def execution(resource: Resource) -> None:
        if (task := pods.tasks.find(resource.container)) is not None:  # else the process went with its container
            await task.end_exec(resource.key)
        await pods.logs.remove_fifos(resource.key)

    async def cni(resource: Resource) -> None:
        await pods.network.delete(Attachment.from_json(resource.data))

    async def namespace(resource: Resource) -> None:
        await pods.namespaces.release(Path(resource.key))

    async def mount(resource: Resource) -> None:
        await pods.mounts.unmount_all(Path(resource.key))

    async def cgroup(resource: Resource) -> None:
        await pod_cgroup.release(pods, resource.key)

    async def directory(resource: Resource) -> None:
        await in_thread(sandbox_files.remove, Path(resource.key))

    for kind, releaser in {
        Kind.TASK: task,
        Kind.SHIM: shim,
        Kind.LOG: log,
        Kind.FIFO: fifo,
        Kind.EXEC: execution,
        Kind.CNI: cni,
        Kind.NETNS: namespace,
        Kind.IPCNS: namespace,
        Kind.UTSNS: namespace,
        Kind.SHM: mount,
        Kind.CGROUP: cgroup,
        Kind.SNAPSHOT: pods.images.release_snapshot,
        Kind.INGEST: pods.images.release_ingest,
        Kind.LAYER_UNPACK: pods.images.release_unpack,
        Kind.SANDBOX_DIR: directory,
    }.items():
        pods.releases.register(kind, releaser)

"""A pod's cgroup: which one it is, and its making and removal where no kubelet does that.

The kubelet makes a pod's cgroup before RunPodSandbox and names it in `cgroup_parent`: a path with the cgroupfs driver; with systemd's the
path of a slice, or its name alone. Other clients (crictl, `orlop run`) name none, or one that isn't there; then it is the agent's, in
the ledger as a CGROUP.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from agent.config.handlers import RuntimeHandler
from agent.errdefs import Busy, FailedPrecondition, InvalidArgument
from agent.linux import cgroupfs
from agent.pods.context import Pods
from agent.pods.sandbox import SandboxRecord, SandboxState
from agent.store.kinds import Kind

_SLICE = ".slice"


def of(pods: Pods, handler: RuntimeHandler, sandbox_id: str, asked_for: str) -> str:
    """The path, below each hierarchy, of the cgroup that a new pod's containers go into.

    Raises:
        InvalidArgument: the client names it for the other cgroup driver. Its containers would be outside of what it limits and counts.
    """
    if not asked_for:
        if not handler.systemd_cgroup:
            return f"{pods.pod_cgroup}/pod{sandbox_id}"
        top = pods.pod_cgroup.rsplit("/", 1)[-1].removesuffix(_SLICE)
        return f"{pods.pod_cgroup}/{top}-pod{sandbox_id}{_SLICE}"
    name = asked_for.rstrip("/").rsplit("/", 1)[-1]
    if name.endswith(_SLICE) is not handler.systemd_cgroup:
        ours, theirs = ("systemd", "cgroupfs") if handler.systemd_cgroup else ("cgroupfs", "systemd")
        raise InvalidArgument(
            f"config.linux.cgroup_parent {asked_for!r} is for the cgroup driver {theirs}, but this agent's is {ours}: set "
            f'cgroup_driver = "{theirs}" in its configuration, or cgroupDriver: {ours} in the kubelet\'s'
        )
    return cgroupfs.slice_path(name) if handler.systemd_cgroup else asked_for


async def settle(pods: Pods, path: str) -> None:
    """If the agent is about to remove this cgroup, which it made for an earlier attempt at the pod, do that first, as far as it goes.

    Or a new attempt finds it there and doesn't own it, it is removed, and what the engine makes in its place is nobody's.
    """
    entry = pods.ledger.get(Kind.CGROUP, path)
    if entry is not None and entry.due(math.inf):
        users = [resource for resource in pods.ledger.owned(sandbox=entry.sandbox) if resource.uses(entry)]
        await pods.releases.release([*users, entry])


def refuse_another_driver(sandboxes: Iterable[SandboxRecord], *, systemd: bool) -> None:
    """Whether the daemon may serve with this cgroup driver, asked at its start (field fault 31).

    Raises:
        FailedPrecondition: names the pods that run in cgroups of the other driver. What would be started in them now would be outside of
            what limits and counts them.
    """
    others = [
        f"{record.config.metadata.namespace}/{record.config.metadata.name} in {record.cgroup_parent}"
        for record in sandboxes
        if record.state is not SandboxState.STOPPED and record.cgroup_parent.endswith(_SLICE) is not systemd
    ]
    if others:
        ours, theirs = ("systemd", "cgroupfs") if systemd else ("cgroupfs", "systemd")
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise FailedPrecondition(
            f"pods run that were started with the cgroup driver {theirs}, and cgroup_driver is {ours} now: {', '.join(others[:5])}{more}. "
            f'They run on. Set cgroup_driver = "{theirs}" again, and change it when the node is drained'
        )


async def make(pods: Pods, path: str) -> None:
    """Make it, in whichever way `release` undoes it."""
    if path.endswith(_SLICE):
        await pods.systemd.start_slice(path.rsplit("/", 1)[-1])
    else:
        await pods.cgroups.create(path)


async def release(pods: Pods, path: str) -> None:
    """Remove it. Idempotent.

    Raises:
        Busy: names the processes in it, which are nobody's that the ledger knows. They are not killed.
        Unavailable: systemd doesn't stop the slice.
    """
    if path.endswith(_SLICE):
        if pids := await pods.cgroups.processes(path):  # which systemd would kill with it
            raise Busy(f"can't stop {path.rsplit('/', 1)[-1]}: processes {sorted(pids)} are in it. It stays until they are gone")
        await pods.systemd.stop(path.rsplit("/", 1)[-1])
    await pods.cgroups.remove(path)

"""Whether the kernel ended a container for want of memory, asked of its cgroup when it has exited.

With the cgroupfs driver the cgroup stays until the task is released. systemd removes a scope the moment its last process has gone, often
before anybody has looked, the shim included. But on v2 the pod's cgroup counts for all below it, and stays: what that has counted since
the container started, and no living neighbour accounts for, was this container's.
"""

from __future__ import annotations

from agent import log
from agent.pods import usage
from agent.pods.context import Pods
from agent.pods.registry import Container

_log = log.get("pods")


async def prepare(pods: Pods, live: Container) -> None:
    """Before anything of the container runs: what its pod has counted so far."""
    if _leaves_at_once(pods, live):
        live.pod_oom_kills = await _of_pod(pods, live)


async def killed(pods: Pods, live: Container) -> bool:
    """Of one that was ended by SIGKILL. Whatever keeps us from knowing is told in the log: that it ended is what has to be recorded."""
    try:
        if not live.record.cgroups:
            return False
        kills = await pods.stats.oom_kills(usage.cgroup_of(pods, live))
        if kills is None and _leaves_at_once(pods, live):
            kills = await _by_pod(pods, live)
        return bool(kills)
    except Exception as error:
        _log.error("not known whether a container was out of memory", container=live.record.id, error=str(error), exc_info=error)
        return False


async def _by_pod(pods: Pods, live: Container) -> int:
    """What no other container accounts for. Those that live on must not be taken for this one's later, so each hears of it."""
    if live.pod_oom_kills is None:  # started under an earlier daemon
        return 0
    others = [other for other in pods.registry.containers_of(live.record.sandbox_id) if other is not live and other.record.cgroups]
    counts = [await pods.stats.oom_kills(usage.cgroup_of(pods, other)) for other in others]
    kills = (await _of_pod(pods, live) or 0) - live.pod_oom_kills - sum(filter(None, counts))
    if kills <= 0:
        return 0
    for other in others:
        if other.pod_oom_kills is not None:
            other.pod_oom_kills += kills
    return kills


async def _of_pod(pods: Pods, live: Container) -> int | None:
    sandbox = pods.registry.sandboxes.get(live.record.sandbox_id)
    return await pods.stats.oom_kills(pods.stats.at(sandbox.record.cgroup_parent))


def _leaves_at_once(pods: Pods, live: Container) -> bool:
    """Whether its cgroup is a scope of systemd's, on v2."""
    sandbox = pods.registry.sandboxes.get(live.record.sandbox_id)
    handler = pods.handlers.get(sandbox.record.handler)
    return pods.facts.cgroup_v2 and handler is not None and handler.systemd_cgroup

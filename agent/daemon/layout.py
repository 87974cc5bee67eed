"""Where an agent with given settings keeps things: one answer for `serve` and for the audit that runs without it."""

from __future__ import annotations

import sys

from agent.config.settings import Settings
from agent.leaks import Places
from agent.runtime.v2.config import RuntimeConfig


def runtime_config(settings: Settings) -> RuntimeConfig:
    """The v2 manager's."""
    return RuntimeConfig(
        state_dir=settings.state_dir,
        root_dir=settings.root_dir,
        address=str(settings.socket),
        ttrpc_address=str(settings.state_dir / "events.sock"),
        publish_binary=sys.executable,
        shim_cgroup=settings.shim_cgroup,
    )


def places(settings: Settings) -> Places:
    """The audit's."""
    return Places.of(runtime_config(settings), netns_dir=settings.netns_dir, pod_cgroup=settings.pod_cgroup)

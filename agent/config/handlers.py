"""Runtime handlers: what a pod's `runtimeClassName` chooses.

Read from the configuration, used by `agent.pods` (which handler, which kind of sandbox) and `agent.runtime.v2` (which shim,
with which options).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.config.toml import derived

SandboxKind = Literal["pinned", "task"]

ENGINES = ("runc", "crun")
"""OCI engines that are looked for, in the order in which one becomes the default handler."""


@dataclass(frozen=True)
class RuntimeHandler:
    """One way to run pods."""

    name: str
    """As in the RuntimeClass; the kubelet sends it as `runtime_handler`."""
    runtime_type: str = "io.containerd.runc.v2"
    """The shim, by containerd's rule: `io.containerd.runc.v2` is `containerd-shim-runc-v2`. An absolute path is the binary itself."""
    path: str = ""
    """The shim's binary, where it should not be looked for in PATH."""
    engine: str = ""
    """The OCI engine (runc, crun) of a runc shim: a name or a path. Empty: the shim's own default, runc."""
    sandbox: SandboxKind = "pinned"
    """`pinned`: no process of its own, namespaces held by bind mounts. `task`: a task from the sandbox image."""
    systemd_cgroup: bool = derived(False)
    """Whether the engine makes cgroups through systemd: of all handlers or of none, since the kubelet has one cgroup driver."""
    config_path: str = ""
    """The configuration file of a shim that isn't runc's (gVisor, Kata)."""


def systemd_runs(mark: Path = Path("/run/systemd/system")) -> bool:
    """Whether systemd is this node's process 1, and so the owner of its cgroups (sd_booted(3))."""
    return mark.is_dir()


def discover(which: Callable[[str], str | None] = shutil.which) -> dict[str, RuntimeHandler]:
    """The handlers that this node offers without being told: one for each OCI engine in PATH, named as the engine.

    crun starts a container in two thirds of runc's time (decisions.md 31), but a pod that asks for `runc` gets runc.
    """
    return {name: RuntimeHandler(name, engine=path) for name in ENGINES if (path := which(name)) is not None}

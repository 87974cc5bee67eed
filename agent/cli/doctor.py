"""`orlop doctor`: is this node fit, and what does it not allow? Looks only; needs no running daemon."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from agent import log
from agent.aio import in_thread
from agent.cli import output
from agent.config.handlers import RuntimeHandler, systemd_runs
from agent.config.settings import Settings
from agent.errdefs import OrlopError
from agent.linux.cgroups import Cgroups
from agent.linux.mounts import Mounts
from agent.linux.namespaces import Namespaces
from agent.linux.processes import Command, Processes
from agent.network.network import Network
from agent.pods import facts
from agent.runtime.v2 import shim_binary
from cri.api import api_pb2 as cri
from cri.client import Client

_VERSION_BUDGET = 5.0


@dataclass(frozen=True)
class Finding:
    """One look. `limited` works, with less than a pod may ask for; `bad` doesn't work."""

    check: str
    verdict: Literal["ok", "limited", "bad"]
    what: str


async def doctor(settings: Settings, client: Client, form: str) -> int:
    """Print what was found; 0 when pods can run, 1 when something is bad."""
    log.configure(level="error")  # what the parts would log is in the table
    found = [finding async for finding in _all(settings, client)]
    output.show([asdict(finding) for finding in found], ("check", "verdict", "what"), form)
    return 1 if any(finding.verdict == "bad" for finding in found) else 0


async def _all(settings: Settings, client: Client) -> AsyncIterator[Finding]:
    processes, cgroups = Processes(), Cgroups()
    yield _verdict("root", os.geteuid() == 0, "runs as root", "everything but this command needs root")
    filesystems = await in_thread(Path("/proc/filesystems").read_text)
    yield _verdict(
        "overlayfs", "overlay" in filesystems.split(), "in the kernel", "the kernel has no overlayfs: no container gets a root filesystem"
    )
    yield await _state_dir(settings)
    yield _cgroups(cgroups.mode, systemd=_systemd(settings))
    for restriction in await in_thread(_restrictions, cgroups):
        yield Finding("node", "limited", restriction)
    if not settings.runtimes:
        yield Finding("handlers", "bad", "neither runc nor crun is in PATH, and [runtimes] is empty")
    for handler in settings.runtimes.values():
        for finding in await _handler(handler, processes, cgroups):
            yield finding
    network = Network(processes, Namespaces(), conf_dir=settings.cni.conf_dir, bin_dirs=settings.cni.bin_dirs)
    await network.refresh()
    status = network.status()
    yield Finding("network", "ok" if status.ready else "bad", status.message or f"configuration in {settings.cni.conf_dir}")
    yield _leaks(settings)
    yield await _daemon(client)


def _verdict(check: str, good: bool, text: str, otherwise: str) -> Finding:
    return Finding(check, "ok" if good else "bad", text if good else otherwise)


async def _state_dir(settings: Settings) -> Finding:
    """The deepest mount above the state directory, which may not exist yet."""
    above = [mount for mount in await Mounts().table() if settings.state_dir.is_relative_to(mount.mount_point)]
    mount = max(above, key=lambda mount: len(mount.mount_point.parts))
    if mount.fstype in ("tmpfs", "ramfs"):
        return Finding("state_dir", "ok", f"{settings.state_dir} is on {mount.fstype}")
    return Finding("state_dir", "limited", f"{settings.state_dir} is on {mount.fstype}, not on tmpfs: each step of a pod waits for a disk")


def _systemd(settings: Settings) -> bool:
    default = settings.runtimes.get(settings.default_runtime)
    return default is not None and default.systemd_cgroup


def _cgroups(mode: str, *, systemd: bool) -> Finding:
    found = f"{mode}, driver {'systemd' if systemd else 'cgroupfs'}"
    if systemd or not systemd_runs():
        return Finding("cgroups", "ok", found)
    return Finding("cgroups", "limited", f"{found}, though systemd is process 1: two write one tree, and it may take controllers from pods")


def _restrictions(cgroups: Cgroups) -> tuple[str, ...]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return facts.read(cgroup_v2=cgroups.mode == "v2", nofile_limit=limit).restrictions


async def _handler(handler: RuntimeHandler, processes: Processes, cgroups: Cgroups) -> list[Finding]:
    check = f"handler {handler.name}"
    try:
        shim = await shim_binary.resolve(handler)
    except OrlopError as error:
        return [Finding(check, "bad", str(error))]
    found = [Finding(check, "ok", f"shim {shim}")]
    if handler.engine:
        found.append(await _engine(check, handler.engine, processes))
        if cgroups.mode == "hybrid" and Path(handler.engine).name == "crun":
            found.append(Finding(check, "bad", "crun refuses hybrid cgroups: unmount /sys/fs/cgroup/unified, or boot with one version"))
    return found


async def _engine(check: str, engine: str, processes: Processes) -> Finding:
    # crun makes its default root even to tell its version; with one given it makes nothing
    command = Command((engine, "--root", tempfile.gettempdir(), "--version"), Path("/"), dict(os.environ), budget=_VERSION_BUDGET)
    try:
        done = await processes.run(command)
    except (OSError, OrlopError) as error:
        return Finding(check, "bad", f"engine {engine} doesn't run: {error}")
    first = done.stdout.decode(errors="replace").splitlines()[:1]
    return _verdict(
        check, done.returncode == 0 and bool(first), f"engine {engine}: {' '.join(first)}", f"engine {engine} ended with {done.returncode}"
    )


def _leaks(settings: Settings) -> Finding:
    if settings.leaks.reap:
        return Finding("leaks", "ok", "the daemon releases its own leaks by itself")
    return Finding("leaks", "limited", "[leaks] reap is false: the daemon tells of its leaks, and `orlop reap` has to release them")


async def _daemon(client: Client) -> Finding:
    try:
        version = await client.call("Version", cri.VersionRequest(), timeout=_VERSION_BUDGET)
    except OrlopError as error:
        return Finding("daemon", "limited", f"nobody answers at {client.socket}: {error}")
    return Finding("daemon", "ok", f"{version.runtime_name} {version.runtime_version} answers at {client.socket}")

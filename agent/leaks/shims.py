"""Shims of ours that no ledger entry owns, and those of other runtimes that these don't know."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from agent.leaks.commands import ShimCommand
from agent.leaks.finding import Finding, Owner, State, Thing
from agent.leaks.look import Look
from agent.leaks.node import target
from agent.leaks.owners import CRIO, NAMESPACE
from agent.leaks.paths import file_target
from agent.leaks.suspects import Suspect, judged
from agent.leaks.targets import FileTarget, ProcessTarget
from agent.linux.procfs import ProcessInfo

_RELEASES = (
    "Task.Shutdown at its socket, or SIGKILL by pidfd if it doesn't answer; then `shim delete` for each container that was in it, "
    "and the removal of its socket and its cgroup"
)


def find(look: Look) -> Iterator[Finding]:
    """Ours is a shim with the agent's own `-address`: a runtime beside us has another one."""
    for pid, shim in look.node.shims.items():
        process = look.node.processes[pid]
        if shim.address == look.places.address and (why := _why(look, process, shim)):
            pins = f"the socket {look.places.shim_sockets(shim.id)[0]}, its cgroup, and the containers in it"
            yield _finding(look, process, f"{shim.binary} {shim.action} -id {shim.id}".replace("  ", " "), "orlop", why, pins)
    yield from judged(look, _foreign(look))


def _foreign(look: Look) -> Iterator[Suspect]:
    """Shims of the other runtimes on the node, and CRI-O's monitors."""
    runtimes = {runtime.socket: runtime for runtime in look.node.runtimes}
    for pid, shim in look.node.shims.items():
        runtime = runtimes.get(Path(os.path.realpath(shim.address)))
        if runtime is not None and shim.namespace == NAMESPACE:
            why = f"a shim of {runtime}, started for {shim.id}, which that doesn't have"
            what = f"{shim.binary} {shim.action} -id {shim.id}".replace("  ", " ")
            process = look.node.processes[pid]
            yield Suspect(_finding(look, process, what, runtime.owner, why, "its socket, and the containers in it"), shim.id, runtime)
    for pid, monitor in look.node.monitors.items():
        if not monitor.podman:
            why = f"the monitor of container {monitor.container}, which CRI-O doesn't have"
            finding = _finding(look, look.node.processes[pid], f"conmon -c {monitor.container}", "cri-o", why, "its container")
            yield Suspect(finding, monitor.container, runtimes.get(CRIO.socket))


def _finding(look: Look, process: ProcessInfo, what: str, owner: Owner, why: str, pins: str) -> Finding:
    return Finding(
        kind=Thing.SHIM,
        what=f"process {process.pid} ({what})",
        owner=owner,
        state=State.LEAKED,
        why=why,
        releases=_RELEASES,
        since=look.node.started(process),
        identity=str(process.start_time),
        pins=pins,
        targets=(*_containers(look, process), *target(process, graceful=True), *_sockets(look, process)),
    )


def _containers(look: Look, shim: ProcessInfo) -> Iterator[ProcessTarget]:
    """The inits that are its children; it sees them end, and what they leave it takes away with it."""
    for process in look.node.processes.values():
        if process.ppid == shim.pid:
            yield from target(process)


def _sockets(look: Look, shim: ProcessInfo) -> Iterator[FileTarget]:
    """It takes them away only if it ends in order."""
    for path in look.node.sockets_of(shim.pid):
        yield from file_target(path, listening=True)


def _why(look: Look, process: ProcessInfo, shim: ShimCommand) -> str:
    """Why nobody owns it; empty: somebody does."""
    if shim.id not in look.owned.bundles:
        return f"a shim that was started for {shim.id}, of which the ledger has neither a shim nor a task"
    recorded = look.owned.shim_process(shim.id)
    # One that is just being started comes with an entry whose process is dead, or not known yet.
    if not shim.action and recorded is not None and recorded[0] != process.pid and look.node.alive(*recorded):
        return f"a second shim for {shim.id}: the ledger knows process {recorded[0]}, which is alive, and nobody can reach this one"
    return ""

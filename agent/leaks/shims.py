"""Shims of ours that no ledger entry owns."""

from __future__ import annotations

from collections.abc import Iterator

from agent.leaks import commands
from agent.leaks.commands import ShimCommand
from agent.leaks.finding import Finding, State, Thing
from agent.leaks.look import Look
from agent.linux.procfs import ProcessInfo

_RELEASES = (
    "Task.Shutdown at its socket, or SIGKILL by pidfd if it doesn't answer; then `shim delete` for each container that was in it, "
    "and the removal of its socket and its cgroup"
)


def find(look: Look) -> Iterator[Finding]:
    """Ours is a shim with the agent's own `-address`: a runtime beside us has another one."""
    for process in look.node.processes.values():
        shim = commands.shim(process.cmdline)
        if shim is not None and shim.address == look.places.address and (why := _why(look, process, shim)):
            yield Finding(
                kind=Thing.SHIM,
                what=f"process {process.pid} ({shim.binary} {shim.action} -id {shim.id})".replace("  ", " "),
                owner="orlop",
                state=State.LEAKED,
                why=f"{why}; it pins the socket {look.places.shim_sockets(shim.id)[0]}, its cgroup, and the containers in it",
                releases=_RELEASES,
                since=look.node.started(process),
                identity=str(process.start_time),
            )


def _why(look: Look, process: ProcessInfo, shim: ShimCommand) -> str:
    """Why nobody owns it; empty: somebody does."""
    if shim.id not in look.owned.bundles:
        return f"a shim that was started for {shim.id}, of which the ledger has neither a shim nor a task"
    recorded = look.owned.shim_process(shim.id)
    # One that is just being started comes with an entry whose process is dead, or not known yet.
    if not shim.action and recorded is not None and recorded[0] != process.pid and look.node.alive(*recorded):
        return f"a second shim for {shim.id}: the ledger knows process {recorded[0]}, which is alive, and nobody can reach this one"
    return ""

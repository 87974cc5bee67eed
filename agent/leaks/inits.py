"""`runc init` that stays: a container's first process that waits for a start that never comes (runtime-v2 section 6.4).

runc's is `runc:[2:INIT]` by name (`[0:PARENT]` and `[1:CHILD]` before that); crun's is still called `crun`. Waiting, either
has `exec.fifo` open, whose path names the engine's root and the container. Other runtimes' look the same: ours is one with
that file below our engine root, or in a cgroup of ours. One in a container that the ledger has may just be being created; one in
a container that another runtime has may have been created and not started, unless its shim is dead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from agent.leaks.cgroups import container_in
from agent.leaks.finding import Finding, Owner, State, Thing
from agent.leaks.foreign import Life
from agent.leaks.look import Look
from agent.leaks.node import INIT, longest_cgroup, target
from agent.leaks.owners import ID, NAMESPACE, Runtime, of_cgroup
from agent.leaks.paths import cgroup_target
from agent.leaks.suspects import Suspect, judged
from agent.leaks.targets import CgroupTarget
from agent.linux.procfs import ProcessInfo, init_stage
from agent.store.ledger import Kind, Resource
from agent.store.ledger import State as EntryState

CREATE_BUDGET = 120.0
"""Seconds; no Create and Start take so long: the engine gives up on missing streams after 30."""
FIFO = "exec.fifo"
_CRIO_ENGINES = {Path("/run/runc"), Path("/run/crun")}
"""Roots of its engines; Podman's as well, where there is no CRI-O."""
_RELEASES = (
    "`shim delete` in its bundle if that is still there, else `ENGINE delete --force`, else SIGKILL by pidfd once name, start time and "
    "cgroup were read again; then the removal of its cgroup and of the engine's directory"
)


def waits(process: ProcessInfo) -> bool:
    """Whether it can be such a process, whoever's."""
    return process.comm.startswith("runc:[") or process.comm == "crun"


def find(look: Look) -> Iterator[Finding]:
    suspects: list[Suspect] = []
    for process in look.node.processes.values():
        if not waits(process):
            continue
        try:
            container, certain = _container(look, process)
        except OSError as error:
            yield _finding(look, process, "unknown", State.UNKNOWN, f"its descriptors can't be read, so whose it is can't be told: {error}")
            continue
        if container and (certain or not look.beside_others or look.owned.has(Kind.TASK, container)):
            yield from _judge(look, process, container)
        elif container:
            why = f"an init of container {container}, which neither the ledger nor another runtime has: nobody is going to start it"
            suspects.append(Suspect(replace(_finding(look, process, "unknown", State.LEAKED, why), once=container), container))
        else:
            suspects += _foreign(look, process)
    yield from judged(look, suspects)


def _container(look: Look, process: ProcessInfo) -> tuple[str, bool]:
    """The container of ours that it is to become, and whether that is certain; empty: it is somebody else's. Raises OSError."""
    for cgroup in process.cgroups.values():
        if container := look.owned.container_cgroups.get(cgroup):
            return container, True
    for path in map(Path, look.node.links(process.pid)):
        if path.name == FIFO and path.parent.parent == look.places.engine_state:
            return path.parent.name, True
    # It may not have got that far. Then it is ours in a pod of ours, unless the client of another runtime has put its pods there, too;
    # crun may be at any other work there.
    if process.comm != "crun":
        for cgroup in process.cgroups.values():
            parent, _, name = cgroup.rpartition("/")
            if parent in look.owned.cgroup_parents and of_cgroup(name) == "unknown":
                return container_in(name), False
    return "", False


def _judge(look: Look, process: ProcessInfo, container: str) -> Iterator[Finding]:
    task = look.owned.get(Kind.TASK, container)
    if task is None:
        why = f"an init of container {container}, which the ledger doesn't have: nobody is going to start it"
        yield _finding(look, process, "orlop", State.LEAKED, why)
        return
    age = look.node.taken - look.node.started(process)
    if age < CREATE_BUDGET:
        return
    alive = _shim_alive(look, task)
    waits_for = f"an init of container {container}, which is {task.state} in the ledger and has waited {age:.0f} s for its start"
    if alive is False:
        yield _finding(look, process, "orlop", State.LEAKED, f"{waits_for}; the shim that would start it is dead")
    elif task.state in (EntryState.INTENDED, EntryState.HELD):
        yield _finding(look, process, "orlop", State.UNKNOWN, f"{waits_for}, longer than a Create takes; its shim may still start it")


def _foreign(look: Look, process: ProcessInfo) -> Iterator[Suspect]:
    """Another runtime's container may wait for its start as long as it likes, if there is somebody who can give it.

    Docker's and Podman's are none of a CRI's, and theirs to judge.
    """
    fifo = next((path for path in map(Path, look.node.links(process.pid)) if path.name == FIFO), None)
    cgroup = longest_cgroup(process).rpartition("/")[2]
    found = ID.fullmatch(fifo.parent.name) if fifo else ID.search(cgroup)
    runtime = _runtime(look, fifo.parent.parent if fifo else None, of_cgroup(cgroup))
    if fifo is None and process.comm == "crun":
        return  # it may be at any other work there
    if found is None or (runtime is None and not (fifo and fifo.parent.parent.name == NAMESPACE)):
        return
    whose = str(runtime) if runtime else "a containerd that is gone"
    why = f"an init of container {found[0]}, which {whose} doesn't have: nobody is going to start it"
    identifier = found[0]
    # One without that file is of an exec, whose parent is the engine.
    if fifo and _is_orphan(look, process) and look.foreign.life(identifier, runtime) is Life.ALIVE:
        why = f"an init of container {identifier} of {whose}, whose shim or monitor is dead: nobody can start it"
        identifier = ""
    yield Suspect(_finding(look, process, runtime.owner if runtime else "containerd", State.LEAKED, why), identifier, runtime)


def _runtime(look: Look, engine_state: Path | None, by_cgroup: Owner) -> Runtime | None:
    """Whose an init is: by the directory of its engine, else by the name of its cgroup."""
    for runtime in look.node.runtimes:
        if engine_state is None:
            belongs = runtime.owner == by_cgroup != "unknown"
        elif runtime.state is not None:
            belongs = engine_state.is_relative_to(runtime.state) and engine_state.name == NAMESPACE
        else:
            belongs = runtime.owner == "cri-o" and engine_state in _CRIO_ENGINES
        if belongs:
            return runtime
    return None


def _is_orphan(look: Look, process: ProcessInfo) -> bool:
    """Nobody else than its shim or monitor has it as a child, unless that died."""
    parents = {*look.node.shims, *look.node.monitors}
    return process.ppid == INIT or (process.ppid in look.node.processes and process.ppid not in parents)


def _shim_alive(look: Look, task: Resource) -> bool | None:
    """Tri-state, as `Node.alive`; None also if it isn't known which process that is."""
    recorded = look.owned.shim_process(task.data.get("shim", task.sandbox))
    return None if recorded is None else look.node.alive(*recorded)


def _own_cgroup(look: Look, process: ProcessInfo) -> Iterator[CgroupTarget]:
    """Its container's, which is empty without it, and which no detector finds where a client has its own place for pods."""
    cgroup = longest_cgroup(process)
    if ID.search(cgroup.rpartition("/")[2]) and (directory := look.node.cgroup_directory(cgroup)) is not None:
        yield from cgroup_target(cgroup, directory)


def _finding(look: Look, process: ProcessInfo, owner: Owner, state: State, why: str) -> Finding:
    return Finding(
        kind=Thing.RUNC_INIT,
        what=f"process {process.pid} ({process.comm})",
        owner=owner,
        state=state,
        why=why,
        releases=_RELEASES,
        since=look.node.started(process),
        identity=str(process.start_time),
        stage=init_stage(process.comm),
        pins=f"the cgroup {longest_cgroup(process)}, which pins its pod's, and the rootfs in its mount namespace",
        targets=(*target(process), *_own_cgroup(look, process)),
    )

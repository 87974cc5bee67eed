"""A node in a directory: /proc, cgroups, and the agent's own directories, as the detectors read them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.errdefs import Unavailable
from agent.leaks.audit import audit
from agent.leaks.finding import Finding
from agent.leaks.foreign import Answer
from agent.leaks.owned import LedgerRead
from agent.leaks.owners import Runtime
from agent.leaks.places import Places
from agent.store.kinds import Kind
from agent.store.ledger import Intent, Resource, State

CONTAINER = "c" * 64
SANDBOX = "5" * 64
STRANGER = "f" * 64
"""An id that no ledger of a test has."""
BOOTED = 1_000_000
NOW = BOOTED + 10_000.0
TICKS = os.sysconf("SC_CLK_TCK")


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@dataclass(frozen=True)
class FakeLease:
    ip: str
    sandbox: str
    network: str = "pods"
    path: Path = Path("/var/lib/cni/networks/pods/x")


@dataclass(frozen=True)
class FakeResult:
    sandbox: str
    netns: str = ""
    network: str = "pods"
    path: Path = Path("/var/lib/cni/results/x")


@dataclass(frozen=True)
class FakeChain:
    sandbox: str
    name: str = "CNI-0123456789abcdef"
    tool: str = "iptables"


@dataclass
class FakeNode:
    """Paths are real; what a test puts there is what the detectors find."""

    top: Path
    ledger: list[Resource] = field(default_factory=list)
    leases: list[FakeLease] = field(default_factory=list)
    chains: list[FakeChain] = field(default_factory=list)
    results: list[FakeResult] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    """Of other runtimes, by their sockets; without one they don't answer."""
    remembers: set[str] | None = field(default_factory=set)
    """What the ledger once had, by its journal; None: that can't be read."""
    slept: list[float] = field(default_factory=list)
    now: float = NOW
    served: bool = False

    def __post_init__(self) -> None:
        state, root = self.top / "run/orlop", self.top / "lib/orlop"
        self.places = Places(
            state_dir=state,
            root_dir=root,
            netns_dir=self.top / "run/netns",
            bundles=state / "v2/k8s.io",
            work_dirs=root / "v2/k8s.io",
            engine_state=state / "runc/k8s.io",
            address=str(state / "orlop.sock"),
            shim_cgroup="/orlop-shims",
            shim_sockets=lambda shim: [self.top / "run/containerd/s" / _hash(name) for name in (shim, f"{shim}/debug")],
            pod_cgroup="/orlop-pods",
            leases=self.top / "networks",
            proc=self.top / "proc",
            cgroup_root=self.top / "cgroup",
            results=self.top / "results",
            other_runtimes=(Runtime("containerd", self.top / "run/containerd/containerd.sock", self.top / "run/containerd"),),
        )
        self.cgroup("/")
        (self.places.cgroup_root / "cgroup.controllers").touch()
        (self.places.proc / "self/ns").mkdir(parents=True)
        (self.places.proc / "self/ns/net").touch()
        (self.places.proc / "self/ns/mnt").symlink_to("mnt:[1]")
        (self.places.proc / "net").mkdir()
        self.listens()
        (self.places.proc / "stat").write_text(f"cpu 1 2 3\nbtime {BOOTED}\n")
        self.mounts()

    # ---- what is there

    def owns(self, kind: Kind, key: str, state: State = State.HELD, *, container: str = "", **data: Any) -> Resource:
        """Put an entry into the ledger."""
        resource = replace(Resource.intended(Intent(kind, key, SANDBOX, container, data), NOW - 500), state=state)
        self.ledger.append(resource)
        return resource

    def process(
        self,
        pid: int,
        *command: str,
        comm: str = "",
        cgroup: str = "/",
        age: float = 1000,
        links: Sequence[str | Path] = (),
        mnt: int = 1,
        net: int = 1,
        upper: Path | None = None,
        state: str = "S",
        ppid: int = 1,
        cwd: Path | None = None,
    ) -> int:
        """Start a process; its start time."""
        directory = self.places.proc / str(pid)
        (directory / "ns").mkdir(parents=True)
        (directory / "fd").mkdir()
        started = round((NOW - BOOTED - age) * TICKS)
        name = comm or Path(command[0]).name[:15]
        (directory / "stat").write_text(f"{pid} ({name}) {state} {ppid} {' 0' * 17} {started} 0 0\n")
        (directory / "cmdline").write_text("".join(f"{argument}\0" for argument in command))
        (directory / "cgroup").write_text(f"0::{cgroup}\n")
        (directory / "ns/mnt").symlink_to(f"mnt:[{mnt}]")
        (directory / "ns/net").symlink_to(f"net:[{net}]")
        if cwd:
            (directory / "cwd").symlink_to(cwd)
        for number, link in enumerate(links):
            (directory / "fd" / str(number)).symlink_to(link)
        root = f"overlay overlay rw,lowerdir=/l/0,upperdir={upper},workdir=/w" if upper else "ext4 /dev/sda rw"
        (directory / "mountinfo").write_text(f"1 0 8:1 / / rw - {root}\n")
        return started

    def shim(self, pid: int, shim: str, *action: str, address: str = "", namespace: str = "k8s.io", **more: Any) -> int:
        flags = ("-namespace", namespace, "-id", shim, "-address", address or self.places.address)
        return self.process(pid, "/usr/bin/containerd-shim-runc-v2", *flags, *action, **more)

    def mounts(self, *rows: tuple[Path, str, str]) -> None:
        """Mounted are these: mount point, type, options."""
        lines = [f"{number} 1 0:5 / {path} rw - {kind} source {options}" for number, (path, kind, options) in enumerate(rows, 20)]
        (self.places.proc / "self/mountinfo").write_text("\n".join(["1 0 8:1 / / rw - ext4 /dev/sda rw", *lines]) + "\n")

    def cgroup(self, path: str) -> None:
        (self.places.cgroup_root / path.strip("/")).mkdir(parents=True, exist_ok=True)

    def listens(self, *sockets: Path) -> None:
        """Somebody listens at these sockets."""
        lines = [f"0000: 00000002 00000000 00010000 0001 01 {inode} {socket}" for inode, socket in enumerate(sockets)]
        (self.places.proc / "net/unix").write_text("\n".join(["Num RefCount Protocol Flags Type St Inode Path", *lines, ""]))

    def containerd(self, *ids: str, uids: Sequence[str] = (), problem: str = "") -> Runtime:
        """There is one; it has these sandboxes and containers, or doesn't say."""
        [runtime] = self.places.other_runtimes
        self.has(runtime.socket.parent)
        runtime.socket.touch()
        self.answers[str(runtime.socket)] = Answer(runtime, frozenset(ids), frozenset(uids), problem)
        return runtime

    def has(self, path: Path) -> Path:
        """Make a directory."""
        path.mkdir(parents=True, exist_ok=True)
        return path

    # ---- what is found

    async def audit(self) -> list[Finding]:
        where = (self.read, self.places, self.network)
        return await audit(*where, ask=self.ask, remembered=self.remembered, settle=1, sleep=self.sleep, clock=lambda: self.now)

    @property
    def network(self) -> FakeNetwork:
        return FakeNetwork(self)

    async def ask(self, runtimes: Sequence[Runtime]) -> list[Answer]:
        silent = "nobody answers"
        return [replace(self.answers.get(str(one.socket), Answer(one, problem=silent)), runtime=one) for one in runtimes]

    async def found(self) -> list[tuple[str, str, str]]:
        """Kind, state and owner of each finding."""
        return [(finding.kind.value, finding.state.value, finding.owner) for finding in await self.audit()]

    async def only(self) -> Finding:
        """The one finding that there is."""
        [finding] = await self.audit()
        return finding

    async def read(self) -> LedgerRead:
        return LedgerRead(list(self.ledger), self.served)

    async def remembered(self, names: Collection[str]) -> Collection[str]:
        if self.remembers is None:
            raise Unavailable("the journal can't be read")
        return self.remembers & set(names)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@dataclass(frozen=True)
class FakeNetwork:
    """What network plugins wrote down."""

    node: FakeNode

    def chains(self) -> Iterable[FakeChain]:
        return list(self.node.chains)

    def leases(self, directory: Path) -> Iterable[FakeLease]:
        assert directory == self.node.places.leases
        return list(self.node.leases)

    def results(self, directory: Path) -> Iterable[FakeResult]:
        assert directory == self.node.places.results
        return list(self.node.results)

"""What a pod can leave behind on the node, seen plainly: /proc, mountinfo, directories, `ip` and `iptables-save`.

Written apart from the agent's own audit (`agent.leaks`), and on purpose with none of its code: the one checks the other. It relies on the
node of `tests/e2e/enter`, where every process and everything below /run is the tests' own, so that whatever is new is a leak, unless
FURNITURE says what it is.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CGROUP_PARENT = os.environ.get("ORLOP_E2E_CGROUP", "")
"""The cgroup of this run, as a path below each hierarchy; set by `tests/e2e/enter`. A slice where the driver is systemd's."""
WITH_SYSTEMD = Path("/run/systemd/system").exists()
"""Whether this is a node in user-mode Linux (`tests/uml`), whose process 1 is systemd. It has cgroup v2."""

FURNITURE = {
    r"/run/xtables\.lock": "made by the first iptables",
    r"/run/mount(/utab.*)?": "notes of mount(8)",
    r"/run/log/journal/.*": "systemd's journal, which begins a new file now and then",
    r"/run/netns|/run/containerd(/s)?": "where namespaces are pinned and shims listen; empty",
    r"/var/lib/cni/results": "of CNI attachments, as libcni keeps them; empty",
    r"/var/lib/cni/networks(/[^/]+(/lock|/last_reserved_ip\.\d+)?)?": "host-local's own files; a lease is named like its address",
    r"/run/orlop-e2e/[\w-]+/(io|namespaces|sandboxes|runc(/k8s\.io)?)": "the daemon's directories, made when first needed; empty",
    r"/run/orlop-e2e/[\w-]+/runc/k8s\.io/\.(empty-directory|cache(/seccomp(/\w+)?)?)": "what crun keeps for the next container",
    r"/.+/io\.containerd\.runtime\.v2\.task(/k8s\.io)?": "where bundles and work directories are made; empty",
    rf"{CGROUPS}/.+/orlop-daemon-\w+-\d+": "the daemon's own cgroup; it can't remove it, the next daemon does",
}
"""Paths that may appear and stay, as regular expressions of the whole path -> what they are."""


KERNEL_THREAD = 0x00200000
"""PF_KTHREAD in the flags of /proc/PID/stat."""


@dataclass(frozen=True)
class Process:
    """A process; `start_time` (clock ticks since boot) tells it from a later one with the same number."""

    pid: int
    start_time: int
    state: str
    name: str
    argv: tuple[str, ...]

    def __str__(self) -> str:
        # Not its state: a daemon that ran at the first look and sleeps at the second is no other process. One that died is.
        dead = "zombie, " if self.state == "Z" else ""
        return f"{self.pid} {self.name} ({dead}started at {self.start_time}): {' '.join(self.argv)}"


def processes() -> Iterator[Process]:
    """All processes of the node, zombies too; the kernel's own threads are none."""
    for entry in Path("/proc").glob("[0-9]*"):
        if (found := process(int(entry.name))) is not None:
            yield found


def process(pid: int) -> Process | None:
    """The process that has this number now, if it is there and none of the kernel's own threads."""
    entry = Path(f"/proc/{pid}")
    try:
        name, fields = re.fullmatch(r"\d+ \((.*)\) (.*)\n", (entry / "stat").read_text(), re.DOTALL).groups()  # type: ignore[union-attr]  # the kernel's format
        argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *numbers = fields.split()
    if int(numbers[5]) & KERNEL_THREAD:
        return None
    return Process(pid, int(numbers[18]), state, name, tuple(argv))


def shims(sandbox: str = "") -> list[Process]:
    """The serving shims, of all sandboxes or of one."""
    found = [process for process in processes() if process.argv and Path(process.argv[0]).name.startswith("containerd-shim-")]
    return [shim for shim in found if not sandbox or sandbox in shim.argv]


def runc_inits() -> list[Process]:
    """Processes that `runc create` made and nobody started, or not yet."""
    return [process for process in processes() if process.name == "runc:[2:INIT]"]


@dataclass(frozen=True)
class NodeSnapshot:
    """Everything of interest on the node at one moment, each thing as a phrase that tells what and where."""

    trees: tuple[Path, ...]
    things: frozenset[str]

    @classmethod
    def take(cls, *trees: Path) -> NodeSnapshot:
        """Looks at the node, and at all files below `trees` besides /run and /var/lib/cni."""
        things = {*links(), *nat_chains(), *mounts(), *cgroups()}
        for tree in (Path("/run"), Path("/var/lib/cni"), *trees):
            things.update(files(tree))
        things.update(f"process {process}" for process in processes())
        return cls(trees, frozenset(things))

    def diff(self) -> list[str]:
        """What is on the node now and wasn't then."""
        return sorted(self.take(*self.trees).things - self.things)

    def left(self, within: float = 10) -> list[str]:
        """`diff()`, once it is empty or `within` seconds are over: the kernel frees some things after the call that gave them up."""
        deadline = time.monotonic() + within
        while (left := self.diff()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


def mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ")
        mount_id, _parent, _device, _root, mount_point = before.split()[:5]
        yield f"mount {mount_point} ({after.split()[0]}, id {mount_id})"


def cgroups() -> Iterator[str]:
    """The directories below this run's cgroup, in every hierarchy, FURNITURE aside; where all of the node is the run's own, all."""
    tops = [f"{CGROUPS}"] if WITH_SYSTEMD else [f"{hierarchy}{CGROUP_PARENT}" for hierarchy in (CGROUPS, *CGROUPS.iterdir())]
    for top in tops:
        for folder, _, _ in os.walk(top):
            if folder != top and not is_furniture(folder):
                yield f"cgroup {folder}"


def container_cgroup(parent: str, container: str) -> str:
    """A container's cgroup, below each hierarchy's mount point, if its pod's is `parent`."""
    return f"{parent.strip('/')}/" + (f"cri-orlop-{container}.scope" if parent.endswith(".slice") else container)


def files(tree: Path) -> Iterator[str]:
    """All files below `tree`, FURNITURE aside; what is mounted there is told by mounts()."""
    for folder, folders, names in os.walk(tree):
        for name in [*folders, *names]:
            path = Path(folder, name)
            try:
                found = path.lstat()
            except FileNotFoundError:
                continue
            if found.st_dev != tree.lstat().st_dev:
                if name in folders:
                    folders.remove(name)
            elif not is_furniture(str(path)):
                yield f"{kind(found.st_mode)} {path}"


def is_furniture(path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in FURNITURE)


def kind(mode: int) -> str:
    kinds = {stat.S_IFSOCK: "socket", stat.S_IFIFO: "FIFO", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
    return kinds.get(stat.S_IFMT(mode), "file")


def links() -> Iterator[str]:
    """Network interfaces; the bridge plugin keeps its bridges."""
    for link in json.loads(output("ip", "-json", "-details", "link", "show")):
        if link.get("linkinfo", {}).get("info_kind") != "bridge":
            yield f"link {link['ifname']} (index {link['ifindex']})"


def nat_chains() -> Iterator[str]:
    """Chains of one CNI attachment: they are named by a hash, unlike those that portmap shares between all."""
    for tool in ("iptables-save", "ip6tables-save"):
        for chain in re.findall(r"^:(CNI-\S*[0-9a-f]{16}\S*)", output(tool, "-t", "nat"), re.MULTILINE):
            yield f"nat chain {chain} ({tool})"


def output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

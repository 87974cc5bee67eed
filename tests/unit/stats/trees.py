"""Cgroup trees in a directory, with what kernels write into them."""

from __future__ import annotations

from pathlib import Path

from agent.linux import cgroupfs

GIB = 1 << 30
V1_UNLIMITED = "9223372036854771712"

V2_FILES = {
    "cpu.stat": "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 0\n",
    "memory.current": "104857600\n",
    "memory.stat": (
        "anon 31457280\nfile 62914560\nkernel_stack 49152\ninactive_anon 1\nactive_file 20\n"
        "inactive_file 20971520\npgfault 700\npgmajfault 3\n"
    ),
    "memory.max": "209715200\n",
    "memory.swap.current": "4096\n",
    "memory.swap.max": "8192\n",
    "pids.current": "7\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.05 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2\n",
    "io.pressure": "some avg10=0.00 avg60=0.00 avg300=99.99 total=3\nfull avg10=0.00 avg60=0.00 avg300=12.34 total=4\n",
}
V1_FILES = {
    "cpuacct": {"cpuacct.usage": "1500000123\n"},
    "memory": {
        "memory.usage_in_bytes": "104857600\n",
        "memory.stat": (
            "cache 1\nrss 2\ninactive_file 3\npgfault 4\npgmajfault 5\nhierarchical_memory_limit 6\n"
            "total_rss 31457280\ntotal_inactive_file 20971520\ntotal_pgfault 700\ntotal_pgmajfault 3\ntotal_swap 4096\n"
        ),
        "memory.limit_in_bytes": "209715200\n",
        "memory.memsw.limit_in_bytes": "209723392\n",
    },
    "pids": {"pids.current": "7\n"},
}


def v2(root: Path, path: str = "", files: dict[str, str] | None = None) -> Path:
    """Makes a pure v2 host of `root`, and cgroup `path` in it; returns the cgroup's directory."""
    root.mkdir(exist_ok=True)
    for name in ("cgroup.controllers", "cgroup.procs"):
        (root / name).write_text("")
    return fill(root / path.strip("/"), V2_FILES if files is None else files)


def v1(root: Path, path: str, files: dict[str, dict[str, str]] | None = None) -> dict[str, Path]:
    """Makes a v1 host with the hierarchies of `files`, "cpuacct" mounted with "cpu", and cgroup `path` in each; the directories."""
    made = {}
    for controller, content in (V1_FILES if files is None else files).items():
        mount = root / ("cpu,cpuacct" if controller == "cpuacct" else controller)
        mount.mkdir(parents=True, exist_ok=True)
        (mount / "cgroup.procs").write_text("")
        made[controller] = fill(mount / path.strip("/"), content)
    return made


def fill(directory: Path, files: dict[str, str]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def controllers(root: Path) -> dict[str, Path]:
    """As `Cgroups.controllers`, without a loop."""
    return {name: mount for names, mount in cgroupfs.hierarchies(root).items() for name in names.split(",")}

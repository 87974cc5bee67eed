"""The real shims and engines that the end-to-end tests drive: those of three Debian suites, side by side on one machine.

The agent has to drive the shims of containerd 1.6, 1.7 and 2.x, and no single distribution carries them all. So the packages of each suite
are fetched through a private apt directory (own sources, state and cache; the host's stay as they are), and unpacked into a folder of their
own with the libraries they were built for. patchelf points interpreter and rpath there, so a newer suite's binary runs on an older host.

    .tools/<suite>/bin, lib              what `shim()` and `engine()` hand out; absolute paths are baked in, so each clone unpacks its own
    /var/cache/orlop-tools/<suite>-*/    the .deb files and their SHA256SUMS, shared by all clones; else `.tools/archives` serves

Called by the end-to-end tests (before they enter their network namespace, where nothing can be fetched) and by `make tools`, which prints
the table. To take newer packages, remove both folders. A tool that can't be had or doesn't run raises ToolError: no pair is ever skipped.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

REPO = Path(__file__).resolve().parents[2]
TOOLS = REPO / ".tools"
SHARED = Path("/var/cache/orlop-tools")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

PACKAGES = ("containerd", "runc", "crun")
BINARIES = frozenset({"containerd-shim-runc-v2", "runc", "crun"})
CONTAINERD = frozenset({"containerd", "ctr"})
"""A runtime for the agent to stand beside: the daemon of the newest suite, and its client, which can import images."""
PROMETHEUS = ("trixie", ("prometheus",), frozenset({"prometheus", "promtool"}))
"""Suite, package and binaries of what scrapes the metrics and evaluates the alerts."""

SHIMS = {"1.6": "bookworm", "1.7": "trixie", "2.1": "forky"}
"""containerd release of a shim -> the suite that has it."""

ENGINES = {
    ("1.6", "runc"): "bookworm",  # 1.1.5
    ("1.7", "runc"): "forky",  # 1.3; trixie's own is one more 1.1
    ("2.1", "runc"): "forky",
    ("1.6", "crun"): "bookworm",  # 1.8
    ("1.7", "crun"): "trixie",  # 1.21
    ("2.1", "crun"): "forky",  # 1.28
}
"""(shim, engine) -> the suite whose engine that shim is paired with."""


class ToolError(Exception):
    """A shim or engine can't be fetched, unpacked or run. The sentence names the tool and what was tried."""


@dataclass(frozen=True)
class Pair:
    """One of the six combinations of shim and engine that the end-to-end core runs with."""

    shim: str
    engine: str

    def __str__(self) -> str:
        return f"shim{self.shim}-{self.engine}"

    @property
    def shim_path(self) -> Path:
        return shim(self.shim)

    @property
    def engine_path(self) -> Path:
        return engine(self.engine, self.shim)


PAIRS = tuple(Pair(*key) for key in ENGINES)


def shim(version: str) -> Path:
    """The `containerd-shim-runc-v2` of containerd `version` ("1.6", "1.7" or "2.1"). Raises ToolError."""
    return unpacked(SHIMS[version]) / "bin" / "containerd-shim-runc-v2"


def engine(name: str, shim_version: str) -> Path:
    """The "runc" or "crun" to use with the shim of containerd `shim_version`. Raises ToolError."""
    return unpacked(ENGINES[shim_version, name]) / "bin" / name


def prepare() -> None:
    """Has every tool on disk, so that later calls need no network. Raises ToolError."""
    for suite in SHIMS.values():
        unpacked(suite)
    containerd()
    prometheus()
    runsc()


def containerd(name: str = "containerd") -> Path:
    """The daemon of containerd 2.1, or its "ctr". Raises ToolError."""
    suite = SHIMS["2.1"]
    return unpacked(suite, TOOLS / f"{suite}-containerd", CONTAINERD) / "bin" / name


def runsc() -> Path:
    """gVisor's engine; its package has no shim. Not forky's, built by Go 1.26: it panics when a task first blocks. Raises ToolError."""
    suite = "trixie"
    return unpacked(suite, TOOLS / f"{suite}-runsc", frozenset({"runsc"}), ("runsc",)) / "bin" / "runsc"


def prometheus(name: str = "prometheus") -> Path:
    """The daemon, or its "promtool". Raises ToolError."""
    suite, packages, binaries = PROMETHEUS
    return unpacked(suite, TOOLS / f"{suite}-prometheus", binaries, packages) / "bin" / name


@cache
def unpacked(suite: str, home: Path | None = None, binaries: frozenset[str] = BINARIES, packages: Sequence[str] = PACKAGES) -> Path:
    """The folder with `bin` and `lib` of one suite; fetches and unpacks what is missing."""
    home = home or TOOLS / suite
    if not home.exists():  # asked before the lock: nodes in user-mode Linux can't write here
        with locked(TOOLS):
            if not home.exists():
                unpack(archives(suite, packages), home, binaries)
    return home


def unpack(debs: list[Path], home: Path, binaries: frozenset[str] = BINARIES) -> None:
    """Takes the binaries and libraries out of `debs` and ties them to each other; `home` appears only when complete."""
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{home.name}-") as work:
        draft = Path(work) / home.name
        (draft / "bin").mkdir(parents=True)
        (draft / "lib").mkdir()
        for deb in debs:
            with (
                subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as content,
                tarfile.open(fileobj=content.stdout, mode="r|") as members,
            ):
                for member in members:
                    if folder := destination(member, binaries):
                        member.name = PurePosixPath(member.name).name
                        members.extract(member, draft / folder)
        loader = "".join(path.name for path in (draft / "lib").glob("ld-linux-*.so.*"))
        for binary in binaries if loader else ():  # without one they are linked statically
            # --force-rpath: a RUNPATH would hold for the binary alone, and its libraries would find their own ones on the host.
            tie: list[str | Path] = ["--force-rpath", "--set-rpath", home / "lib", "--set-interpreter", home / "lib" / loader]
            run("patchelf", *tie, draft / "bin" / binary)
        draft.rename(home)


def destination(member: tarfile.TarInfo, binaries: frozenset[str]) -> str | None:
    """The folder that a file of a package is unpacked to; None: not needed."""
    path = PurePosixPath(member.name)
    if path.name in binaries and path.parent.name in ("bin", "sbin") and member.isfile():
        return "bin"
    if path.parent.name.endswith("-linux-gnu") and ".so" in path.suffixes:
        return "lib"
    return None


def archives(suite: str, packages: Sequence[str] = PACKAGES) -> list[Path]:
    """The .deb files of `packages` and all that they depend on, downloaded when they aren't there, whole, already."""
    folder = shared() / f"{suite}-{'+'.join(packages)}"
    with locked(shared()):
        if not intact(folder):
            shutil.rmtree(folder, ignore_errors=True)
            download(suite, packages, folder)
    return sorted(folder.glob("*.deb"))


def shared() -> Path:
    """Where things are kept that are the same for every clone."""
    return SHARED if writable(SHARED) else TOOLS / "archives"


def intact(folder: Path) -> bool:
    return (folder / "SHA256SUMS").exists() and (
        subprocess.run(["sha256sum", "--check", "--strict", "--status", "SHA256SUMS"], cwd=folder, check=False).returncode == 0
    )


def download(suite: str, packages: Sequence[str], folder: Path) -> None:
    """Lets apt resolve and fetch, in a directory that knows `suite` alone and in which nothing is installed yet."""
    print(f"toolbox: fetching {', '.join(packages)} of Debian {suite}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{suite}-") as work:
        apt = Path(work)
        for needed in ("etc/apt", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
            (apt / needed).mkdir(parents=True)
        (apt / "status").touch()
        (apt / "etc/apt/sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
        (apt / "apt.conf").write_text(
            f'Dir "{apt}"; Dir::State::status "{apt}/status";\n'
            'APT::Sandbox::User "root"; APT::Install-Recommends "0"; Acquire::Languages "none"; Acquire::Retries "3";\n'
            'Acquire::Check-Valid-Until "false";\n'  # forky's index is older than it says it may be
            + run("apt-config", "dump", "Acquire::http", "Acquire::https").stdout  # the host's proxy
        )
        environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
        run("apt-get", "--quiet", "update", env=environment)
        run("apt-get", "--quiet", "--yes", "--download-only", "install", *packages, env=environment)
        got = apt / "var/cache/apt/archives"
        debs = sorted(deb.name for deb in got.glob("*.deb"))
        sums = run("sha256sum", *debs, cwd=got).stdout
        for rest in ("partial", "lock"):
            run("rm", "-rf", got / rest)
        (got / "SHA256SUMS").write_text(sums)
        got.rename(folder)


@cache
def release() -> str:
    """The host's own suite."""
    return run("sh", "-c", '. /etc/os-release && echo "$VERSION_CODENAME"').stdout.strip()


def mirror() -> str:
    """The Debian mirror that the host's own sources use for its own release."""
    for line in run(
        "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"
    ).stdout.splitlines():
        uri, suite, component = line.split()
        if suite in (release(), "stable") and component == "main":
            return uri
    raise ToolError(
        f"The apt sources of this host name no Debian mirror for {release()} main, so the tools of other suites can't be fetched."
    )


def run(
    *argv: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, budget: float = 600
) -> subprocess.CompletedProcess[str]:
    """Runs a command that has to work, within `budget` seconds. Raises ToolError with the last lines it said otherwise."""
    try:
        return subprocess.run(argv, cwd=cwd, env=env, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=budget)
    except FileNotFoundError as error:
        raise ToolError(f"{argv[0]} isn't installed; .ci/install installs it.") from error
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{' '.join(map(str, argv))} didn't end within {error.timeout} s.") from error
    except subprocess.CalledProcessError as error:
        said = "\n".join((error.stdout + error.stderr).splitlines()[-12:])
        raise ToolError(f"{' '.join(map(str, argv))} failed with {error.returncode}:\n{said}") from error


def writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other test runs from filling `folder` at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def version(tool: Path) -> str:
    """What the binary says of itself, on one line. Raises ToolError if it doesn't run."""
    flag = "-v" if tool.name.startswith("containerd-shim") else "--version"
    said = run(tool, flag).stdout.splitlines()
    return next((line.strip() for line in said if "ersion" in line), " ".join(said))


def main() -> int:
    try:
        for pair in PAIRS:
            print(f"{pair!s:14}  {version(pair.shim_path):34}  {version(pair.engine_path):28}  {pair.shim_path} {pair.engine_path}")
    except ToolError as error:
        print(f"toolbox: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

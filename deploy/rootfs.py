"""What is in the image of `orlop watch`: Python and iptables-save of Debian, the locked Python packages that it imports, and Orlop.

Called by `deploy.image`, which packs it, and by `deploy/Containerfile`: `python -m deploy.rootfs DIRECTORY`. Debian's packages are
unpacked, not installed: there is no shell, no package manager and no user in the image. What was taken is told in the form that
scanners read (`/var/lib/dpkg/status.d`, and `*.dist-info`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.e2e.toolbox import REPO, archives, run

SUITE = "trixie"
PYTHON = "3.13"
"""That suite's."""
_UV = REPO / ".tools/uv/bin/uv"
_ASKED = ("python3-minimal", "libpython3-stdlib", "iptables", "libstdc++6")
_TAKEN = frozenset({
    "iptables", "libc6", "libexpat1", "libffi8", "libgcc-s1", "libip4tc2", "libip6tc2", "libmnl0", "libnftnl11",
    f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libsqlite3-0", "libssl3t64", "libstdc++6", "libxtables12",
    "libzstd1", f"python{PYTHON}-minimal", "zlib1g",
})  # fmt: skip
"""Of what apt resolves: libraries that are linked or imported. The rest are what packages need to be installed."""
_LEFT_OUT = (
    "etc",
    "usr/bin/iptables-xml",
    "usr/lib/*/audit",
    "usr/lib/*/engines-3",
    "usr/lib/*/gconv",
    "usr/lib/*/libmemusage.so",
    "usr/lib/*/ossl-modules",
    "usr/lib/python3",
    f"usr/lib/python{PYTHON}/_pyrepl",
    f"usr/lib/python{PYTHON}/ensurepip",
    f"usr/lib/python{PYTHON}/idlelib",
    f"usr/lib/python{PYTHON}/pydoc_data",
    f"usr/lib/python{PYTHON}/test",
    f"usr/lib/python{PYTHON}/turtle.py",
    f"usr/lib/python{PYTHON}/unittest",
    f"usr/lib/python{PYTHON}/xmlrpc",
    "usr/sbin/*-apply",
    "usr/sbin/*-translate",
    "usr/sbin/arptables*",
    "usr/sbin/ebtables*",
    "usr/sbin/nfnl_osf",
    "usr/share/[!d]*",
    "usr/share/doc/*/[!c]*",
    "usr/share/doc/*/changelog*",
)
"""Of what the packages have. Their licences stay."""
NOT_IMPORTED = ("aiohttp", "isal", "pyyaml", "tenacity", "zstandard")
"""Dependencies of the project that only the daemon has, and commands that are not for this image."""
_LIBRARY = f"usr/local/lib/python{PYTHON}/dist-packages"
_DIRECTORIES = ("etc/orlop", "proc", "run", "sys/fs/cgroup", "tmp", "var/lib/cni")
_LINKS = {
    "bin": "usr/bin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "sbin": "usr/sbin",
    "usr/bin/python3": f"python{PYTHON}",
    "usr/sbin/ip6tables-save": "iptables-save",
    # Where command lines of shims say that a socket is.
    "var/run": "/run",
}
_COMMAND = f"""\
#!/usr/bin/python{PYTHON} -IB
from agent.cli.main import main

main()
"""
"""-I: nothing in the environment or the working directory changes what is run. -B: the root file system is read-only."""
_FILES = {
    "etc/group": "root:x:0:\n",
    "etc/passwd": "root:x:0:0:root:/:/sbin/nologin\n",
    "usr/sbin/iptables-save": f"#!/usr/bin/python{PYTHON} -IB\n{Path(__file__).with_name('iptables_save.py').read_text()}",
}


def debian(tree: Path) -> list[str]:
    """Unpack what is needed of the distribution into `tree`; returns the packages, as name=version.

    Raises:
        ToolError: they can't be had.
    """
    taken = []
    for deb in archives(SUITE, _ASKED):
        control = run("dpkg-deb", "--field", deb).stdout
        fields = dict(line.split(": ", 1) for line in control.splitlines() if ": " in line and not line.startswith(" "))
        if fields["Package"] not in _TAKEN:
            continue
        run("dpkg-deb", "--extract", deb, tree)
        status = tree / "var/lib/dpkg/status.d" / fields["Package"]
        status.parent.mkdir(parents=True, exist_ok=True)
        status.write_text(control)
        taken.append(f"{fields['Package']}={fields['Version']}")
    for pattern in _LEFT_OUT:
        for path in list(tree.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)  # by way of a link, it was met before
    for name in _DIRECTORIES:
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "tmp").chmod(0o1777)
    for name, target in _LINKS.items():
        (tree / name).symlink_to(target)
    for name, text in _FILES.items():
        (tree / name).write_text(text)
        (tree / name).chmod(0o755 if text.startswith("#!") else 0o644)
    return sorted(taken)


def dependencies(tree: Path) -> None:
    """Put the locked packages into `tree`, checked by the hashes in uv.lock, for the Python of the image.

    Raises:
        ToolError: they can't be had.
    """
    (tree / _LIBRARY).mkdir(parents=True)
    requirements = tree / "requirements.txt"
    pruned = (word for name in NOT_IMPORTED for word in ("--prune", name))
    export = ("export", "--quiet", "--frozen", "--no-dev", "--no-emit-project", *pruned)
    run(_UV, *export, "--output-file", requirements, cwd=REPO)
    machine = f"{os.uname().machine}-unknown-linux-gnu"
    install = ("pip", "install", "--quiet", "--require-hashes", "--only-binary", ":all:")
    run(_UV, *install, "--requirement", requirements, "--target", tree / _LIBRARY, "--python-version", PYTHON, "--python-platform", machine)
    requirements.unlink()
    shutil.rmtree(tree / _LIBRARY / "bin", ignore_errors=True)
    for useless in [tree / _LIBRARY / ".lock", *(tree / _LIBRARY).glob("*.dist-info/RE*")]:
        useless.unlink(missing_ok=True)  # how it was installed


def project(tree: Path, mtime: int) -> None:
    """Build the wheel of the project, and put it and the command into `tree`.

    Raises:
        ToolError: it can't be built.
    """
    library = tree / _LIBRARY
    wheels = tree / "wheels"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(mtime)}
    run(_UV, "build", "--quiet", "--wheel", "--out-dir", wheels, REPO, env=environment)
    [wheel] = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(library)
    shutil.rmtree(wheels)
    command = tree / "usr/local/bin/orlop"
    command.parent.mkdir(parents=True)
    command.write_text(_COMMAND)
    command.chmod(0o755)


def compile_all(system: Path, *trees: Path) -> None:
    """Compile all modules, by the Python that is in `system`: a read-only root file system can't keep what a start would compile.

    Raises:
        ToolError: it doesn't run.
    """
    loader = system / "usr/lib64" / {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}[os.uname().machine]
    libraries = f"{system}/usr/lib/{os.uname().machine}-linux-gnu"
    # Equal sets are written in an equal order, and no module is told from its source by the time of that.
    environment = {"PYTHONHASHSEED": "0", "PYTHONHOME": f"{system}/usr", "PYTHONDONTWRITEBYTECODE": "1"}
    python = (os.path.realpath(loader), "--library-path", libraries, f"{system}/usr/bin/python{PYTHON}", "-S")
    for tree in trees:
        options = ("-q", "-f", "--invalidation-mode", "unchecked-hash", "-s", str(tree), "-p", "/")
        folders = [str(folder) for folder in (tree / f"usr/lib/python{PYTHON}", tree / _LIBRARY) if folder.is_dir()]
        run(*python, "-m", "compileall", *options, *folders, env=environment)


def last_change() -> int:
    """When the project was changed last, in Unix seconds: SOURCE_DATE_EPOCH (reproducible-builds.org), or the commit's time."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    return int(run("git", "-C", REPO, "log", "-1", "--format=%ct").stdout)


def revision() -> str:
    """The commit; with a mark when it isn't all. Empty: this is no clone."""
    try:
        done = subprocess.run(
            ["git", "-C", REPO, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def main(tree: Path) -> None:
    """All in one directory, made here."""
    tree.mkdir()
    debian(tree)
    dependencies(tree)
    project(tree, last_change())
    compile_all(tree, tree)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

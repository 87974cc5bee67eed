"""The kernel of the nodes in user-mode Linux: Debian's newest source, built as a program of this machine with `kernel.config`.

Debian's own user-mode-linux packages don't run everywhere: their kernels want the registers of a process in a size that newer CPUs
don't have, and lack half of what a node's kernel has. One of 7.0 or newer intercepts system calls by seccomp instead.

Takes some ten minutes of CPU, once for all clones on a machine: the result is kept under a hash of what it is made from. Called by
`tests.uml.node`. To take newer sources, remove the folder of the .deb files and the kernel (`toolbox.shared()`).
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.e2e.toolbox import ToolError, archives, locked, run, shared

CONFIG = Path(__file__).with_name("kernel.config")
SUITE, PACKAGE = "forky", "linux-source"
NOT_NEEDED = ("Documentation", "samples", "tools/testing", "sound", "drivers/gpu/drm/amd", "drivers/net/ethernet", "drivers/net/wireless")
"""Parts of the source that take long to unpack. All but their Kconfig files can be missing, since nothing in them is chosen."""
BUILD_BUDGET = 3600
"""Seconds; on a machine with two cores that has something else to do as well."""


@cache
def kernel() -> Path:
    """The executable. Raises ToolError."""
    key = hashlib.sha256(f"{SUITE} {PACKAGE} {CONFIG.read_text()}".encode()).hexdigest()[:16]
    binary = shared() / f"linux-{key}"
    if not binary.exists():
        [source] = [deb for deb in archives(SUITE, (PACKAGE,)) if re.match(r"linux-source-\d", deb.name)]
        with locked(shared() / "uml"):
            if not binary.exists():
                build(source, binary)
    return binary


def build(source: Path, binary: Path) -> None:
    """Unpacks and compiles; `binary` appears only when complete."""
    print(f"uml: building a kernel of {source.name}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=binary.parent, prefix=".linux-") as work:
        unpack(source, Path(work))
        [tree] = Path(work).glob("linux-source-*")
        make = ("nice", "-n", "5", "make", "-C", tree, "ARCH=um", f"-j{os.cpu_count()}")
        run(*make, f"KCONFIG_ALLCONFIG={CONFIG}", "alldefconfig", budget=BUILD_BUDGET)
        check(tree / ".config")
        run(*make, "linux", budget=BUILD_BUDGET)
        run("strip", "--strip-debug", "-o", f"{work}/linux", tree / "linux")
        Path(work, "linux").rename(binary)


def unpack(source: Path, work: Path) -> None:
    """The package holds one archive of the whole tree."""
    skipped = [f"--exclude=*/{part}/*.[chSd]*" for part in NOT_NEEDED]
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", source], stdout=subprocess.PIPE) as package,
        subprocess.Popen(
            ["tar", "-xO", "--wildcards", "./usr/src/linux-source-*.tar.xz"], stdin=package.stdout, stdout=subprocess.PIPE
        ) as archive,
    ):
        done = subprocess.run(["tar", "-xJ", "-C", work, *skipped], stdin=archive.stdout, check=False)
    if done.returncode or archive.returncode or package.returncode:
        raise ToolError(f"{source} could not be unpacked below {work}.")


def check(config: Path) -> None:
    """Kconfig drops what it doesn't know or what lacks something else, without a word."""
    made = set(config.read_text().splitlines())
    wanted = [line for line in CONFIG.read_text().splitlines() if line.startswith("CONFIG_")]
    missing = [line for line in wanted if line not in made and not line.endswith("=n")]
    if missing:
        raise ToolError(f"The kernel's own configuration lacks {', '.join(missing)}: renamed, or without what they depend on.")

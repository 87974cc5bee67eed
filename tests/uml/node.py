"""A Kubernetes node as a process: user-mode Linux with systemd as process 1 and cgroup v2, which can lose its power.

    node = Node(tmp_path, "a")
    node.boot()
    node.run("systemctl is-system-running").stdout
    node.cut()              # SIGKILL: memory, /run and the boot id are gone, the disk is as it was at that moment
    node.boot()

Inside, the project's tree and its Python are at the same paths as here, read only; `node.share` is writable on both sides.
Speed there: plain CPU as here, system calls some thirty times slower; so it shows correctness, and nothing about time.
Used by `tests/e2e/test_uml_*.py`, which runs in `tests/e2e/enter`: `prepare()` has to be called before, since nothing can be
fetched there.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.e2e.toolbox import REPO
from tests.uml.image import image
from tests.uml.kernel import kernel

PYTHON = REPO / ".venv/bin/python"
"""In the node, too."""
SHM = Path("/dev/shm")
MEMORY = 2048
"""Of the guest, in MiB: a file as large as what is touched of it."""
BOOT_BUDGET = 120.0
"""Seconds until systemd has started the unit that takes commands; alone on a machine it takes 3."""


def prepare() -> None:
    """Has kernel and root file system on disk. Raises ToolError."""
    kernel()
    image()


class Node:
    """One node with a disk of its own, below `home`."""

    def __init__(self, home: Path, name: str) -> None:
        self.name = name
        self.home = home / f"uml-{name}"
        self.share = self.home / "share"
        self.console = self.home / "console.log"
        self._scripts = itertools.count(1)
        self._kernel: subprocess.Popen[bytes] | None = None
        self._line = (-1, -1)
        self.share.mkdir(parents=True)

    def boot(self) -> None:
        """Power on; returns when commands run."""
        assert self._kernel is None, f"node {self.name} runs already"
        hears, says = os.pipe()
        answers, answer = os.pipe()
        read_only = {REPO, Path(sys.base_prefix)}
        arguments = [
            f"uml_dir={self.home}", f"umid={self.name}", f"mem={MEMORY}M", "seccomp=on",
            f"ubd0={self.home}/disk,{image()}", "root=/dev/ubda", "rw", "init=/usr/local/sbin/orlop-init",
            f"orlop.share={self.share}", *(f"orlop.read={path}" for path in read_only if not path.is_relative_to("/usr")),
            "con=null", "con0=fd:0,fd:1", "ssl=null", f"ssl0=fd:{hears},fd:{answer}",
            "quiet", "systemd.show_status=no",
        ]  # fmt: skip
        processor = max(os.sched_getaffinity(0))  # kept to one, it is two to four times faster
        with self.console.open("ab") as console:
            self._kernel = subprocess.Popen(
                ["taskset", "-c", str(processor), kernel(), *arguments],
                env={**os.environ, "TMPDIR": str(self._memory_home())},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=(hears, answer),
                start_new_session=True,
            )
        os.close(hears)
        os.close(answer)
        self._line = (says, answers)
        assert self._answer(BOOT_BUDGET) == "ready", f"node {self.name} is out of step:\n{self.console_tail()}"

    def run(self, script: str, *, budget: float = 120.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a shell script in the node, as root in a unit with Delegate=yes. Its output, stderr too, is `stdout`."""
        faulthandler.cancel_dump_traceback_later()  # pytest's: it would show where this waits, which has a budget of its own
        path = self.share / f"{next(self._scripts)}.sh"
        path.write_text(script)
        os.write(self._line[0], f"{path}\n".encode())
        code = int(self._answer(budget))
        said = Path(f"{path}.out").read_text(errors="replace")
        assert not check or code == 0, f"on node {self.name} this ended with {code}:\n{script}\n{said}"
        return subprocess.CompletedProcess(script, code, said, "")

    def cut(self) -> None:
        """A power cut. Does nothing if it is off."""
        if self._kernel is None:
            return
        os.killpg(self._kernel.pid, signal.SIGKILL)  # the guest's processes are processes of the host, too
        self._kernel.wait()
        self._kernel = None
        for descriptor in self._line:
            os.close(descriptor)

    def _memory_home(self) -> Path:
        """Where the file is that the guest has for memory: containers often have a /dev/shm of 64 MB."""
        return SHM if shutil.disk_usage(SHM).free > MEMORY << 20 else self.home

    def _answer(self, budget: float) -> str:
        """One line of the guest's."""
        deadline = time.monotonic() + budget
        line = b""
        while not line.endswith(b"\n"):
            assert select.select([self._line[1]], [], [], max(deadline - time.monotonic(), 0))[0], (
                f"node {self.name} doesn't answer within {budget:g} s:\n{self.console_tail()}"
            )
            read = os.read(self._line[1], 1)
            assert read, f"node {self.name} is down:\n{self.console_tail()}"
            line += read
        return line.decode().strip()

    def console_tail(self, lines: int = 60) -> str:
        return "\n".join(self.console.read_text(errors="replace").splitlines()[-lines:])

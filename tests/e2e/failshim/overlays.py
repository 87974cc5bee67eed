"""What Kata does with a rootfs on the host, and what makes it busy for whoever unmounts it before `delete` has run (runtime-v2 5).

Over the rootfs lies a mount; a process, as its virtiofsd, has it open, from a mount namespace of its own and outside of the shim's cgroup.
Only the shim knows both: who wants the rootfs back has to ask it first.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def put_over(home: Path, container: str) -> None:
    """Mount over the rootfs of `container`, whose bundle is beside the one that the shim works in, and hold that."""
    rootfs = Path.cwd().parent / container / "rootfs"
    _run("mount", "-t", "tmpfs", "overlay", rootfs)
    held = os.open(rootfs, os.O_RDONLY)  # opened here: so it is our mount that is busy, and not the other namespace's copy
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sleep", "1000000"],
        cwd="/",
        pass_fds=(held,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(held)
    for top in (_CGROUPS, *_CGROUPS.iterdir()):
        with suppress(OSError):  # not every hierarchy has it
            Path(f"{top}{os.environ['ORLOP_E2E_CGROUP']}/cgroup.procs").write_text(str(holder.pid))
    _note(home, container).write_text(f"{holder.pid} {rootfs}")


def take_away(home: Path, container: str) -> None:
    """Undo `put_over`; nothing, if nothing was put there."""
    note = _note(home, container)
    try:
        number, rootfs = note.read_text().split(" ", 1)
    except FileNotFoundError:
        return
    with suppress(ProcessLookupError):
        _end(int(number))
    _run("umount", rootfs)
    note.unlink()


def holder_of(home: Path, container: str) -> int:
    """The process that holds the mount over a rootfs. Raises FileNotFoundError: there is none."""
    return int(_note(home, container).read_text().split()[0])


def _note(home: Path, container: str) -> Path:
    return home / f"overlay-{container}"


def _end(pid: int) -> None:
    process = os.pidfd_open(pid)
    signal.pidfd_send_signal(process, signal.SIGKILL)
    select.select([process], [], [])
    os.close(process)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

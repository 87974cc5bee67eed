"""A process shuts itself in: for a child that reads what strangers wrote (the unpack worker of `agent.snapshots`).

There is no way back, so only a process that was started for this calls it, while it has one thread.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from agent.linux import files, libc

_NAMESPACES = libc.CLONE_NEWNS | libc.CLONE_NEWNET | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS
_NOBODY = 65534


def confine(root: Path, capabilities: Collection[int]) -> None:
    """From here on the process sees `root` as /, has no network, opens no device and keeps only `capabilities`.

    It runs as nobody, so that it can signal or trace none of root's processes; the files it makes are root's all the same.
    Device nodes can be made but not opened: the root is bound onto itself without devices, set-user-ID and execution.
    Raises OSError; the process must then end.
    """
    last_capability = int(files.read("/proc/sys/kernel/cap_last_cap"))
    libc.unshare(_NAMESPACES)
    # Slave, not private: what the host unmounts meanwhile must not stay mounted, and so busy, because of us.
    libc.mount("", "/", "", libc.MS_SLAVE | libc.MS_REC)
    libc.mount(root, root, "", libc.MS_BIND)
    libc.mount("", root, "", libc.MS_BIND | libc.MS_REMOUNT | libc.MS_NODEV | libc.MS_NOSUID | libc.MS_NOEXEC)
    os.chroot(root)
    os.chdir("/")
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    for capability in range(last_capability + 1):
        if capability not in capabilities:
            libc.prctl(libc.PR_CAPBSET_DROP, capability)
    libc.prctl(libc.PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    libc.capset({*capabilities, libc.CAP_SETUID, libc.CAP_SETGID})
    libc.setfsgid(0)
    libc.setfsuid(0)
    libc.capset(capabilities)

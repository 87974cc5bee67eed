"""The option strings of OCI and containerd mounts, as the mount(2) calls that they mean. Pure; used by `mounts` alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

from agent.linux.libc import (
    MS_BIND,
    MS_DIRSYNC,
    MS_I_VERSION,
    MS_LAZYTIME,
    MS_MANDLOCK,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_SHARED,
    MS_SILENT,
    MS_SLAVE,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
    MS_UNBINDABLE,
)  # fmt: skip

_SET = {
    "ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC, "sync": MS_SYNCHRONOUS,
    "remount": MS_REMOUNT, "mand": MS_MANDLOCK, "dirsync": MS_DIRSYNC, "nosymfollow": MS_NOSYMFOLLOW, "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME, "bind": MS_BIND, "rbind": MS_BIND | MS_REC, "silent": MS_SILENT, "relatime": MS_RELATIME,
    "iversion": MS_I_VERSION, "strictatime": MS_STRICTATIME, "lazytime": MS_LAZYTIME,
}  # fmt: skip
_CLEAR = {
    "defaults": 0, "rw": MS_RDONLY, "suid": MS_NOSUID, "dev": MS_NODEV, "exec": MS_NOEXEC, "async": MS_SYNCHRONOUS,
    "nomand": MS_MANDLOCK, "symfollow": MS_NOSYMFOLLOW, "atime": MS_NOATIME, "diratime": MS_NODIRATIME, "loud": MS_SILENT,
    "norelatime": MS_RELATIME, "noiversion": MS_I_VERSION, "nostrictatime": MS_STRICTATIME, "nolazytime": MS_LAZYTIME,
}  # fmt: skip
_PROPAGATION = {
    name: flag | recursive
    for base, flag in (("private", MS_PRIVATE), ("shared", MS_SHARED), ("slave", MS_SLAVE), ("unbindable", MS_UNBINDABLE))
    for name, recursive in ((base, 0), (f"r{base}", MS_REC))
}


@dataclass(frozen=True)
class Call:
    """One mount(2) call on the target."""

    source: str
    fstype: str
    flags: int
    data: str = ""


def calls(fstype: str, source: str, options: Sequence[str]) -> list[Call]:
    """What to call, in order, for a mount with these options. Of contradicting options the last one holds.

    An option that is not a flag of the kernel is passed to the file system as data, but for those that are notes to other
    programs (`x-...`, `X-...`). A bind mount takes its flags only by a remount, and a propagation only by a call of its own.

    Raises:
        OSError: E2BIG, the data don't fit in a page; the kernel would cut them off and mount something else.
    """
    flags = propagation = 0
    data = []
    for option in options:
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option and not option.lower().startswith("x-"):
            data.append(option)
    text = ",".join(data)
    if len(os.fsencode(text)) >= os.sysconf("SC_PAGE_SIZE"):
        raise OSError(errno.E2BIG, f"the options of this {fstype} mount don't fit in a page", source)
    if flags & MS_BIND and not flags & MS_REMOUNT:
        plan = [Call(source, "", flags & (MS_BIND | MS_REC))]
        if attributes := flags & ~(MS_BIND | MS_REC | MS_SILENT):
            plan.append(Call("", "", MS_REMOUNT | MS_BIND | attributes))
    else:
        plan = [Call(source, fstype, flags, text)]
    if propagation:
        plan.append(Call("", "", propagation))
    return plan

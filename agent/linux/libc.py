"""System calls and constants that Python 3.11 doesn't have. The only user of `ctypes` in the project.

One function per call, under the call's name; constants under their C names. Each call raises `OSError` with the errno and
the file name, never returns a code, and gives up the GIL while it is in the kernel. Callers: the other modules of
`agent.linux`, and children that enter namespaces.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Collection

StrPath = str | os.PathLike[str]

# linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000
MS_I_VERSION = 0x800000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000

# sys/mount.h
MNT_FORCE = 0x1
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

# linux/sched.h
CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# fcntl.h
SPLICE_F_NONBLOCK = 0x2

# linux/prctl.h
PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

# linux/capability.h
CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_FOWNER = 3
CAP_FSETID = 4
CAP_SETGID = 6
CAP_SETUID = 7
CAP_MKNOD = 27
CAP_SETFCAP = 31

# linux/nsfs.h
NS_GET_USERNS = 0xB701
NS_GET_NSTYPE = 0xB703

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
_libc.tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
_libc.tee.restype = ctypes.c_ssize_t
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.capset.argtypes = (ctypes.c_char_p, ctypes.c_char_p)


def mount(source: StrPath, target: StrPath, fstype: str, flags: int, data: str = "") -> None:
    """mount(2). Empty `fstype` and `data` are passed as NULL, as binds, remounts and propagation changes want them."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), os.fsencode(fstype) or None, flags, os.fsencode(data) or None
    )  # fmt: skip
    if result != 0:
        raise _error(f"mount {fstype or 'bind'} {os.fspath(source)}", target)


def umount2(target: StrPath, flags: int) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(target), flags) != 0:
        raise _error("umount", target)


def unshare(flags: int) -> None:
    """unshare(2): of the calling thread, which must never serve anything else again."""
    if _libc.unshare(flags) != 0:
        raise _error("unshare")


def setns(descriptor: int, nstype: int) -> None:
    """setns(2): moves the calling thread, which must never serve anything else again. `nstype` 0: any kind."""
    if _libc.setns(descriptor, nstype) != 0:
        raise _error("setns")


def sethostname(name: str) -> None:
    """sethostname(2): of the calling thread's UTS namespace."""
    encoded = os.fsencode(name)
    if _libc.sethostname(encoded, len(encoded)) != 0:
        raise _error("sethostname")


def tee(source: int, target: int, length: int, flags: int) -> int:
    """tee(2): duplicates up to `length` bytes from one pipe into another and leaves them in the first; 0 is end of file."""
    count: int = _libc.tee(source, target, length, flags)
    if count < 0:
        raise _error("tee")
    return count


def syncfs(descriptor: int) -> None:
    """syncfs(2): everything dirty on the file system of an open file is on disk when it returns."""
    if _libc.syncfs(descriptor) != 0:
        raise _error("syncfs")


def prctl(option: int, argument: int) -> None:
    """prctl(2) with one argument."""
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        raise _error("prctl")


def capset(capabilities: Collection[int]) -> None:
    """capset(2): the calling thread's effective and permitted sets become these; nothing is inheritable, what is left out is gone."""
    mask = sum(1 << capability for capability in capabilities)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    # _LINUX_CAPABILITY_VERSION_3, pid 0; then effective, permitted, inheritable: of the low half, and of the high one.
    if _libc.capset(struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", low, low, 0, high, high, 0)) != 0:
        raise _error("capset")


def setfsuid(uid: int) -> None:
    """setfsuid(2): the owner of files that this thread makes. The call itself can't fail, so it is asked again whether it worked."""
    _libc.setfsuid(uid)
    if _libc.setfsuid(-1) != uid:
        raise PermissionError(errno.EPERM, "setfsuid")


def setfsgid(gid: int) -> None:
    """setfsgid(2): the group of files that this thread makes."""
    _libc.setfsgid(gid)
    if _libc.setfsgid(-1) != gid:
        raise PermissionError(errno.EPERM, "setfsgid")


def ns_get_userns(descriptor: int) -> int:
    """The user namespace that owns an open namespace file, as a new descriptor (ioctl_ns(2)).

    EPERM means: it is not ours nor below ours, which is an answer too.
    """
    return fcntl.ioctl(descriptor, NS_GET_USERNS)


def ns_get_nstype(descriptor: int) -> int:
    """The CLONE_NEW* flag of an open namespace file (ioctl_ns(2)); ENOTTY: it isn't one."""
    return fcntl.ioctl(descriptor, NS_GET_NSTYPE)


def _error(call: str, path: StrPath | None = None) -> OSError:
    number = ctypes.get_errno()
    message = f"{call}: {os.strerror(number)}"
    return OSError(number, message) if path is None else OSError(number, message, os.fspath(path))

"""A pod's namespaces without a process in them: made in a thread, kept by a bind mount of the namespace's file.

Callers: `agent.pods` (RunPodSandbox, StopPodSandbox, the check whether a sandbox is READY), `agent.network` (addresses).

A thread that has unshared or entered a namespace ends with that call: it is thrown away (`throwaway`), never returned to a
pool. Reading and writing /proc/sys goes by the namespaces of the thread that does it.

A pin is a plain bind mount in the directory the caller names (`/run/netns` for the network, where CNI plugins and node
tools look), as containerd makes it. `ip netns add` makes that directory a shared mount of its own first; we must not: laid
over the directory later, such a mount hides the pins that others already have there, here and in every mount namespace
that receives our mounts. On a node under systemd `/run` is shared already, so that a pin, and its end, reach those
namespaces by themselves. Where it is private, a mount namespace cloned meanwhile keeps a copy of the pin, and with it the
network namespace, after `release`; CNI DEL comes before that and leaves nothing in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from agent.aio import in_thread
from agent.errdefs import InvalidArgument
from agent.linux import files, libc, netlink
from agent.linux.throwaway import in_own_thread

_FLAGS = {"net": libc.CLONE_NEWNET, "ipc": libc.CLONE_NEWIPC, "uts": libc.CLONE_NEWUTS}
_SYSCTLS = {
    "net/": "net", "kernel/shm": "ipc", "kernel/msg": "ipc", "kernel/sem": "ipc", "fs/mqueue/": "ipc", "kernel/domainname": "uts",
}  # fmt: skip
"""What the kernel keeps per namespace, by the beginning of its name (namespaces(7), and the kubelet's list). All else is the node's."""
_UNLINK_RETRIES = (0.01, 0.05, 0.2)
"""Seconds between the tries to unlink a pin: another mount namespace may just be unmounting its copy."""


class Namespaces:
    """Makes, checks and ends pinned namespaces. `proc` is another place in tests only."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    async def create(self, pins: Mapping[str, Path], *, hostname: str = "", sysctls: Mapping[str, str] | None = None) -> dict[str, int]:
        """Make a namespace for each key of `pins` ("net", "ipc", "uts") and pin it at the path given; the inode of each.

        In a new network namespace loopback is up. All or nothing: what was made is undone when a later step fails.

        Raises:
            InvalidArgument: an unknown key, or a hostname or sysctl whose namespace isn't made here: it would be the host's.
            FileExistsError: a pin's file is there already; it is left alone.
            OSError: the kernel refused a step; a sysctl's file is named.
        """
        wanted = dict(sysctls or {})
        if unknown := pins.keys() - _FLAGS.keys():
            raise InvalidArgument(f"can't pin a namespace of kind {', '.join(sorted(unknown))}: only {', '.join(_FLAGS)}")
        if hostname and "uts" not in pins:
            raise InvalidArgument(f"hostname {hostname!r} without a UTS namespace would be the node's")
        _check_sysctls(wanted, pins)
        return await in_own_thread(self._create, dict(pins), hostname, wanted)

    async def inode(self, pin: Path) -> int | None:
        """The inode of the namespace at `pin`, which identifies it until it ends; None: no namespace is mounted there."""
        return await in_thread(self._inode, pin)

    async def release(self, pin: Path) -> None:
        """Undo a pin, mount and file; done already: nothing happens. The namespace ends with its last process or descriptor."""
        await in_thread(_release, pin)

    async def write_sysctls(self, pin: Path, sysctls: Mapping[str, str]) -> None:
        """Set sysctls in the namespace at `pin`. Raises InvalidArgument for one that isn't of that kind of namespace; OSError."""
        await in_own_thread(self._write_sysctls, pin, dict(sysctls))

    async def addresses(self, pin: Path, ifname: str) -> list[str]:
        """The addresses of an interface in the network namespace at `pin`, as `netlink.global_addresses`."""
        return await in_own_thread(_addresses, pin, ifname)

    async def interface_counters(self, pins: Sequence[Path]) -> list[bytes | None]:
        """/proc/net/dev of each network namespace, in one thread that enters them in turn; None for a pin that is none any more."""
        return await in_own_thread(self._interface_counters, pins)

    def _create(self, pins: Mapping[str, Path], hostname: str, sysctls: Mapping[str, str]) -> dict[str, int]:
        inodes = {}
        with ExitStack() as undo:
            for pin in pins.values():
                pin.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                os.close(os.open(pin, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
                undo.callback(_release, pin)
            libc.unshare(sum(_FLAGS[kind] for kind in pins))
            if "net" in pins:
                netlink.set_up("lo")
            if hostname:
                libc.sethostname(hostname)
            self._apply(sysctls)
            for kind, pin in pins.items():
                libc.mount(f"{self._proc}/thread-self/ns/{kind}", pin, "", libc.MS_BIND)
                inodes[kind] = pin.stat().st_ino
            undo.pop_all()
        return inodes

    def _inode(self, pin: Path) -> int | None:
        try:
            found = pin.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        # All namespace files, and nothing else, are on the kernel's one nsfs. Told by stat, since an open pin is a busy pin.
        return found.st_ino if found.st_dev == os.stat(f"{self._proc}/self/ns/net").st_dev else None

    def _write_sysctls(self, pin: Path, sysctls: Mapping[str, str]) -> None:
        _check_sysctls(sysctls, {_enter(pin)})
        self._apply(sysctls)

    def _interface_counters(self, pins: Sequence[Path]) -> list[bytes | None]:
        return [self._counters_of(pin) for pin in pins]

    def _counters_of(self, pin: Path) -> bytes | None:
        try:
            kind = _enter(pin)
        except OSError:
            return None
        return files.read(f"{self._proc}/thread-self/net/dev") if kind == "net" else None

    def _apply(self, sysctls: Mapping[str, str]) -> None:
        for name, value in sysctls.items():
            files.write(f"{self._proc}/sys/{_sysctl_path(name)}", value)


def _enter(pin: Path) -> str:
    """Move the calling thread, which must be a throw-away one, into the namespace at `pin`; its kind."""
    descriptor = os.open(pin, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        nstype = libc.ns_get_nstype(descriptor)
        libc.setns(descriptor, nstype)
    except OSError as error:
        raise OSError(error.errno, f"not a namespace that can be entered: {error.strerror}", os.fspath(pin)) from error
    finally:
        os.close(descriptor)
    return next((kind for kind, flag in _FLAGS.items() if flag == nstype), "")


def _addresses(pin: Path, ifname: str) -> list[str]:
    _enter(pin)
    return netlink.global_addresses(ifname)


def _release(pin: Path) -> None:
    flags = libc.UMOUNT_NOFOLLOW
    while True:  # one turn for each mount stacked on the file
        try:
            libc.umount2(pin, flags)
        except OSError as error:
            if error.errno == errno.EBUSY:  # somebody has the file open; the namespace lives as long as that, the pin doesn't
                flags |= libc.MNT_DETACH
            elif error.errno in {errno.EINVAL, errno.ENOENT, errno.ENOTDIR}:
                break
            else:
                raise
    for delay in (*_UNLINK_RETRIES, None):
        try:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(pin)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or delay is None:
                raise
            time.sleep(delay)


def _check_sysctls(sysctls: Iterable[str], kinds: Collection[str]) -> None:
    for name in sysctls:
        path = _sysctl_path(name)
        if not any(path.startswith(prefix) and kind in kinds for prefix, kind in _SYSCTLS.items()):
            raise InvalidArgument(f"sysctl {name!r} belongs to no namespace made or entered here: it would be set for the node")


def _sysctl_path(name: str) -> str:
    """Below /proc/sys. As in sysctl(8), the first of `.` and `/` in the name is its separator, and stands for the other one.

    Raises:
        InvalidArgument: a name that leads elsewhere.
    """
    path = name
    if (separator := next((character for character in name if character in "./"), "")) == ".":
        path = name.translate(str.maketrans("./", "/."))
    if not separator or any(part in {"", ".", ".."} for part in path.split("/")):
        raise InvalidArgument(f"{name!r} is not the name of a sysctl")
    return path

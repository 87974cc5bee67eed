"""A layer's tar stream becomes a directory as overlayfs wants it. Runs in the unpack worker, and trusts nothing it reads.

The rules are those of https://github.com/opencontainers/image-spec/blob/main/layer.md; where it is silent, containerd's. A
layer is applied without the layers below it, so that all of an image can be unpacked at once. What needs them, or more
rights than the worker has, is reported and done by `agent.snapshots.snapshotter` at commit:

- `opaque`: directories that hide what is below them (an xattr that takes CAP_SYS_ADMIN);
- `implied`: directories without an entry of their own, which take owner and mode from the layers below.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from dataclasses import dataclass, field

from agent.errdefs import InvalidArgument, ResourceExhausted, of_disk
from agent.snapshots.tar import Entry, EntryType, TarReader
from agent.snapshots.tree import Directory, Tree, is_whiteout, show

MAX_DEPTH = 256
"""Components of one name."""
_MAX_ID = 2**32 - 2
_MAX_TIME = 253402300799 * 10**9  # the end of the year 9999; file systems clamp to what they can hold
_WHITEOUT = b".wh."
_META = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 4096

# Everything else is the node's business (labels of its security module, overlayfs's own marks), or needs rights that we dropped.
_XATTRS = (b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default")


@dataclass(frozen=True)
class Limits:
    """What one layer may hold; beyond it the layer is a bomb. The defaults are some ten times the largest images in the field."""

    entries: int = 2_000_000
    bytes: int = 200 << 30
    """Of the uncompressed stream."""
    ratio: int = 200
    """Times as many bytes as the compressed layer has. gzip reaches 1000 and zstd more, but with zeros alone: executables come to 4, logs
    to 20, a disk image of a virtual machine that is nearly empty to 100."""
    unsuspicious: int = 4 << 30
    """Bytes that any layer may have, however small it was packed."""
    devices: int = 1024
    """Device nodes; an old distribution's static /dev has a few hundred."""

    def uncompressed(self, compressed: int) -> int:
        """Bytes that may come out of so many."""
        return min(self.bytes, max(self.unsuspicious, self.ratio * compressed))


@dataclass
class Report:
    """What became of a layer. Paths are relative to its root, which is b""."""

    size: int = 0
    """Bytes on disk, in whole blocks."""
    inodes: int = 0
    opaque: dict[bytes, None] = field(default_factory=dict)
    implied: dict[bytes, None] = field(default_factory=dict)
    ignored_xattrs: int = 0


class LayerApplier:
    """Fills the directory `root`, which is empty. After an error, half of the layer is there: the caller removes it all."""

    def __init__(self, root: str, limits: Limits) -> None:
        self._limits = limits
        self._tree = Tree(root, self._on_implied)
        self._times: dict[bytes, int] = {}
        self._entries = 0
        self._devices = 0
        self.report = Report(implied={b"": None})

    def apply(self, reader: TarReader) -> Report:
        """Apply every entry.

        Raises:
            InvalidArgument: the layer breaks the rules, or tries to leave the directory.
            ResourceExhausted: more than the limits allow.
            DataLoss: from the reader.
            OSError: from the kernel, the name in the layer kept.
        """
        try:
            for entry in reader:
                self._entries += 1
                if self._entries > self._limits.entries:
                    raise ResourceExhausted(f"the layer has more than {self._limits.entries} entries")
                self._tree.trim()
                try:
                    self._apply(entry, reader)
                except OSError as error:
                    raise _explained(error, entry) from error
            for path, mtime in reversed(self._times.items()):  # at the end: making a file changes its directory's time
                self._tree.trim()
                os.utime(self._tree.directory(path).fd, ns=(mtime, mtime))
        finally:
            self._tree.close()
        return self.report

    def _apply(self, entry: Entry, reader: TarReader) -> None:
        parts = _components(entry.name)
        if not parts:
            if entry.type is not EntryType.DIRECTORY:
                raise InvalidArgument(f"the layer's root is a {entry.type.value}, not a directory")
            self._finish_directory(self._tree.root, entry)
            return
        if b".wh." in entry.name and self._is_mark(parts):
            return
        name = parts.pop()
        parent = self._tree.directory(b"/".join(parts))
        match entry.type:
            case EntryType.FILE:
                self._file(parent, name, entry, reader)
            case EntryType.DIRECTORY:
                self._directory(parent, name, entry)
            case EntryType.SYMLINK:
                self._symlink(parent, name, entry)
            case EntryType.HARD_LINK:
                self._hard_link(parent, name, entry)
            case _:
                self._node(parent, name, entry)

    def _file(self, parent: Directory, name: bytes, entry: Entry, reader: TarReader) -> None:
        try:
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent.fd)
        except FileExistsError:
            parent = self._remove(parent, name)
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent.fd)
        try:
            for piece in reader.data():
                while piece:
                    piece = piece[os.write(fd, piece) :]
            self._own(fd, entry)
            os.utime(fd, ns=_times(entry))
        finally:
            os.close(fd)
        self.report.inodes += 1
        self.report.size += entry.size + -entry.size % _BLOCK

    def _directory(self, parent: Directory, name: bytes, entry: Entry) -> None:
        path = _join(parent.path, name)
        try:
            os.mkdir(name, 0o700, dir_fd=parent.fd)
            self._count_directory()
        except FileExistsError:
            status = os.lstat(name, dir_fd=parent.fd)
            if not stat.S_ISDIR(status.st_mode):
                parent = self._remove(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent.fd)
                self._count_directory()
                if is_whiteout(status):
                    self.report.opaque[path] = None
        self._finish_directory(self._tree.directory(path), entry)

    def _finish_directory(self, directory: Directory, entry: Entry) -> None:
        self.report.implied.pop(directory.path, None)
        self._own(directory.fd, entry)
        self._times[directory.path] = _times(entry)[0]

    def _symlink(self, parent: Directory, name: bytes, entry: Entry) -> None:
        if not entry.target:
            raise InvalidArgument(f"{show(entry.name)} is a symbolic link to nothing")
        try:
            os.symlink(entry.target, name, dir_fd=parent.fd)
        except FileExistsError:
            parent = self._remove(parent, name)
            os.symlink(entry.target, name, dir_fd=parent.fd)
        os.chown(name, *_owner(entry), dir_fd=parent.fd, follow_symlinks=False)
        os.utime(name, ns=_times(entry), dir_fd=parent.fd, follow_symlinks=False)
        self.report.inodes += 1
        self.report.ignored_xattrs += len(entry.xattrs)  # what a symlink can have is not for layers to set

    def _hard_link(self, parent: Directory, name: bytes, entry: Entry) -> None:
        parts = _components(entry.target)
        if not parts:
            raise InvalidArgument(f"{show(entry.name)} is a hard link to the layer's root")
        source_name = parts.pop()
        source = self._tree.directory(b"/".join(parts))
        try:
            try:
                os.link(source_name, name, src_dir_fd=source.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
            except FileExistsError:
                found = os.lstat(source_name, dir_fd=source.fd)
                if os.path.samestat(found, os.lstat(name, dir_fd=parent.fd)):
                    return
                above = source.path
                parent = self._remove(parent, name)
                source = self._tree.directory(above)
                os.link(source_name, name, src_dir_fd=source.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
        except FileNotFoundError:
            raise InvalidArgument(f"{show(entry.name)} is a hard link to {show(entry.target)}, which the layer doesn't hold") from None
        except PermissionError:
            raise InvalidArgument(f"{show(entry.name)} is a hard link to {show(entry.target)}, which can't have one") from None

    def _node(self, parent: Directory, name: bytes, entry: Entry) -> None:
        kind = {EntryType.FIFO: stat.S_IFIFO, EntryType.CHARACTER_DEVICE: stat.S_IFCHR, EntryType.BLOCK_DEVICE: stat.S_IFBLK}[entry.type]
        if entry.type is not EntryType.FIFO:
            self._devices += 1
            if self._devices > self._limits.devices:
                raise ResourceExhausted(f"the layer has more than {self._limits.devices} device nodes")
        try:
            device = os.makedev(*entry.device)
        except (OverflowError, ValueError):
            raise InvalidArgument(f"{show(entry.name)} is a device with the impossible number {entry.device}") from None
        try:
            os.mknod(name, kind | 0o600, device, dir_fd=parent.fd)
        except FileExistsError:
            parent = self._remove(parent, name)
            os.mknod(name, kind | 0o600, device, dir_fd=parent.fd)
        os.chown(name, *_owner(entry), dir_fd=parent.fd, follow_symlinks=False)
        os.chmod(name, entry.mode, dir_fd=parent.fd)  # not a symlink: we have just made it
        os.utime(name, ns=_times(entry), dir_fd=parent.fd, follow_symlinks=False)
        self.report.inodes += 1
        self.report.ignored_xattrs += len(entry.xattrs)

    def _is_mark(self, parts: list[bytes]) -> bool:
        """Deal with names that begin with ".wh."; False: none of the parts does."""
        if any(part.startswith(_META) and part != _OPAQUE for part in parts) or _OPAQUE in parts[:-1]:
            return True  # AUFS's own files, which every runtime leaves out
        if any(part.startswith(_WHITEOUT) for part in parts[:-1]):
            raise InvalidArgument(f"{show(b'/'.join(parts))} lies below a whiteout")
        name = parts[-1]
        if not name.startswith(_WHITEOUT):
            return False
        hidden = name.removeprefix(_WHITEOUT)
        if name != _OPAQUE and hidden in (b"", b".", b".."):
            raise InvalidArgument(f"{show(b'/'.join(parts))} is a whiteout of nothing")
        parent = self._tree.directory(b"/".join(parts[:-1]))
        if name == _OPAQUE:
            self.report.opaque[parent.path] = None
            return True
        try:
            os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent.fd)
            self.report.inodes += 1
        except FileExistsError:
            # A whiteout is about the layers below. What this layer has itself stays, a directory without the lower one's content.
            if stat.S_ISDIR(os.lstat(hidden, dir_fd=parent.fd).st_mode):
                path = _join(parent.path, hidden)
                self.report.opaque[path] = None
                self.report.implied.pop(path, None)
        return True

    def _on_implied(self, directory: Directory, new: bool) -> None:
        self._count_directory()
        (self.report.opaque if new else self.report.implied)[directory.path] = None

    def _count_directory(self) -> None:
        self.report.inodes += 1
        self.report.size += _BLOCK

    def _remove(self, parent: Directory, name: bytes) -> Directory:
        """Remove what an earlier entry of this layer put at `name`. Returns `parent`: open directories may be closed by it."""
        status = os.lstat(name, dir_fd=parent.fd)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=parent.fd)
            if not stat.S_ISLNK(status.st_mode):
                return parent
        else:
            shutil.rmtree(name, dir_fd=parent.fd)
            below = _join(parent.path, name)
            for paths in (self._times, self.report.opaque, self.report.implied):
                for path in [path for path in paths if path == below or path.startswith(below + b"/")]:
                    del paths[path]
        above = parent.path
        self._tree.forget()
        return self._tree.directory(above)

    def _own(self, fd: int, entry: Entry) -> None:
        """Owner, mode and extended attributes, in this order: a change of owner takes set-user-ID and capabilities away."""
        os.fchown(fd, *_owner(entry))
        os.fchmod(fd, entry.mode)
        for key, value in entry.xattrs.items():
            if key not in _XATTRS and (not key.startswith(b"user.") or key.startswith(b"user.overlay.")):
                self.report.ignored_xattrs += 1
                continue
            try:
                os.setxattr(fd, key, value)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE):
                    raise ResourceExhausted(
                        f"{show(entry.name)}: the file system has no room for {len(value)} bytes of the extended attribute {show(key)}"
                    ) from None
                if error.errno != errno.ENOTSUP:
                    raise
                self.report.ignored_xattrs += 1


def _components(name: bytes) -> list[bytes]:
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise InvalidArgument(f"{show(name)} has '..' in it: a layer must not point out of its root")
    if len(parts) > MAX_DEPTH:
        raise InvalidArgument(f"{show(name)} has more than {MAX_DEPTH} path components")
    return parts


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _owner(entry: Entry) -> tuple[int, int]:
    if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
        raise InvalidArgument(f"{show(entry.name)} has the impossible owner {entry.uid}:{entry.gid}")
    return entry.uid, entry.gid


def _times(entry: Entry) -> tuple[int, int]:
    mtime = max(-_MAX_TIME, min(entry.mtime_ns, _MAX_TIME))
    return mtime, mtime


def _explained(error: OSError, entry: Entry) -> Exception:
    """The kernel's refusal as what it means for this layer."""
    if (told := of_disk(error, show(entry.name))) is not None:
        return told
    match error.errno:
        case errno.ENAMETOOLONG | errno.EINVAL | errno.ELOOP | errno.EPERM:
            return InvalidArgument(f"{show(entry.name)} ({entry.type.value}) can't be made: {error.strerror}")
        case _:
            return OSError(error.errno, error.strerror, show(entry.name))

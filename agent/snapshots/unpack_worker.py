"""The process that unpacks one layer: `python -m agent.snapshots.unpack_worker`, started by `agent.snapshots.snapshotter`.

It gets a request as JSON on stdin, opens the compressed layer, shuts itself into the target directory (own namespaces, chroot,
six capabilities) before it reads the first byte of it, and writes one JSON answer into an inherited memfd. Decoders written in
C, a tar of a stranger's and the time all this takes stay out of the daemon; killing it leaves a directory that the ledger owns.

    request  {"target": path, "layer": path, "answer": fd, "diff_id": "sha256:...", "limits": {...}}
    answer   {"size", "inodes", "opaque": [...], "implied": [...], "ignored_xattrs"}  or  {"code": number, "error": sentence}
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

import zstandard
from isal import igzip, isal_zlib

from agent.errdefs import DataLoss, Internal, OrlopError, ResourceExhausted
from agent.linux import libc
from agent.linux.confinement import confine
from agent.snapshots.apply import LayerApplier, Limits
from agent.snapshots.tar import CHUNK, TarReader

CAPABILITIES = (libc.CAP_CHOWN, libc.CAP_DAC_OVERRIDE, libc.CAP_FOWNER, libc.CAP_FSETID, libc.CAP_MKNOD, libc.CAP_SETFCAP)
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
# isal's stub takes its error class for an instance of Exception.
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, cast(type[Exception], isal_zlib.IsalError), zstandard.ZstdError)


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class VerifiedStream:
    """The uncompressed layer: hashed as it is read, bounded, and damage told as what it is."""

    def __init__(self, layer: io.BufferedReader[Any], limit: int) -> None:
        self._source = decompressed(layer)
        self._limit = limit
        self._hasher = hashlib.sha256()
        self._count = 0

    def read(self, size: int) -> bytes:
        try:
            data = self._source.read(size)
        except _DAMAGE as error:
            raise DataLoss(f"the compressed layer is damaged: {error}") from error
        self._hasher.update(data)
        self._count += len(data)
        if self._count > self._limit:
            raise ResourceExhausted(f"the layer has more than {self._limit} bytes when unpacked")
        return data

    def digest(self) -> str:
        """The diff id. Reads what tar left: the padding counts, and so would data hidden behind the archive's end."""
        while self.read(CHUNK):
            pass
        return f"sha256:{self._hasher.hexdigest()}"


def decompressed(layer: io.BufferedReader[Any]) -> Readable:
    """A reader of the layer's tar stream. The first bytes tell the compression; media types are known to lie about it."""
    magic = layer.peek(4)[:4]
    if magic.startswith(_GZIP):
        return igzip.IGzipFile(fileobj=layer, mode="rb")  # type: ignore[no-untyped-call]  # isal types its C half only
    if magic == _ZSTD:
        return zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(layer, read_size=CHUNK, read_across_frames=True)
    return layer


def unpack(layer: io.BufferedReader[Any], root: str, diff_id: str, limits: Limits) -> dict[str, Any]:
    """Apply the layer to the empty directory `root`. Raises the `agent.errdefs` classes that the answer carries."""
    stream = VerifiedStream(layer, limits.uncompressed(os.fstat(layer.fileno()).st_size))
    try:
        report = LayerApplier(root, limits).apply(TarReader(stream.read))
        found = stream.digest()
    except OrlopError:
        raise
    except OSError as error:
        raise Internal(f"unpacking failed: {error.strerror} ({error.filename})") from error
    if found != diff_id:
        raise DataLoss(f"the layer's content has the digest {found}, the image's config says {diff_id}")
    return {**asdict(report), "opaque": [*map(path_to_text, report.opaque)], "implied": [*map(path_to_text, report.implied)]}


def path_to_text(path: bytes) -> str:
    """A path for JSON, which has no bytes: surrogates carry what is not UTF-8, whatever this process's locale."""
    return path.decode("utf-8", "surrogateescape")


def run(request: Mapping[str, Any]) -> dict[str, Any]:
    """Serve the request; whatever fails becomes an answer."""
    try:
        os.umask(0)
        with io.BufferedReader(io.FileIO(request["layer"]), CHUNK) as layer:
            confine(Path(request["target"]), CAPABILITIES)
            return unpack(layer, "/", request["diff_id"], Limits(**request["limits"]))
    except OrlopError as error:
        return {"code": error.code, "error": str(error)}
    except Exception as error:  # a fault of ours, or out of memory: the parent gets a sentence all the same
        return {"code": Internal.code, "error": f"the unpack worker failed: {type(error).__name__}: {error}"}


def main() -> None:
    request = json.load(sys.stdin)
    answer = json.dumps(run(request)).encode()
    with open(request["answer"], "wb") as file:
        file.write(answer)


if __name__ == "__main__":
    main()

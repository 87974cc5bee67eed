"""An OCI image as one archive, whose every byte follows from what is put in: no clock, no user, no order of a directory.

Called by `deploy.image`. Neither root nor a container engine is needed, since owners are written into the layers, not to the disk.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_MEDIA = "application/vnd.oci.image"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""The kernel's names and OCI's, which are Go's."""


@dataclass(frozen=True)
class Blob:
    """A file whose name is its digest."""

    digest: str
    size: int
    path: Path

    def descriptor(self, media_type: str, **others: object) -> dict[str, object]:
        return {"mediaType": f"{_MEDIA}.{media_type}", "digest": self.digest, "size": self.size, **others}


@dataclass(frozen=True)
class Layer:
    """A compressed layer, and the digest of what is in it (the config's `diff_ids`)."""

    blob: Blob
    diff_id: str


class _Hashed(io.RawIOBase):
    """Passes what is written on, and hashes it."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return self._target.write(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self.hash.hexdigest()}"


def write_layer(tree: Path, folder: Path, mtime: int) -> Layer:
    """Pack a directory as a layer into `folder`: sorted, everything root's, no bits but rwx, all as old as `mtime` (Unix seconds)."""
    draft = folder / f".{tree.name}"
    with draft.open("wb") as file:
        packed = _Hashed(file)
        with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0, compresslevel=6) as compressed:
            plain = _Hashed(compressed)  # type: ignore[arg-type] # it has all that is asked of it: write
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for path, member in _members(tree, mtime):
                    if member.isreg():
                        with path.open("rb") as content:
                            tar.addfile(member, content)
                    else:
                        tar.addfile(member)
    return Layer(_named(draft, packed.digest), plain.digest)


def write_document(document: Mapping[str, object], folder: Path) -> Blob:
    """A config or manifest, as JSON."""
    draft = folder / ".document"
    draft.write_bytes(_json(document))
    return _named(draft, f"sha256:{hashlib.sha256(draft.read_bytes()).hexdigest()}")


def write_archive(layers: Sequence[Layer], config: Mapping[str, object], annotations: Mapping[str, str], name: str, archive: Path) -> str:
    """Write an image of this machine's architecture; returns its manifest's digest.

    The archive is an OCI layout, with a `manifest.json` for those that read no other form (`docker load` before 25).
    """
    folder = archive.parent
    created = annotations["org.opencontainers.image.created"]
    rootfs = {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}
    # One entry per layer, in their order; a history that says who did what would have times in it.
    history = [{"created": created, "created_by": "make image"} for _ in layers]
    platform = {"architecture": ARCHITECTURES[os.uname().machine], "os": "linux"}
    described = write_document({"created": created, **platform, "config": config, "rootfs": rootfs, "history": history}, folder)
    manifest = write_document(
        {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": described.descriptor("config.v1+json"),
            "layers": [layer.blob.descriptor("layer.v1.tar+gzip") for layer in layers],
            "annotations": annotations,
        },
        folder,
    )
    names = {"org.opencontainers.image.ref.name": name.rpartition(":")[2], "io.containerd.image.name": name}
    top = manifest.descriptor("manifest.v1+json", platform=platform, annotations=names)
    blobs = [described, manifest, *(layer.blob for layer in layers)]
    places = {blob.digest: f"blobs/{blob.digest.replace(':', '/')}" for blob in blobs}
    saved = {"Config": places[described.digest], "RepoTags": [name], "Layers": [places[layer.blob.digest] for layer in layers]}
    files: dict[str, bytes | Path] = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "mediaType": f"{_MEDIA}.index.v1+json", "manifests": [top]}),
        "manifest.json": _json([saved]),
        **{places[blob.digest]: blob.path for blob in sorted(blobs, key=lambda blob: blob.digest)},
    }
    draft = folder / f".{archive.name}"
    with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.mode = 0o644
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.size = content.stat().st_size
                with content.open("rb") as file:
                    tar.addfile(member, file)
    draft.rename(archive)
    return manifest.digest


def _members(tree: Path, mtime: int) -> Iterator[tuple[Path, tarfile.TarInfo]]:
    for path in sorted(tree.rglob("*")):
        member = tarfile.TarInfo(str(path.relative_to(tree)))
        member.mtime = mtime
        if path.is_symlink():
            member.type, member.linkname, member.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
        elif path.is_dir():
            # The sticky bit is that of /tmp.
            member.type, member.mode = tarfile.DIRTYPE, 0o1777 if path.stat().st_mode & 0o1000 else 0o755
        else:
            status = path.stat()
            member.size, member.mode = status.st_size, 0o755 if status.st_mode & 0o100 else 0o644
        yield path, member


def _named(draft: Path, digest: str) -> Blob:
    path = draft.with_name(digest.removeprefix("sha256:"))
    draft.rename(path)
    return Blob(digest, path.stat().st_size, path)


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

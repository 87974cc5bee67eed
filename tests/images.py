"""A tiny image builder, for tests and the demo: OCI layouts and `docker save` archives from dictionaries.

Standard library only. It writes with `tarfile`, so that the agent's own reader meets a stranger's tar.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
OCI = "application/vnd.oci.image"


@dataclass(frozen=True)
class Node:
    """One entry of a layer. `type` is one of tarfile's: REGTYPE, DIRTYPE, SYMTYPE, LNKTYPE, CHRTYPE, BLKTYPE, FIFOTYPE."""

    type: bytes = tarfile.REGTYPE
    data: bytes = b""
    mode: int = 0o644
    uid: int = field(default_factory=os.getuid)  # so that layers unpack without root, too
    gid: int = field(default_factory=os.getgid)
    target: str = ""
    device: tuple[int, int] = (0, 0)
    mtime: float = 1_700_000_000
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


def directory(mode: int = 0o755, **fields: Any) -> Node:
    return Node(tarfile.DIRTYPE, mode=mode, **fields)


def symlink(target: str, **fields: Any) -> Node:
    return Node(tarfile.SYMTYPE, target=target, mode=0o777, **fields)


def hard_link(target: str) -> Node:
    return Node(tarfile.LNKTYPE, target=target)


def whiteout(path: str) -> tuple[str, Node]:
    """The entry that removes `path` from the layers below."""
    head, _, name = path.rpartition("/")
    return (f"{head}/.wh.{name}" if head else f".wh.{name}"), Node()


Entries = Mapping[str, bytes | Node] | Sequence[tuple[str, bytes | Node]]
"""Paths and what is there; a sequence where order or repetition matters. Bytes are a regular file."""


def layer_tar(entries: Entries, *, form: int = tarfile.PAX_FORMAT) -> bytes:
    """The uncompressed tar of a layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for path, value in entries.items() if isinstance(entries, Mapping) else entries:
            node = Node(data=value) if isinstance(value, bytes) else value
            info = tarfile.TarInfo(path)
            info.type, info.mode, info.uid, info.gid, info.mtime = node.type, node.mode, node.uid, node.gid, node.mtime
            info.linkname, info.size = node.target, len(node.data)
            info.devmajor, info.devminor = node.device
            info.pax_headers = {f"SCHILY.xattr.{name}": value.decode(errors="surrogateescape") for name, value in node.xattrs.items()}
            tar.addfile(info, io.BytesIO(node.data))
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


@dataclass
class Blobs:
    """Files of an archive being built, by name."""

    files: dict[str, bytes] = field(default_factory=dict)

    def add(self, data: bytes, media_type: str, **fields: Any) -> dict[str, Any]:
        """Store a blob and return its descriptor."""
        self.files[f"blobs/{digest(data).replace(':', '/')}"] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data), **fields}

    def add_json(self, document: Any, media_type: str, **fields: Any) -> dict[str, Any]:
        return self.add(json.dumps(document).encode(), media_type, **fields)

    def write(self, target: Path) -> Path:
        """To a directory, or to a tar if the name ends so."""
        if target.suffix == ".tar":
            target.write_bytes(layer_tar(self.files))
        else:
            for name, data in self.files.items():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(data)
        return target


def config_json(diff_ids: Iterable[str], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }


def add_image(
    blobs: Blobs, layers: Sequence[bytes], config: Mapping[str, Any] | None = None, *, compress: Callable[[bytes], bytes] = gzipped
) -> dict[str, Any]:
    """Add an image made of uncompressed layer tars; returns its manifest's descriptor."""
    document = config_json([digest(layer) for layer in layers], config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": blobs.add_json(document, f"{OCI}.config.v1+json"),
        "layers": [blobs.add(compress(layer), f"{OCI}.layer.v1.tar+gzip") for layer in layers],
    }
    return blobs.add_json(manifest, f"{OCI}.manifest.v1+json")


def add_index(blobs: Blobs, manifests: Sequence[Mapping[str, Any]]) -> None:
    """Make it a layout whose index lists these descriptors."""
    blobs.files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    blobs.files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": list(manifests)}).encode()


def named(descriptor: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**descriptor, "annotations": {"io.containerd.image.name": name}}


def make_oci_layout(target: Path, images: Mapping[str, Sequence[Entries]], config: Mapping[str, Any] | None = None) -> Path:
    """An OCI layout at `target` (a tar, if the name ends in .tar) with images by name, each a sequence of layers."""
    blobs = Blobs()
    add_index(blobs, [named(add_image(blobs, [*map(layer_tar, layers)], config), name) for name, layers in images.items()])
    return blobs.write(target)


def make_docker_archive(target: Path, images: Mapping[str, Sequence[Entries]], config: Mapping[str, Any] | None = None) -> Path:
    """What `docker save` wrote before version 25: manifest.json, <hex>.json and <number>/layer.tar."""
    blobs, entries = Blobs(), []
    for name, layers in images.items():
        tars = [layer_tar(layer) for layer in layers]
        data = json.dumps(config_json(map(digest, tars), config)).encode()
        paths = []
        for tar in tars:
            paths.append(f"{digest(tar)[7:]}/layer.tar")
            blobs.files[paths[-1]] = tar
        blobs.files[f"{digest(data)[7:]}.json"] = data
        entries.append({"Config": f"{digest(data)[7:]}.json", "RepoTags": [name] if name else None, "Layers": paths})
    blobs.files["manifest.json"] = json.dumps(entries).encode()
    return blobs.write(target)


def busybox_image(
    target: Path,
    name: str,
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    busybox: Path = Path("/bin/busybox"),
) -> Path:
    """An image of the machine's static busybox (Debian: busybox-static) with its applets, users and /tmp, and with `files`."""
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    layer: dict[str, bytes | Node] = {name: directory() for name in ("bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "var")}
    layer["tmp"] = directory(0o1777)
    layer["bin/busybox"] = Node(data=busybox.read_bytes(), mode=0o755)
    layer.update({f"bin/{applet}": symlink("busybox") for applet in applets if applet != "busybox"})
    layer["etc/passwd"] = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
    layer["etc/group"] = b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"
    layer.update(files or {})
    defaults = {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
    return make_oci_layout(target, {name: [layer]}, {**defaults, **(config or {})})

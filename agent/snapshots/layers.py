"""Committed layers: what is known of each, the chain that leads to the base, and the record beside its files.

<root>/layers/<hex of the chain id>/fs            the layer, as overlayfs wants it
<root>/layers/<hex of the chain id>/layer.json    `Layer`, written before the directory appeared; see also `settling`
<root>/l/<short>                                  symlink to .../fs, so that 100 of them fit into one page of mount options
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from agent import log

RECORD = "layer.json"
_BOOT = "boot"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_log = log.get("snapshots")


@dataclass(frozen=True)
class Layer:
    """A layer on top of its parents."""

    chain_id: str
    parent: str
    """Chain id of the layer below; empty for a base layer."""
    diff_id: str
    short: str
    """Its name in `l/`."""
    size: int
    """Bytes on disk."""
    inodes: int
    opaque: bool
    """Its root hides everything below: overlayfs has no such mark for a root, so the layers below are left out."""


def chain_id(parent: str, diff_id: str) -> str:
    """Identity of a layer together with all below it (image-spec config.md, "Layer ChainID")."""
    return f"sha256:{hashlib.sha256(f'{parent} {diff_id}'.encode()).hexdigest()}" if parent else diff_id


def chain_ids(diff_ids: tuple[str, ...]) -> list[str]:
    """The chain id of each layer of an image, base first."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(chain_id(chain[-1] if chain else "", diff_id))
    return chain


def short_name(number: int) -> str:
    """A number with as few characters as possible."""
    name = ""
    while number or not name:
        number, digit = divmod(number, len(_DIGITS))
        name = _DIGITS[digit] + name
    return name


def write_record(directory: Path, layer: Layer, boot: str) -> None:
    """Of a layer whose files may not be on disk before the end of this boot."""
    (directory / RECORD).write_text(json.dumps({**asdict(layer), _BOOT: boot}))


def write_settled_record(directory: Path, layer: Layer) -> None:
    """Of a layer whose files are on disk. Nothing happens if it is gone."""
    new = directory / f".{RECORD}"
    with suppress(FileNotFoundError), new.open("w") as file:
        file.write(json.dumps(asdict(layer)))
        file.flush()
        os.fsync(file.fileno())
        new.rename(directory / RECORD)


def load_layers(root: Path, boot: str) -> tuple[dict[str, Layer], list[str], list[Path]]:
    """What is in `layers/`, which of it may not be on disk yet, and the directories there that are no layers.

    A record that can't be read is reported, never fatal.
    """
    layers: dict[str, Layer] = {}
    unsettled: list[str] = []
    broken: list[Path] = []
    for directory in sorted(root.iterdir()):
        try:
            fields = dict(json.loads((directory / RECORD).read_bytes()))
            written_in = fields.pop(_BOOT, "")
            layer = Layer(**fields)
            if layer.chain_id != f"sha256:{directory.name}" or not (directory / "fs").is_dir():
                raise ValueError(f"its record is that of {layer.chain_id}, or it has no files")
            if written_in not in ("", boot):
                raise ValueError("the machine stopped before it was on disk")
            int(layer.short, 36), layer.size + layer.inodes
        except (OSError, ValueError, TypeError) as error:
            _log.error("not a layer", path=str(directory), error=str(error))
            broken.append(directory)
        else:
            layers[layer.chain_id] = layer
            if written_in:
                unsettled.append(layer.chain_id)
    return layers, unsettled, broken


def chain(layers: Mapping[str, Layer], top: str) -> list[Layer]:
    """The layer `top` and those below it that are visible, topmost first. Raises KeyError when one is missing."""
    found: list[Layer] = []
    while top:
        found.append(layers[top])
        top = "" if found[-1].opaque else found[-1].parent
    return found


def closure(layers: Mapping[str, Layer], tops: set[str]) -> set[str]:
    """All chain ids that must stay so that `tops` stay, opaque ones' parents included."""
    needed: set[str] = set()
    for top in tops:
        while top and top not in needed:
            needed.add(top)
            top = layers[top].parent if top in layers else ""
    return needed


def link(links: Path, layer: Layer, layers: Path) -> None:
    """Make sure that `l/<short>` leads to the layer."""
    target = os.path.relpath(layers / layer.chain_id.removeprefix("sha256:") / "fs", links)
    path = links / layer.short
    with suppress(OSError):
        if path.readlink() == Path(target):
            return
    temporary = links / f".{layer.short}"
    with suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(target)
    temporary.rename(path)

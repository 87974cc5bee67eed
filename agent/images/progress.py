"""How far an image on its way in has come. Written by `import_job` and `pull`, shown by the admin service."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    WAITING = "waiting"
    """For a free download, or for another pull that is bringing in the same layer."""
    DOWNLOADING = "downloading"
    UNPACKING = "unpacking"
    DONE = "done"


@dataclass
class LayerProgress:
    """One layer; `offset` of its `size` compressed bytes are here."""

    digest: str
    size: int
    phase: Phase
    offset: int = 0


class Progress:
    """Of one image, or of an archive of several."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._layers: dict[str, LayerProgress] = {}

    @property
    def layers(self) -> list[LayerProgress]:
        """Base first; empty until the manifest is known."""
        return list(self._layers.values())

    def add(self, chain_id: str, digest: str, size: int, phase: Phase) -> None:
        self._layers[chain_id] = LayerProgress(digest, size, phase)

    def enter(self, chain_id: str, phase: Phase) -> None:
        self._layers[chain_id].phase = phase

    def received(self, digest: str, offset: int) -> None:
        """The download of a layer has come to `offset`; back to 0 when it begins anew at another host."""
        for layer in self._layers.values():
            if layer.digest == digest and layer.phase is Phase.DOWNLOADING:
                layer.offset = offset

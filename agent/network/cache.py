"""The result cache: `<dir>/results/<network>-<sandbox>-<ifname>`, one file per attachment, in libcni's format.

libcni's, because other tools of the node read and clean that directory (`cnitool`, network daemons, CRI-O's and containerd's
own start-up). CHECK and DEL take the result of ADD from here. Blocking; `Network` calls it in threads.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent.network.attachment import Attachment
from agent.network.strictjson import dump, load_object

DIRECTORY = Path("/var/lib/cni")
_KIND = "cniCacheV1"


class ResultCache:
    """The cache below `directory` (libcni's and the default: /var/lib/cni)."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self.directory = directory / "results"

    def path(self, attachment: Attachment) -> Path:
        """The attachment's file."""
        return self.directory / f"{attachment.network}-{attachment.sandbox}-{attachment.ifname}"

    def write(self, attachment: Attachment, result: Mapping[str, Any]) -> None:
        """Store the result of ADD. Raises OSError."""
        content = {
            "kind": _KIND,
            "containerId": attachment.sandbox,
            "config": base64.b64encode(attachment.config).decode(),  # Go's form of a byte slice
            "ifName": attachment.ifname,
            "networkName": attachment.network,
            "netns": str(attachment.netns),
            "cniArgs": [list(pair) for pair in attachment.args],
            "capabilityArgs": dict(attachment.capabilities),
            "result": dict(result),
        }
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._temporary(attachment)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(dump(content))
            file.flush()
            os.fsync(descriptor)
        temporary.rename(self.path(attachment))

    def read(self, attachment: Attachment) -> dict[str, Any] | None:
        """The result of the attachment's ADD; None: there is none.

        Raises:
            OSError: there is one, but it can't be read.
            ValueError: what is there is not this attachment's.
        """
        try:
            content = load_object(self.path(attachment).read_bytes())
        except FileNotFoundError:
            return None
        result = content.get("result")
        if content.get("kind") != _KIND or content.get("containerId") != attachment.sandbox or not isinstance(result, dict):
            raise ValueError("it is not a cached result of this sandbox")
        return result

    def remove(self, attachment: Attachment) -> None:
        """Forget the attachment, for good: the ledger drops it next, and a file that a power cut brings back would be nobody's.

        Nothing there: no-op. Raises OSError.
        """
        self._temporary(attachment).unlink(missing_ok=True)
        self.path(attachment).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _temporary(self, attachment: Attachment) -> Path:
        path = self.path(attachment)
        return path.with_name(f".{path.name}")

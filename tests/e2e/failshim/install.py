"""The test's side of a failpoint shim: makes one, tells it what to do, and asks what it did."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.failshim import overlays
from tests.e2e.failshim.faults import Faults
from tests.e2e.toolbox import REPO, Pair

_PROGRAM = """\
#!/bin/sh
PYTHONPATH={repo} exec {python} -P -m tests.e2e.failshim {home} {binary} {real} {version} "$@"
"""
_HANDLER = """
[runtimes.{name}]
path = "{shim.path}"
engine = "{shim.pair.engine_path}"
sandbox = "{sandbox}"
"""


class FailShim:
    """A failpoint shim with its home in the directory `home`, in front of the real shim of `pair`."""

    def __init__(self, home: Path, pair: Pair) -> None:
        home.mkdir()
        self.pair = pair
        self._home = home
        self._faults = Faults(home)
        self._faults.set()
        self.prints(b"panic: something else than an answer\n")
        self.path = home / "containerd-shim-runc-v2"
        version = 3 if pair.shim.startswith("2") else 2
        self.path.write_text(
            _PROGRAM.format(repo=REPO, python=sys.executable, home=home, binary=self.path, real=pair.shim_path, version=version)
        )
        self.path.chmod(0o755)

    def handler(self, name: str, sandbox: str = "pinned") -> str:
        """The lines of a configuration that offer it under this name."""
        return _HANDLER.format(name=name, shim=self, sandbox=sandbox)

    @contextmanager
    def faults(self, *lines: str) -> Iterator[None]:
        """Inside, this goes wrong (`faults.py`); each must have been hit at the end."""
        self._faults.forget()
        self._faults.set(*lines)
        try:
            yield
        finally:
            self._faults.set()
        missed = set(lines) - set(self._faults.hits())
        assert not missed, f"never came to {missed}"

    def prints(self, garbage: bytes) -> None:
        """What its actions print where `garbage` is wanted."""
        (self._home / "garbage").write_bytes(garbage)

    def hits(self) -> list[str]:
        """What went wrong since the last `faults` began."""
        return self._faults.hits()

    def holder_of(self, container: str) -> int:
        """The process that holds what lies over the container's rootfs."""
        return overlays.holder_of(self._home, container)

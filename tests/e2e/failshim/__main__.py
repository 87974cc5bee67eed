"""The program: `python -m tests.e2e.failshim HOME BINARY REAL VERSION` and what a shim is called with (runtime-v2 2).

`start` makes the socket, leaves a process that serves it, and prints its address; that process runs the real shim as a child, serving at
a socket without a name, in the same bundle and with the same log. `delete` is the real one's, when the overlays are taken away.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import hashlib
import json
import os
import posixpath
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from agent.api.runtime.task.v3.shim_pb2 import DeleteResponse
from tests.e2e.failshim import overlays
from tests.e2e.failshim.faults import SLOW, Faults, crash
from tests.e2e.failshim.relay import Relay

_SOCKETS = Path("/run/containerd/s")
_SANDBOX = "io.kubernetes.cri.sandbox-id"
_PR_SET_PDEATHSIG = 1
_INHERITED = 3
"""The descriptor at which a shim that is told nothing finds its socket; the next one is its profiler's, with `-debug`."""


@dataclass(frozen=True)
class Program:
    """One call of it."""

    home: Path
    binary: str
    """As which it is called and known."""
    real: str
    version: int
    """Of the task service, which the real shim's binary is of."""
    arguments: list[str]

    @property
    def faults(self) -> Faults:
        return Faults(self.home)

    def flag(self, name: str) -> str:
        return self.arguments[self.arguments.index(f"-{name}") + 1]

    def run(self) -> int:
        if self.arguments[-1] == "start":
            return self._start()
        if self.arguments[-1] == "delete":
            return self._delete()
        return self._real()

    def _real(self) -> int:
        """Becomes the real one."""
        os.execv(self.real, [self.real, *self.arguments])

    def _misbehaves(self, point: str) -> int | None:
        """What an action does that can go wrong before it has begun; None: it goes on."""
        match self.faults.at(point, "error", "mute", "slow", "crash", "garbage"):
            case "error":
                print("it fails, as it was told to", file=sys.stderr)
                return 1
            case "mute":
                signal.pause()
            case "slow":
                time.sleep(SLOW)
            case "crash":
                crash()
            case "garbage":
                sys.stdout.buffer.write((self.home / "garbage").read_bytes())
                return 0
        return None

    # ---- start

    def _start(self) -> int:
        if (code := self._misbehaves("start")) is not None:
            return code
        annotations = json.loads(Path("config.json").read_text()).get("annotations", {})
        group = annotations.get(_SANDBOX, self.flag("id"))
        name = posixpath.normpath(posixpath.join(self.flag("address"), self.flag("namespace"), group))
        path = _SOCKETS / hashlib.sha256(name.encode()).hexdigest()
        if not _answers(path):
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(path))
            listening.listen()
            if os.fork() == 0:
                self._serve(listening, path)
        if self.faults.at("start", "lies"):  # an address at which nobody listens
            path = path.with_name("nobody")
        if self.faults.at("start", "crash-after"):
            crash()
        address = f"unix://{path}"
        if self.version < 3:
            Path("address").write_text(address)
        sys.stdout.write(address if self.version < 3 else json.dumps({"version": 3, "address": address, "protocol": "ttrpc"}))
        return 0

    def _serve(self, listening: socket.socket, path: Path) -> NoReturn:
        """The process that serves."""
        try:
            os.setpgid(0, 0)
            for number in range(3):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            log = os.open("log", os.O_WRONLY)  # which waits for a reader, as the real one does
            os.dup2(log, 1)
            os.dup2(log, 2)
            _take_the_name_of(self.binary, self.arguments[:-1])
            behind = [_unnamed_socket(), _unnamed_socket()]
            child = os.fork()
            if child == 0:
                self._become_the_real_one(behind)
            asyncio.run(self._relay(listening, behind[0].getsockname(), child))
            path.unlink(missing_ok=True)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _become_the_real_one(self, sockets: Sequence[socket.socket]) -> NoReturn:
        """In the child: it dies with its parent, and is found by the name of none, since the agent knows one shim."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        copies = [fcntl.fcntl(each, fcntl.F_DUPFD, 100) for each in sockets]
        for number, copy in enumerate(copies, _INHERITED):
            os.dup2(copy, number)
            os.close(copy)
        os.execve(self.real, ["behind-the-failshim", *self.arguments[:-1]], {**os.environ, "GOMAXPROCS": "4"})

    async def _relay(self, listening: socket.socket, behind: bytes, child: int) -> None:
        """Until the real shim ends."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there = await asyncio.open_unix_connection(behind.decode())
            await Relay(self.home, (reader, writer), there).run()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, os.kill, child, signal.SIGTERM)
        await asyncio.start_unix_server(accept, sock=listening)
        ended = asyncio.Event()
        loop.add_reader(os.pidfd_open(child), ended.set)
        await ended.wait()
        await asyncio.sleep(0.05)  # its last answers are on their way

    # ---- delete

    def _delete(self) -> int:
        if (code := self._misbehaves("delete")) is not None:
            return code
        if self.faults.at("delete", "lies"):
            sys.stdout.buffer.write(DeleteResponse(exit_status=128 + signal.SIGKILL).SerializeToString())
            return 0
        overlays.take_away(self.home, self.flag("id"))
        if kind := self.faults.at("delete", "mute-after", "crash-after"):
            subprocess.run([self.real, *self.arguments], check=False, stdout=subprocess.DEVNULL)
            if kind == "crash-after":
                crash()
            signal.pause()
        return self._real()


def _answers(path: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.connect(str(path))
        return True
    return False


def _unnamed_socket() -> socket.socket:
    """One that listens where no file has to be removed: the kernel chooses an abstract name."""
    made = socket.socket(socket.AF_UNIX)
    made.bind("")
    made.listen()
    return made


def _take_the_name_of(binary: str, arguments: Sequence[str]) -> None:
    """Be seen in /proc as that program, so that whoever looks for shims finds this one: overwrites where our own arguments are."""
    begin, end = map(int, Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[45:47])  # arg_start and arg_end
    line = b"".join(word.encode() + b"\0" for word in (binary, *arguments))
    ctypes.memmove(begin, line.rjust(end - begin, b"/"), end - begin)


if __name__ == "__main__":
    home, binary, real, version, *arguments = sys.argv[1:]
    sys.exit(Program(Path(home), binary, real, int(version), arguments).run())

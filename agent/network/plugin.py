"""Running CNI plugins: finding the executable, its environment, and what its end means (specification, section 2)."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from agent import log
from agent.aio import in_thread
from agent.errdefs import DeadlineExceeded, FailedPrecondition, OrlopError, Unavailable, Unknown
from agent.linux.processes import Command, Completed
from agent.network.result import NOT_AVAILABLE, TRY_AGAIN, UNKNOWN_CONTAINER, parse_failure
from agent.network.strictjson import excerpt

Verb = Literal["ADD", "CHECK", "DEL", "STATUS", "GC"]

BIN_DIRS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
"""Kubernetes' place for plugins, and Debian's."""

_OWN_ENVIRONMENT = frozenset({"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "WATCHDOG_USEC", "WATCHDOG_PID"})
"""The daemon's own dealings with systemd; the rest (proxies, PATH for iptables) is passed on, as libcni does."""
_BUSY_TRIES, _BUSY_PAUSE = 5, 0.5

_log = log.get("network")


class Runner(Protocol):
    """What runs a plugin: `agent.linux.processes.Processes`, or a fake."""

    async def run(self, command: Command) -> Completed: ...


@dataclass(frozen=True)
class Call:
    """The parameters of one plugin execution but for its configuration; without a sandbox for STATUS and GC."""

    verb: Verb
    sandbox: str = ""
    netns: str = ""
    ifname: str = ""
    args: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.verb} of sandbox {self.sandbox}" if self.sandbox else self.verb


class Plugins:
    """The plugins in `bin_dirs`. `cgroup` is where their processes live (`Command.cgroup`)."""

    def __init__(self, runner: Runner, bin_dirs: Iterable[Path], environ: Mapping[str, str], cgroup: str) -> None:
        self._bin_dirs = tuple(bin_dirs)
        self._runner = runner
        self._cgroup = cgroup
        self.search_path = os.pathsep.join(map(str, self._bin_dirs))
        self._environ = {key: value for key, value in environ.items() if key not in _OWN_ENVIRONMENT}

    async def find(self, types: Iterable[str]) -> dict[str, Path]:
        """The executables of those plugins that are there."""
        return await in_thread(self.look_up, frozenset(types))

    def look_up(self, types: Iterable[str]) -> dict[str, Path]:
        """`find`, blocking."""
        # The first directory comes last, and wins. os.path's isfile() doesn't raise, whatever the name.
        paths = ((name, directory / name) for name in types for directory in reversed(self._bin_dirs))
        return {name: path for name, path in paths if os.path.isfile(path)}

    async def run(self, path: Path, call: Call, config: bytes, budget: float) -> bytes:
        """Run one plugin and return what it printed.

        Raises:
            DeadlineExceeded: it did not end within `budget` seconds; it was killed.
            Unavailable: it says that trying again can help, or (STATUS) that it can't serve.
            FailedPrecondition: it can't be executed.
            Unknown: it failed; with its own words.
        """
        command = Command((str(path),), Path("/"), self._environment(call), config, budget, self._cgroup)
        try:
            completed = await self._execute(command)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(f"CNI plugin {path.name}: {call} took longer than {budget:.3g} s, it was killed") from error
        except OSError as error:
            raise FailedPrecondition(f"CNI plugin {path} can't be run: {error}") from error
        if completed.returncode:
            if (failure := _failure(path.name, call, completed)) is not None:
                raise failure
        elif completed.stderr:
            _log.debug("plugin printed on stderr", plugin=path.name, call=str(call), text=excerpt(completed.stderr))
        return completed.stdout

    async def _execute(self, command: Command) -> Completed:
        for _ in range(_BUSY_TRIES - 1):
            try:
                return await self._runner.run(command)
            except OSError as error:
                if error.errno != errno.ETXTBSY:  # being installed right now
                    raise
                await asyncio.sleep(_BUSY_PAUSE)
        return await self._runner.run(command)

    def _environment(self, call: Call) -> dict[str, str]:
        return self._environ | {
            "CNI_COMMAND": call.verb,
            "CNI_CONTAINERID": call.sandbox,
            "CNI_NETNS": call.netns,
            "CNI_IFNAME": call.ifname,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in call.args),
            "CNI_PATH": self.search_path,
        }


def _failure(plugin: str, call: Call, completed: Completed) -> OrlopError | None:
    """The error that a non-zero exit means; None: it means success."""
    failure = parse_failure(completed.stdout)
    if failure is None:
        code = completed.returncode
        end = f"exit status {code}" if code > 0 else f"signal {-code}"
        printed = excerpt(completed.stdout) or excerpt(completed.stderr)
        return Unknown(f"CNI plugin {plugin}: {call} failed with {end}, {f'printing: {printed}' if printed else 'printing nothing'}")
    if call.verb == "DEL" and failure.code == UNKNOWN_CONTAINER:
        return None  # "the runtime does not need to perform any container network cleanup" (section 5, "Error")
    text = f"CNI plugin {plugin}: {call} failed: {excerpt(str(failure).encode(errors='replace'))}"
    return Unavailable(text) if failure.code in {TRY_AGAIN, *NOT_AVAILABLE} else Unknown(text)

"""Shim binaries: which file it is, and its short-lived actions `start` and `-info` (runtime-v2 section 2).

`start` prints where the shim listens, leaves the shim running, and exits. What it wants on stdin differs between generations:
the legacy form (options alone) is tried first, since the oldest shims refuse everything else; a shim that calls that
deprecated is started with `BootstrapParams`, and so from then on. The other action, `delete`, is `shim_delete`'s.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from agent import failpoints, log, timeouts
from agent.aio import in_thread
from agent.api.runtime.bootstrap.v1.bootstrap_pb2 import LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, BootstrapParams, Extension
from agent.api.types.introspection_pb2 import RuntimeInfo
from agent.config.handlers import RuntimeHandler
from agent.errdefs import Internal, InvalidArgument, NotFound, Unknown
from agent.linux.processes import Command, Completed
from agent.runtime.v2 import bootstrap
from agent.runtime.v2.bootstrap import Bootstrap
from agent.runtime.v2.bundle import Bundle
from agent.runtime.v2.config import RuntimeConfig
from agent.runtime.v2.node import Processes

_log = log.get("runtime")

_VERSION = f"orlop {metadata.version('orlop')}"
"""Read at import: it comes from files."""
_DEPRECATED = b"deprecated API"
"""In the stderr of a shim that wants `BootstrapParams`."""


def binary_name(runtime_type: str) -> str:
    """The file name of a shim: `io.containerd.runc.v2` is `containerd-shim-runc-v2`.

    Raises:
        InvalidArgument: not such a name.
    """
    parts = runtime_type.split(".")
    if "/" in runtime_type or len(parts) < 2 or not parts[0] or not all(parts[-2:]):
        raise InvalidArgument(f"runtime type {runtime_type!r} is neither a name like io.containerd.runc.v2 nor an absolute path")
    return f"containerd-shim-{parts[-2]}-{parts[-1]}"


async def resolve(handler: RuntimeHandler) -> Path:
    """The shim's binary: where the handler says, else in PATH, else beside the daemon's own.

    Raises:
        NotFound: no such executable.
        InvalidArgument: the handler's runtime type names none.
    """
    return await in_thread(_resolve, handler)


async def still_there(binary: str, handler: RuntimeHandler) -> str:
    """The binary that a shim was started from, or, if an upgrade took it away, the handler's present one. Raises as `resolve`."""
    usable = await in_thread(_is_executable, binary)
    return binary if usable else str(await resolve(handler))


def _is_executable(path: str) -> bool:
    return os.access(path, os.X_OK)


def _resolve(handler: RuntimeHandler) -> Path:
    explicit = handler.path or handler.runtime_type
    if explicit.startswith("/"):
        if not _is_executable(explicit):
            raise NotFound(f"runtime handler {handler.name!r}: no executable shim at {explicit}")
        return Path(explicit)
    name = binary_name(handler.runtime_type)
    found = shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))
    if found is None:
        raise NotFound(f"runtime handler {handler.name!r}: no {name} in PATH ({os.environ.get('PATH', '')})")
    return Path(found)


def arguments(config: RuntimeConfig, binary: str, shim_id: str, action: str, *flags: str) -> tuple[str, ...]:
    """The command line of an action. Flags come before it: a shim takes an unknown action for "serve"."""
    debug = ("-debug",) if config.debug else ()
    return (
        binary, "-namespace", config.namespace, "-address", config.address, "-publish-binary", config.publish_binary,
        "-id", shim_id, *flags, *debug, action,
    )  # fmt: skip


def environment(config: RuntimeConfig) -> Mapping[str, str]:
    """The daemon's own, and what shims of every generation look for. They keep it for life."""
    return {
        **os.environ,
        "GOMAXPROCS": "2",
        "TTRPC_ADDRESS": config.ttrpc_address,
        "GRPC_ADDRESS": config.address,
        "NAMESPACE": config.namespace,
        "MAX_SHIM_VERSION": "2",
    }


class ShimBinaries:
    """Runs `start` and `-info` of any shim binary, and remembers what each wants on stdin."""

    def __init__(self, config: RuntimeConfig, processes: Processes) -> None:
        self._config = config
        self._processes = processes
        self._wants_params: set[tuple[str, int, int]] = set()
        """Binaries that refused the legacy form: path, inode, mtime. An upgrade is another binary."""

    async def start(self, binary: str, bundle: Bundle, options: Any | None, cgroup: str) -> Bootstrap:
        """Run `start` in `bundle`, as a member of `cgroup`, where the shim then stays. Its log FIFO must have a reader.

        Raises:
            NotFound: the binary is gone.
            DeadlineExceeded: it didn't end within its budget, and was killed. A shim may be running.
            Unknown: it failed; the text is its own.
            Internal: it printed something that is no address.
        """
        key = await in_thread(_identity, binary)
        legacy = options.SerializeToString() if options is not None else b""
        params = self._params(bundle.id, options)
        completed = await self._start(binary, bundle, params if key in self._wants_params else legacy, cgroup)
        if completed.returncode != 0 and key not in self._wants_params and _DEPRECATED in completed.stderr:
            self._wants_params.add(key)
            completed = await self._start(binary, bundle, params, cgroup)
        if completed.returncode != 0:
            raise Unknown(
                f"{binary} start for {bundle.id} ended with {completed.returncode}: {_text(completed.stderr) or 'it said nothing'}"
            )
        if completed.stderr:
            _log.info("shim start said", shim=bundle.id, text=_text(completed.stderr))
        return bootstrap.parse(completed.stdout)

    async def info(self, binary: str, options: Any | None) -> RuntimeInfo | None:
        """What the shim tells of itself and its engine; None from those of containerd 1.x, which can't.

        Raises:
            NotFound, DeadlineExceeded: as `start`.
            Internal: an answer that is no `RuntimeInfo`.
        """
        stdin = options.SerializeToString() if options is not None else b""
        completed = await self._run(
            Command((binary, "-info"), Path("/"), environment(self._config), stdin, timeouts.SHIM_START, self._config.helper_cgroup)
        )
        if completed.returncode != 0:
            return None
        try:
            return RuntimeInfo.FromString(completed.stdout)
        except DecodeError as error:
            raise Internal(f"{binary} -info printed something that is no RuntimeInfo: {error}") from error

    async def _start(self, binary: str, bundle: Bundle, stdin: bytes, cgroup: str) -> Completed:
        await failpoints.hit("runtime.shim.start")
        argv = arguments(self._config, binary, bundle.id, "start")
        return await self._run(Command(argv, bundle.path, environment(self._config), stdin, timeouts.SHIM_START, cgroup))

    async def _run(self, command: Command) -> Completed:
        try:
            return await self._processes.run(command)
        except FileNotFoundError as error:
            raise NotFound(f"{command.argv[0]} can't be run: {error}") from error

    def _params(self, shim_id: str, options: Any | None) -> bytes:
        params = BootstrapParams(
            instance_id=shim_id,
            namespace=self._config.namespace,
            log_level=LOG_LEVEL_DEBUG if self._config.debug else LOG_LEVEL_INFO,
            containerd_version=_VERSION,
            containerd_ttrpc_address=self._config.ttrpc_address,
            containerd_grpc_address=self._config.address,
            containerd_binary=self._config.publish_binary,
            extensions=[Extension(value=options)] if options is not None else [],
        )
        return params.SerializeToString()


def _identity(binary: str) -> tuple[str, int, int]:
    try:
        status = os.stat(binary)
    except FileNotFoundError as error:
        raise NotFound(f"shim binary {binary} is gone") from error
    return binary, status.st_ino, status.st_mtime_ns


def _text(data: bytes) -> str:
    return data.decode(errors="replace").strip()[:2000]

"""`SHIM delete`: takes down one container without its shim (runtime-v2 section 5).

Only `cleanup` may import this (an import contract holds it): run too early it kills a container that lives, and run after its
bundle is gone it does nothing and says that all is well. Exit status 0 is no proof either, so `cleanup` looks itself.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from agent import timeouts
from agent.aio import in_thread
from agent.api.runtime.task.v3.shim_pb2 import DeleteResponse
from agent.errdefs import FailedPrecondition, Unknown
from agent.linux.processes import Command
from agent.runtime.v2.bundle import Bundle
from agent.runtime.v2.config import RuntimeConfig
from agent.runtime.v2.node import Processes
from agent.runtime.v2.shim_binary import arguments, environment


async def run(config: RuntimeConfig, processes: Processes, binary: str, bundle: Bundle) -> str:
    """Run `delete` for the bundle's container, with the bundle as working directory: runc shims look nowhere else.

    Returns what it warned of on stderr. The exit status and pid that it prints are not used: the one is invented, the other
    can be -1.

    Raises:
        FailedPrecondition: the bundle or the binary is gone, so that it couldn't be run.
        DeadlineExceeded: it took longer than its budget, and was killed.
        Unknown: it failed, or printed something else than an answer; the text is its own.
    """
    argv = arguments(config, binary, bundle.id, "delete", "-bundle", str(bundle.path))
    command = Command(argv, bundle.path, environment(config), b"", timeouts.SHIM_DELETE, config.helper_cgroup)
    try:
        completed = await processes.run(command)
    except FileNotFoundError as error:
        missing = f"{binary} is gone" if await in_thread(bundle.path.is_dir) else "its bundle is gone"
        raise FailedPrecondition(f"`shim delete` of {bundle.id} can't be run: {missing}") from error
    said = _warnings(completed.stderr)
    if completed.returncode != 0:
        raise Unknown(f"`shim delete` of {bundle.id} ended with {completed.returncode}: {said or 'it said nothing'}")
    try:
        DeleteResponse.FromString(completed.stdout)
    except DecodeError as error:
        raise Unknown(f"`shim delete` of {bundle.id} printed something that is no answer: {completed.stdout[:120]!r}") from error
    return said


def _warnings(stderr: bytes) -> str:
    """What is worth an operator's time; a shim also says that it starts."""
    lines = stderr.decode(errors="replace").splitlines()
    return "; ".join(line for line in lines if line.strip() and "level=info" not in line and "level=debug" not in line)[:2000]

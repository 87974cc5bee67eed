"""What a runtime handler can do beyond what every one can, asked of its engine once, when the daemon starts.

`ENGINE features` prints JSON (runtime-spec, features.md): runc has it since 1.1, crun since 1.9. An engine that has no such
command, or fails, has no features: the kubelet then asks for none, and a request that needs one is refused instead of run
without. Status shows them; the spec builder insists on them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agent import log, timeouts
from agent.config.handlers import RuntimeHandler
from agent.errdefs import OrlopError, Unknown
from agent.linux.processes import Command, Completed
from agent.runtime.v2.options import is_runc

_log = log.get("runtime")
_MOUNT_SETATTR = (5, 12)
"""The kernel that brought mount_setattr(2), without which nothing can make a whole tree of mounts read-only."""


class Runner(Protocol):
    """What is needed of `agent.linux.processes.Processes`."""

    async def run(self, command: Command) -> Completed: ...


@dataclass(frozen=True)
class HandlerFeatures:
    """`no_recursive_read_only` says why a mount can't be made read-only with all below it (KEP-3857); empty: it can."""

    no_recursive_read_only: str = ""

    @property
    def recursive_read_only(self) -> bool:
        return not self.no_recursive_read_only


async def detect(handlers: Iterable[RuntimeHandler], processes: Runner, release: str = os.uname().release) -> dict[str, HandlerFeatures]:
    """The features of each handler, by name. Never fails: what can't be asked has none, and the log says why."""
    asked = list(handlers)
    found = await asyncio.gather(*(_of_handler(handler, processes, release) for handler in asked))
    return {handler.name: features for handler, features in zip(asked, found, strict=True)}


async def _of_handler(handler: RuntimeHandler, processes: Runner, release: str) -> HandlerFeatures:
    if not is_runc(handler):
        return HandlerFeatures(f"runtime handler {handler.name!r} has no engine on this host's kernel that could do it")
    engine = handler.engine or "runc"  # the shim's own default
    try:
        options = await _mount_options(engine, processes)
    except (OrlopError, OSError) as error:
        _log.warning("an engine doesn't say what it can do, and is used without", handler=handler.name, engine=engine, error=str(error))
        return HandlerFeatures(f"engine {engine} of runtime handler {handler.name!r} doesn't say that it can: {error}")
    if "rro" not in options:
        return HandlerFeatures(f"engine {engine} of runtime handler {handler.name!r} has no mount option rro")
    if _version(release) < _MOUNT_SETATTR:
        return HandlerFeatures(f"kernel {release} has no mount_setattr, which came with 5.12")
    return HandlerFeatures()


async def _mount_options(engine: str, processes: Runner) -> list[str]:
    done = await processes.run(Command((engine, "features"), Path("/"), os.environ, budget=timeouts.ENGINE_FEATURES))
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[:200]
        raise Unknown(f"`{engine} features` ended with {done.returncode}: {said}")
    try:
        features: Any = json.loads(done.stdout)
        return list(features.get("mountOptions") or ())
    except (ValueError, AttributeError, TypeError) as error:
        raise Unknown(f"`{engine} features` printed no JSON object of features: {error}") from error


def _version(release: str) -> tuple[int, ...]:
    """(6, 1) of "6.1.0-18-amd64"."""
    return tuple(map(int, re.findall("[0-9]+", release)[:2]))

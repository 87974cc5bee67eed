"""`process` of the spec: what runs, as whom, with which rights."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from agent.errdefs import InvalidArgument
from agent.pods.spec.capabilities import capabilities
from agent.pods.spec.inputs import SpecInputs
from agent.pods.spec.user import resolve

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOFILE_SOFT, _NOFILE_HARD = 1024, 524288
_OOM_SCORES = range(-1000, 1001)


def build(inputs: SpecInputs) -> dict[str, Any]:
    """Raises InvalidArgument, naming the field; NotFound for a user that the image doesn't have."""
    config, security, facts = inputs.config, inputs.security, inputs.facts
    user = resolve(security, inputs.image.user, inputs.passwd, inputs.group)
    hard = min(_NOFILE_HARD, facts.nofile_limit)
    return {
        "terminal": config.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": arguments(inputs),
        "env": environment(inputs),
        "cwd": _working_directory(inputs),
        "capabilities": capabilities(security, facts),
        # Said outright, so that containers don't inherit a daemon's LimitNOFILE=infinity; the values are systemd's default.
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": min(_NOFILE_SOFT, hard), "hard": hard}],
        "noNewPrivileges": security.no_new_privs,
        "oomScoreAdj": max(_oom_score(inputs), facts.oom_score_floor),
    }


def arguments(inputs: SpecInputs) -> list[str]:
    """Command and args over the image's entrypoint and cmd, as Kubernetes defines it.

    Raises:
        InvalidArgument: neither the config nor the image says what to run, or a word holds NUL.
    """
    config, image = inputs.config, inputs.image
    args = [*config.command, *config.args] if config.command else [*image.entrypoint, *(config.args or image.cmd)]
    if not args:
        raise InvalidArgument("config.command is empty and the image has neither entrypoint nor cmd: nothing to run")
    _check_no_nul(args, "command")
    return args


def environment(inputs: SpecInputs) -> list[str]:
    """Image, then CRI, the last of a name wins. Values are bytes in the CRI: what isn't UTF-8 is carried as surrogates
    (PEP 383), which config.json has as escapes. What engines make of those is told in tests/e2e/test_spec.py.

    Raises:
        InvalidArgument: a name that is empty or holds '=' or NUL.
    """
    merged: dict[str, str] = {}
    if inputs.config.tty:
        merged["TERM"] = "TERM=xterm"
    merged["PATH"] = _PATH
    merged["HOSTNAME"] = f"HOSTNAME={inputs.sandbox.config.hostname or os.uname().nodename}"
    _check_no_nul(inputs.image.env, "environment of the image")
    for entry in inputs.image.env:
        merged[entry.partition("=")[0]] = entry
    for variable in inputs.config.envs:
        if not variable.key or "=" in variable.key or "\0" in variable.key or b"\0" in variable.value:
            raise InvalidArgument(f"config.envs: {variable.key!r} is not the name of an environment variable, or its value holds NUL")
        merged[variable.key] = f"{variable.key}={variable.value.decode('utf-8', 'surrogateescape')}"
    return list(merged.values())


def _working_directory(inputs: SpecInputs) -> str:
    field = "config.working_dir" if inputs.config.working_dir else "the image's working directory"
    directory = inputs.config.working_dir or inputs.image.working_dir or "/"
    if not directory.startswith("/"):
        raise InvalidArgument(f"{field} {directory!r} is not an absolute path")
    _check_no_nul([directory], field)
    return directory


def _oom_score(inputs: SpecInputs) -> int:
    score = inputs.config.linux.resources.oom_score_adj
    if score not in _OOM_SCORES:
        raise InvalidArgument(f"config.linux.resources.oom_score_adj {score} is not between -1000 and 1000")
    return score


def _check_no_nul(texts: Iterable[str], what: str) -> None:
    for text in texts:
        if "\0" in text:
            raise InvalidArgument(f"{what}: {text!r} holds NUL, where for the kernel it ends")

"""What the race tests share: calls beside others, shims that are stopped for a while, and processes by what they run."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from tests.e2e.client import Client, Pod
from tests.e2e.node import processes, shims


def running(*command: str) -> list[int]:
    """The numbers of the processes that run this very command."""
    return [process.pid for process in processes() if process.argv == command]


@contextmanager
def mute(pod: Pod) -> Iterator[int]:
    """The pod's shim is stopped meanwhile: it accepts connections, and answers nothing. Its number."""
    [shim] = shims(pod.id)
    os.kill(shim.pid, signal.SIGSTOP)
    try:
        yield shim.pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(shim.pid, signal.SIGCONT)


@contextmanager
def process_with_number(number: int) -> Iterator[None]:
    """A stranger, in the node's own namespaces, with the number of a process that has ended."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    for _ in range(1000):  # until nobody else forks in between
        last.write_text(str(number - 1))
        stranger = subprocess.Popen(["sleep", "1000"])
        if stranger.pid == number:
            break
        stranger.kill()
        stranger.wait()
    else:
        raise AssertionError(f"nobody got the number {number}")
    try:
        yield
    finally:
        stranger.kill()
        stranger.wait()


def code_of(call: Future[Any], within: float = 60) -> grpc.StatusCode:
    """How a call beside ended."""
    error = call.exception(within)
    if error is None:
        return grpc.StatusCode.OK
    assert isinstance(error, grpc.RpcError), error
    return error.code()


def code_of_call(act: Callable[[], object]) -> grpc.StatusCode:
    """How a call ends that is made now."""
    try:
        act()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def owned(kubelet: Client, *owners: str) -> list[str]:
    """The kinds of what these sandboxes and containers own, by the ledger."""
    return sorted(entry.kind for entry in kubelet.ledger() if entry.sandbox in owners or entry.container in owners)

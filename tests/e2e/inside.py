"""What runs inside of a container, for tests of what it finds there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, Pod


def linux(**security: Any) -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(**security))


def said(kubelet: Client, pod: Pod, command: Sequence[str] | str = (), *, code: int = 0, **config: Any) -> list[str]:
    """The lines that a container with this command, or shell script, printed before it ended with `code`."""
    command = ["sh", "-c", command] if isinstance(command, str) else command
    container = kubelet.run_container(pod, command, **config)
    status = kubelet.wait_exit(container)
    lines = [line.text for line in kubelet.logs(container)]
    assert status.exit_code == code, lines
    return lines


def proc_status(lines: Sequence[str]) -> dict[str, str]:
    """Fields of /proc/self/status."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

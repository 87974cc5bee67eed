"""A node without plugins: executables that are never executed, a runner that answers for them, and pins of namespaces."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.errdefs import OrlopError
from agent.linux.processes import Command, Completed
from agent.network import Network
from cri.api import api_pb2

NETNS = Path("/run/netns/cni-1")
ADDRESSES = ({"address": "10.1.0.7/16", "interface": 1}, {"address": "fd00::7/64", "interface": 1})
INTERFACES = ({"name": "veth1"}, {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": str(NETNS)})


def printed(value: object = None, returncode: int = 0, stderr: bytes = b"") -> Completed:
    """A plugin's end; `value` goes to stdout, as JSON unless it is bytes."""
    stdout = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
    return Completed(returncode, stdout, stderr)


def result(version: str = "1.0.0", **more: object) -> dict[str, object]:
    return {"cniVersion": version, "interfaces": list(INTERFACES), "ips": list(ADDRESSES), **more}


def conflist(*plugins: str | dict[str, Any], name: str = "podnet", version: str = "1.0.0", **more: object) -> bytes:
    entries = [{"type": plugin} if isinstance(plugin, str) else plugin for plugin in plugins or ("bridge", "portmap")]
    return json.dumps({"cniVersion": version, "name": name, "plugins": entries, **more}).encode()


def pod(**more: Any) -> api_pb2.PodSandboxConfig:
    metadata = api_pb2.PodSandboxMetadata(name="web", namespace="default", uid="u-1", attempt=0)
    return api_pb2.PodSandboxConfig(**({"metadata": metadata} | more))


@dataclass(frozen=True)
class Ran:
    """One execution of a plugin, as it saw it."""

    plugin: str
    verb: str
    env: Mapping[str, str]
    config: dict[str, Any]
    command: Command


Answer = Callable[[Ran], Completed | Awaitable[Completed]]


@dataclass
class FakeRunner:
    """Answers for the plugins by `VERB plugin`; an ADD that nothing was said about gives addresses, the rest just works."""

    answers: dict[str, Answer | Completed | Exception] = field(default_factory=dict)
    ran: list[Ran] = field(default_factory=list)

    async def run(self, command: Command) -> Completed:
        one = Ran(Path(command.argv[0]).name, command.env["CNI_COMMAND"], command.env, json.loads(command.stdin), command)
        self.ran.append(one)
        answer = self.answers.get(f"{one.verb} {one.plugin}")
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Completed):
            return answer
        if answer is not None:
            outcome = answer(one)
            return outcome if isinstance(outcome, Completed) else await outcome
        return printed(one.config.get("prevResult") or result(one.config["cniVersion"]) if one.verb == "ADD" else None)

    @property
    def steps(self) -> list[str]:
        """What ran, in order."""
        return [f"{one.verb} {one.plugin}" for one in self.ran]


@dataclass
class FakePins:
    """Namespaces by pin."""

    inodes: dict[Path, int] = field(default_factory=lambda: {NETNS: 4026532001})
    error: OSError | None = None

    async def inode(self, pin: Path) -> int | None:
        if self.error is not None:
            raise self.error
        return self.inodes.get(pin)


class Node:
    """A node below a directory, with a `Network` on it."""

    def __init__(self, root: Path, *plugins: str) -> None:
        self.conf_dir, self.bin_dir, self.cache_dir = root / "net.d", root / "bin", root / "cni"
        self.conf_dir.mkdir()
        self.bin_dir.mkdir()
        for plugin in plugins or ("bridge", "portmap"):
            (self.bin_dir / plugin).touch(0o755)
        self.runner = FakeRunner()
        self.pins = FakePins()
        self.conf_template: Path | None = None
        self.chains: list[str] = []
        """Of which sandbox they were looked for."""
        self.iptables: OrlopError | None = None
        self.network = self.restarted()

    def restarted(self) -> Network:
        """Another incarnation of the daemon on the same node."""
        return Network(
            self.runner,
            self.pins,
            conf_dir=self.conf_dir,
            conf_template=self.conf_template,
            bin_dirs=(self.bin_dir.parent / "nowhere", self.bin_dir),
            cache_dir=self.cache_dir,
            environ={"PATH": "/usr/sbin:/usr/bin", "NOTIFY_SOCKET": "/run/systemd/notify"},
            remove_chains=self._remove_chains,
        )

    def _remove_chains(self, network: str, sandbox: str) -> list[str]:
        if self.iptables is not None:
            raise self.iptables
        self.chains.append(f"{network} {sandbox}")
        return []

    def configure(self, content: bytes, name: str = "10-podnet.conflist") -> None:
        (self.conf_dir / name).write_bytes(content)

    def cached(self) -> list[str]:
        return sorted(path.name for path in self.cache_dir.rglob("*") if path.is_file())

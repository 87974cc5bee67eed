"""CNI plugins of the simulated node: bridge with host-local, and portmap.

Their addresses are files, as host-local's are; their interfaces and nat chains are rows. As the real ones they do half of it when they
are killed half-way, free what they find when they are asked again, and leave their nat chain when the namespace has gone before DEL.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from agent.linux.processes import Command
from tests.unit.simulation.node import Job, Node

NETWORK = "pods"
_POOL = 40
CONFIG = {
    "cniVersion": "1.0.0",
    "name": NETWORK,
    "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap", "capabilities": {"portMappings": True}}],
}


class Network:
    """What plugins have made."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.leases = node.cni_dir / "networks"
        self.interfaces: dict[str, int] = {}
        """By sandbox: the inode of the namespace that its interface is in."""
        self.chains: set[tuple[str, str]] = set()
        """Plugin and sandbox."""
        self.busy: dict[str, Job] = {}
        node.kernel.at_namespace_end = self.namespace_ended
        node.remove_chains = self._remove_chains
        node.programs["bridge"] = self._run
        node.programs["portmap"] = self._run
        (node.cni_dir / "net.d" / "10-pods.conflist").write_text(json.dumps(CONFIG))
        (self.leases / NETWORK).mkdir()

    def lease_of(self, sandbox: str) -> str:
        """The address that is leased to it; empty: none."""
        directory = f"{self.leases}/{NETWORK}"
        for address in os.listdir(directory):
            if _first_line(f"{directory}/{address}") == sandbox:
                return address
        return ""

    def left(self) -> list[str]:
        """What is there of anybody."""
        found = [f"address {path.name} of {path.read_text()[:12]}" for path in (self.leases / NETWORK).iterdir()]
        return found + [f"interface of {sandbox}" for sandbox in self.interfaces] + [f"nat chain {chain}" for chain in sorted(self.chains)]

    async def _run(self, job: Job, command: Command) -> int:
        node, sandbox, verb = self._node, command.env["CNI_CONTAINERID"], command.env["CNI_COMMAND"]
        plugin = Path(command.argv[0]).name
        if (other := self.busy.get(sandbox)) is not None and other.proc.alive:
            node.broken(f"{verb} of {sandbox} by {plugin}, while another CNI operation for it runs")
        self.busy[sandbox] = job
        await node.step()
        mode = node.fault(f"cni {verb}")
        if mode == "fails":
            return _failure(job, "no more tries")
        if mode == "hangs":
            await asyncio.Event().wait()
        if mode == "garbage":
            job.says(b"warning: something")
            return 0
        if mode == "slow":
            await asyncio.sleep(20)
        path = command.env["CNI_NETNS"]
        inode = node.kernel.pins.get(Path(path)) if path else None
        if path and inode is None:
            return _failure(job, f"failed to open netns {path}")
        if verb == "ADD":
            return await self._add(job, plugin, sandbox, inode, json.loads(command.stdin), mode)
        if verb == "DEL":
            await self._delete(plugin, sandbox, inode)
            if mode == "fails late":
                return _failure(job, "iptables: resource temporarily unavailable")
        return 0

    async def _add(self, job: Job, plugin: str, sandbox: str, inode: int | None, config: dict[str, Any], mode: str) -> int:
        step = self._node.step
        if plugin == "portmap":
            self.chains.add((plugin, sandbox))
            await step()
            if mode == "fails late":
                return _failure(job, "iptables: resource temporarily unavailable")
            job.says(json.dumps(config["prevResult"]).encode())
            return 0
        if inode is None:
            return _failure(job, "no netns")
        taken = set(os.listdir(self.leases / NETWORK))
        free = next((ip for number in range(2, _POOL) if (ip := f"10.88.0.{number}") not in taken), "")
        if not free:
            return _failure(job, "no IP addresses available in range set")
        (self.leases / NETWORK / free).write_text(f"{sandbox}\neth0")
        await step()
        if sandbox in self.interfaces:
            return _failure(job, "container veth name eth0 already exists")
        self.interfaces[sandbox] = inode
        await step()
        self.chains.add((plugin, sandbox))
        await step()
        if mode == "fails late":
            return _failure(job, "failed to set up IPMasq")
        result = {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": "x"}],
            "ips": [{"address": f"{free}/16", "interface": 0}],
        }
        job.says(json.dumps(result).encode())
        return 0

    async def _delete(self, plugin: str, sandbox: str, inode: int | None) -> None:
        step = self._node.step
        if plugin == "portmap":
            self.chains.discard((plugin, sandbox))
            return
        while address := self.lease_of(sandbox):
            (self.leases / NETWORK / address).unlink()
        await step()
        if inode is None:  # the chain's name is made of the address, which is read from the interface
            return
        self.interfaces.pop(sandbox, None)
        await step()
        self.chains.discard((plugin, sandbox))

    def _remove_chains(self, network: str, sandbox: str) -> list[str]:
        """`agent.network.chains.remove_chains_of`."""
        left = [chain for chain in self.chains if chain[1] == sandbox]
        self.chains.difference_update(left)
        return [f"chain of {plugin}" for plugin, _ in left]

    def namespace_ended(self, inode: int) -> None:
        """Its interfaces end with it."""
        for sandbox in [sandbox for sandbox, where in self.interfaces.items() if where == inode]:
            del self.interfaces[sandbox]


def _first_line(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 100).partition(b"\n")[0].decode()
    finally:
        os.close(descriptor)


def _failure(job: Job, text: str) -> int:
    job.says(json.dumps({"cniVersion": "1.0.0", "code": 999, "msg": text}).encode())
    return 1

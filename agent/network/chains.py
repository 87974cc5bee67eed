"""Chains that the bridge, ptp and portmap plugins make in the nat table, one or two for each attachment, and who they are for.

A DEL after the network namespace or the interface in it has vanished leaves them (bridge 1.1 and 1.9): it takes the addresses that they are
for from that interface. So a DEL that was cut off after it had removed the interface can't be made good by another one: `remove_chains_of`,
called by `Network.delete`, does that; `orlop reap` removes what other runtimes left.
Their names are hashes; the rule that leads to one says in its comment for which container it is. Read by
iptables-save, which also knows what the plugins did by way of nftables' iptables. Blocking; callers use a thread.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agent.errdefs import FailedPrecondition, Unavailable

TOOLS = ("iptables", "ip6tables")
_BUDGET = 10.0
"""Seconds for one call; beside a firewall that is being loaded, they wait for each other."""
_MAX_NAME = 28
"""Characters of a chain's name, as the plugins cut it."""
_CHAIN = re.compile(r":(CNI-(?:DN-|SN-)?[0-9a-f]{16,}) ")
_RULE = re.compile(r'-A (\S+) (.*--comment "(?:dnat |snat )?name: \\"(?:.*?)\\" id: \\"(.*?)\\"".*? -j (CNI-(?:DN-|SN-)?[0-9a-f]{16,}))')

Run = Callable[[Sequence[str]], str]
"""A command's output. Raises FileNotFoundError: there is no such program; Unavailable: it failed."""


@dataclass(frozen=True)
class Chain:
    """One chain."""

    tool: str
    """"iptables" or "ip6tables"."""
    name: str
    sandbox: str
    """Empty: no rule leads to it, so that it does nothing and can't say."""
    jumps: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Rules that lead to it: the chain they are in, and what they are, as iptables-save prints it."""


def run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_BUDGET, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} didn't end within {_BUDGET:g} s") from error
    if done.returncode:
        raise Unavailable(f"{shlex.join(command)} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")


def read_chains(run: Run = run) -> list[Chain]:
    """All of them, of both families; none where there is no iptables, since the plugins needed it.

    Raises:
        Unavailable: it failed.
    """
    found = []
    for tool in TOOLS:
        try:
            found += _parse(tool, run([f"{tool}-save", "-t", "nat"]))
        except FileNotFoundError:
            continue
    return found


def remove_chain(tool: str, name: str, sandbox: str, run: Run = run) -> bool:
    """Remove a chain and the rules that lead to it; whether it was there.

    Raises:
        FailedPrecondition: it is for another container by now.
        Unavailable: iptables failed.
    """
    chain = next((one for one in read_chains(run) if (one.tool, one.name) == (tool, name)), None)
    if chain is None:
        return False
    if chain.sandbox != sandbox:
        raise FailedPrecondition(f"chain {name} is for {chain.sandbox or 'nobody'} now, and was for {sandbox or 'nobody'}")
    _remove(chain, run)
    return True


def remove_chains_of(network: str, sandbox: str, run: Run = run) -> list[str]:
    """Remove what is left of an attachment, once its plugins have no more to do with it. Returns the names.

    A chain that no rule leads to any more is known by its name, which is made of `network` and `sandbox`.

    Raises:
        Unavailable: iptables failed.
    """
    names = _names(network, sandbox)
    left = [chain for chain in read_chains(run) if chain.sandbox == sandbox or (not chain.sandbox and chain.name in names)]
    for chain in left:
        _remove(chain, run)
    return [f"{chain.name} of {chain.tool}" for chain in left]


def _remove(chain: Chain, run: Run) -> None:
    table = [chain.tool, "--wait", "-t", "nat"]
    for parent, rule in chain.jumps:
        run([*table, "-D", parent, *shlex.split(rule)])
    run([*table, "-F", chain.name])
    run([*table, "-X", chain.name])


def _names(network: str, sandbox: str) -> set[str]:
    digest = hashlib.sha512(f"{network}{sandbox}".encode()).hexdigest()
    return {f"CNI-{prefix}{digest}"[:_MAX_NAME] for prefix in ("", "DN-", "SN-")}


def _parse(tool: str, saved: str) -> list[Chain]:
    names: list[str] = []
    jumps: dict[str, list[tuple[str, str]]] = {}
    sandboxes: dict[str, str] = {}
    for line in saved.splitlines():
        if found := _CHAIN.match(line):
            names.append(found[1])
        elif found := _RULE.fullmatch(line):
            jumps.setdefault(found[4], []).append((found[1], found[2]))
            sandboxes[found[4]] = found[3]
    return [Chain(tool, name, sandboxes.get(name, ""), tuple(jumps.get(name, ()))) for name in names]

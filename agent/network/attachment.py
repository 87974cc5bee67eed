"""An attachment: one sandbox on one network. Everything that ADD needs, and later DEL, whatever became of the
configuration directory meanwhile (decisions.md 18). `Network.plan` makes it, the ledger stores it before ADD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.errdefs import DataLoss

IFNAME = "eth0"


@dataclass(frozen=True)
class Attachment:
    """The parameters of CNI operations on a sandbox (specification, section 3, "Attachment Parameters")."""

    sandbox: str
    netns: Path
    """The pin of the sandbox's network namespace. When nothing is mounted there any more, DEL passes no namespace."""
    network: str
    version: str
    """The CNI version of ADD: an agent that speaks newer ones still deletes in this one."""
    config: bytes = field(repr=False)
    """The configuration list as it was at ADD."""
    args: tuple[tuple[str, str], ...] = ()
    """CNI_ARGS."""
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    """Capability arguments; each plugin gets those that it declares."""
    ifname: str = IFNAME

    def to_json(self) -> dict[str, Any]:
        """For the ledger; `from_json` reads it."""
        return {
            "sandbox": self.sandbox,
            "netns": str(self.netns),
            "network": self.network,
            "version": self.version,
            "config": self.config.decode(),
            "args": [list(pair) for pair in self.args],
            "capabilities": dict(self.capabilities),
            "ifname": self.ifname,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Attachment:
        """Read what `to_json` wrote; other keys are left alone (the ledger merges what a holder adds).

        Raises:
            DataLoss: something is missing or of the wrong type.
        """
        try:
            texts = {key: data[key] for key in ("sandbox", "netns", "network", "version", "config", "ifname")}
            args = tuple((key, value) for key, value in data["args"])
            capabilities = dict(data["capabilities"])
            config = str(texts["config"]).encode()
        except (KeyError, TypeError, ValueError) as error:
            raise DataLoss(f"stored CNI attachment can't be read: {error!r}") from error
        if not all(isinstance(text, str) for text in [*texts.values(), *(part for pair in args for part in pair)]):
            raise DataLoss(f"stored CNI attachment of sandbox {texts['sandbox']!r} has a value of the wrong type")
        return cls(
            sandbox=texts["sandbox"],
            netns=Path(texts["netns"]),
            network=texts["network"],
            version=texts["version"],
            config=config,
            args=args,
            capabilities=capabilities,
            ifname=texts["ifname"],
        )

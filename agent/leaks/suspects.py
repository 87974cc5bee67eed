"""Things that are another runtime's, or could be: leaks only if that runtime says that it doesn't have what they are for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from agent.leaks.finding import Finding, State
from agent.leaks.foreign import Life
from agent.leaks.look import Look
from agent.leaks.owners import Runtime


@dataclass(frozen=True)
class Suspect:
    """Something that is no leak if `identifier` lives. `finding` is what is said if it doesn't."""

    finding: Finding
    identifier: str
    """A sandbox, container or uid; empty: nobody's, and so alive only as long as that can't be told."""
    runtime: Runtime | None = None
    """Whose it is, if that is known."""
    ageless: bool = False
    """The node doesn't say since when it is there, and something else that is older tells when it is being made."""


def judged(look: Look, suspects: Iterable[Suspect]) -> Iterator[Finding]:
    """Those that are leaks, and one finding for each kind and runtime of which it can't be told."""
    unknown: dict[object, list[Suspect]] = {}
    for suspect in suspects:
        if not suspect.ageless and look.young(suspect.finding.since):
            continue
        life = look.foreign.life(suspect.identifier, suspect.runtime)
        if life is Life.GONE:
            yield suspect.finding
        elif life is Life.UNKNOWN:
            unknown.setdefault((suspect.finding.kind, suspect.runtime), []).append(suspect)
    for group in unknown.values():
        yield _unknown(look, group)


def _unknown(look: Look, group: Sequence[Suspect]) -> Finding:
    first = group[0]
    whose = str(first.runtime) if first.runtime else "other runtimes"
    return replace(
        first.finding,
        what=f"what {whose} may have",
        state=State.UNKNOWN,
        why=f"{len(group)} of this kind, {first.finding.what} among them; {look.foreign.problem(first.runtime)}",
        releases=f"Nothing before {whose} can be asked: what they don't have then is a leak",
        since=None,
        identity="",
        pins="",
        targets=(),
    )

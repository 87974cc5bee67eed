"""What the ledger stores: intents and resources, as values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

from agent.store.kinds import KINDS, POSITION, Kind

JSON: TypeAlias = Any
"""Whatever `json.dumps` takes. Only the releaser of the kind knows its shape."""


class ResourceId(NamedTuple):
    """Identity of a resource: keys are unique within their kind."""

    kind: Kind
    key: str

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


class State(StrEnum):
    """
    intended --hold--> held --+
        |                     |
        +--------+------------+
                 | release begins
                 v
             releasing --failure--> failed --retry--> releasing
                 |
                 +--success--> (dropped: no row)
    """

    INTENDED = "intended"
    """May or may not exist: the act was allowed to begin."""
    HELD = "held"
    RELEASING = "releasing"
    """Its release is decided; it is under way, waits for a user to be gone, or was cut off by a crash."""
    FAILED = "failed"
    """The last release failed; `next_attempt` says when it is tried again."""


@dataclass(frozen=True)
class Intent:
    """What a verb is about to acquire. `container` is empty for what belongs to the sandbox itself, its own task included."""

    kind: Kind
    key: str
    sandbox: str
    container: str = ""
    data: Mapping[str, JSON] = field(default_factory=dict)

    @property
    def id(self) -> ResourceId:
        return ResourceId(self.kind, self.key)


@dataclass(frozen=True)
class Resource:
    """One external resource that the agent owns, or may own.

    Times are Unix seconds. `attempts` counts failed releases, `error` tells the last failure and `failed_since` the time
    of the first one.
    """

    kind: Kind
    key: str
    sandbox: str
    container: str
    state: State
    data: Mapping[str, JSON]
    attempts: int
    error: str
    created: float
    failed_since: float | None
    next_attempt: float | None

    @classmethod
    def intended(cls, intent: Intent, now: float) -> Resource:
        return cls(
            kind=intent.kind,
            key=intent.key,
            sandbox=intent.sandbox,
            container=intent.container,
            state=State.INTENDED,
            data=dict(intent.data),
            attempts=0,
            error="",
            created=now,
            failed_since=None,
            next_attempt=None,
        )

    @property
    def id(self) -> ResourceId:
        return ResourceId(self.kind, self.key)

    @property
    def owner(self) -> str:
        """For people, and unique per sandbox: who owns it, or what it is if nobody does (a blob that is coming in)."""
        return f"sandbox {self.sandbox}" if self.sandbox else str(self.id)

    def held(self, data: Mapping[str, JSON]) -> Resource:
        """With `data` merged in. A release that has been decided already stays decided."""
        state = State.HELD if self.state in (State.INTENDED, State.HELD) else self.state
        return replace(self, state=state, data={**self.data, **data})

    def releasing(self) -> Resource:
        return replace(self, state=State.RELEASING, next_attempt=None)

    def failed(self, error: str, now: float, next_attempt: float) -> Resource:
        since = now if self.failed_since is None else self.failed_since
        # An OSError can carry a file name that is not UTF-8, which the database would refuse.
        text = error.encode(errors="backslashreplace").decode()[:2000]
        return replace(self, state=State.FAILED, attempts=self.attempts + 1, error=text, failed_since=since, next_attempt=next_attempt)

    def due(self, now: float) -> bool:
        """Whether its release is decided and may be tried at `now`."""
        if self.state is State.FAILED:
            return self.next_attempt is None or self.next_attempt <= now
        return self.state is State.RELEASING

    def uses(self, other: Resource, kinds: frozenset[Kind] | None = None) -> bool:
        """Whether `other` must outlive this one: same owner, and a kind that this kind uses (if `kinds` is given: one of these)."""
        if not self.sandbox or self.sandbox != other.sandbox or other.container not in ("", self.container):
            return False
        if kinds is not None:
            return other.kind in kinds
        if other.kind is self.kind:
            return KINDS[self.kind].sandbox_last and bool(self.container) and not other.container
        return other.kind in KINDS[self.kind].uses

    def to_json(self) -> dict[str, JSON]:
        """For the admin API, the page and `orlop explain`: a snapshot that nothing in the ledger shares."""
        return {
            "kind": self.kind.value,
            "key": self.key,
            "sandbox": self.sandbox,
            "container": self.container,
            "state": self.state.value,
            "data": json.loads(json.dumps(dict(self.data))),
            "attempts": self.attempts,
            "error": self.error,
            "created": self.created,
            "failed_since": self.failed_since,
            "next_attempt": self.next_attempt,
        }


def release_position(resource: Resource) -> tuple[int, bool]:
    """Sort key of the release order; sort what is newest first with it, as the sort is stable."""
    return POSITION[resource.kind], KINDS[resource.kind].sandbox_last and not resource.container

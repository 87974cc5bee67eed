"""What happened to tasks, told to whoever subscribed: the v2 manager publishes, the pods layer acts.

Each init's exit is published once (invariant 4), `TaskExit` before `TaskDelete`. Publishing never blocks and never fails.
"""

from agent.events.exchange import Exchange, Subscription
from agent.events.types import UNKNOWN_STATUS, Event, Exit, TaskDelete, TaskExit, TaskOOM

__all__ = ["UNKNOWN_STATUS", "Event", "Exchange", "Exit", "Subscription", "TaskDelete", "TaskExit", "TaskOOM"]

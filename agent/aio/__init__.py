"""Structured concurrency: supervised tasks, keyed locks, detached cleanup, threads, pidfd waits.

No task of the agent is made elsewhere: each has an owner (a `Supervisor`), a name and an end.
"""

from agent.aio.flights import Flights
from agent.aio.locks import KeyedLock
from agent.aio.supervisor import Supervisor
from agent.aio.threads import in_thread
from agent.aio.together import together
from agent.aio.waiting import within

__all__ = ["Flights", "KeyedLock", "Supervisor", "in_thread", "together", "within"]

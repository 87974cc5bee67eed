"""Leak detectors: what is on the node that neither the ledger nor another runtime there owns, and what a ledger entry owns that isn't
there any more.

`orlop audit` runs them once, the daemon and `orlop watch` every minute (`watch`). They only read; `orlop reap` releases what they found.
"""

from agent.leaks.audit import ReadLedger, audit
from agent.leaks.finding import Finding, State, Thing
from agent.leaks.owned import LedgerRead
from agent.leaks.places import Places
from agent.leaks.watch import watch

__all__ = ["Finding", "LedgerRead", "Places", "ReadLedger", "State", "Thing", "audit", "watch"]

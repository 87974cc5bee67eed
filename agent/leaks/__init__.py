"""Leak detectors: what the agent left on the node that no ledger entry owns, and what an entry owns that isn't there any more.

`orlop audit` runs them once, the daemon every minute (`watch`). They only read: releasing is the ledger's business.
"""

from agent.leaks.audit import ReadLedger, audit
from agent.leaks.finding import Finding, State, Thing
from agent.leaks.owned import LedgerRead
from agent.leaks.places import Places
from agent.leaks.watch import watch

__all__ = ["Finding", "LedgerRead", "Places", "ReadLedger", "State", "Thing", "audit", "watch"]

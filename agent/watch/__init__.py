"""`orlop watch`: the audits of a node whose CRI is somebody else's, told by metrics and the log. It only reads, and owns nothing."""

from agent.watch.service import run

__all__ = ["run"]

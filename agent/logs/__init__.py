"""Standard streams of containers and execs: FIFOs, the CRI log files, and the process that copies from one to the other.

    shim --FIFO--> log copier --records--> log file         `LogCopier` starts and tells it (client.py, protocol.py)
    shim --FIFO--> the daemon                               `Capture`, for ExecSync

The copier (copier.py: control; turns.py, container_log.py, log_file.py: data; framing.py: the format) is a process of its
own, so that a chatty container costs the CRI no latency, and survives the daemon. A FIFO's bytes are gone when its last end
closes, so both processes hold the read end of each: either may restart alone and no line is lost.
"""

from agent.logs.capture import Capture
from agent.logs.client import ContainerState, DrainResult, LogCopier
from agent.logs.fifos import Stdio

__all__ = ["Capture", "ContainerState", "DrainResult", "LogCopier", "Stdio"]

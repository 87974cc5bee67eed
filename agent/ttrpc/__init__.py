"""ttrpc, the RPC of containerd's shims: `Client` for the calls to a shim, `Server` for the events that shims send us.

`protocol` holds the rules of the wire and does no I/O; `client` and `server` put asyncio around it. Used by `agent.runtime.v2`.
"""

from agent.ttrpc.client import Client
from agent.ttrpc.server import Metadata, Server

__all__ = ["Client", "Metadata", "Server"]

"""CNI: the pod network of the node, specification 0.3.1 to 1.1.

`Network` is what others use; `inventory` is for `orlop audit`. `conf`, `result`, `podargs` and `strictjson` are sans-IO.
"""

from agent.network.attachment import Attachment
from agent.network.inventory import Inventory
from agent.network.leases import Lease, read_leases
from agent.network.network import Network, NetworkStatus
from agent.network.result import Interface, Result

__all__ = ["Attachment", "Interface", "Inventory", "Lease", "Network", "NetworkStatus", "Result", "read_leases"]

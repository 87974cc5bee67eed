"""UpdateRuntimeConfig: the kubelet's word for which addresses this node's pods shall have.

Where an operator has set `cni.conf_template`, a network configuration is made of it, as containerd does; elsewhere the network
comes from its own installer, and the word is noted in the log.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

from agent import log
from agent.errdefs import InvalidArgument
from agent.pods.context import Pods
from cri.api import api_pb2 as cri

_log = log.get("pods")

_FIELD = "runtime_config.network_config.pod_cidr"
_MOST = 16
"""Networks. Kubernetes gives a node one of each family."""
_ROUTES = {4: "0.0.0.0/0", 6: "::/0"}


async def update_runtime_config(pods: Pods, request: cri.UpdateRuntimeConfigRequest) -> cri.UpdateRuntimeConfigResponse:
    """CRI UpdateRuntimeConfig. A node that has a usable network configuration keeps it.

    Raises:
        InvalidArgument: not a list of networks, separated by commas.
        FailedPrecondition: the template of the network configuration is not usable.
        Unavailable: the network configuration can't be written.
    """
    pod_cidr = request.runtime_config.network_config.pod_cidr
    if not pod_cidr:
        return cri.UpdateRuntimeConfigResponse()
    networks = _networks(pod_cidr)
    cidrs = [str(network) for network in networks]
    versions = {network.version for network in networks}
    made = await pods.network.configure(cidrs, [route for version, route in _ROUTES.items() if version in versions])
    _log.info("the kubelet tells the pods' networks", networks=cidrs, configuration="made" if made else "left as it is")
    return cri.UpdateRuntimeConfigResponse()


def _networks(pod_cidr: str) -> list[IPv4Network | IPv6Network]:
    try:
        networks = [_network(part.strip()) for part in pod_cidr.split(",", _MOST)]
        if len(networks) > _MOST:
            raise ValueError(f"more than {_MOST} networks")
    except ValueError as error:
        raise InvalidArgument(f"{_FIELD} {pod_cidr!r:.400}: {error}") from error
    for number, network in enumerate(networks):
        for other in networks[:number]:
            if network.version == other.version and network.overlaps(other):
                raise InvalidArgument(f"{_FIELD} {pod_cidr!r:.400}: {network} overlaps {other}")
    return networks


def _network(text: str) -> IPv4Network | IPv6Network:
    """Host bits are taken away: host-local refuses them."""
    address, slash, length = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r:.100} has no prefix length")
    if not (length.isascii() and length.isdigit()) or "%" in address:
        raise ValueError(f"{text!r:.100} is not ADDRESS/PREFIX-LENGTH")
    return ip_network(text, strict=False)

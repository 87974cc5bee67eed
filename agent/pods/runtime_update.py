"""UpdateRuntimeConfig: the kubelet's word for which addresses this node's pods shall have."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

from agent import log
from agent.errdefs import InvalidArgument
from agent.pods.context import Pods
from cri.api import api_pb2 as cri

_log = log.get("pods")


async def update_runtime_config(pods: Pods, request: cri.UpdateRuntimeConfigRequest) -> cri.UpdateRuntimeConfigResponse:
    """CRI UpdateRuntimeConfig. The pod CIDR is noted in the log: the network's configuration comes from its own installer.

    Raises:
        InvalidArgument: not a list of networks, separated by commas.
    """
    pod_cidr = request.runtime_config.network_config.pod_cidr
    if not pod_cidr:
        return cri.UpdateRuntimeConfigResponse()
    try:
        networks = [str(_network(part.strip())) for part in pod_cidr.split(",")]
    except ValueError as error:
        raise InvalidArgument(f"runtime_config.network_config.pod_cidr {pod_cidr!r}: {error}") from error
    _log.info("the kubelet tells the pods' networks; CNI configuration is left to who installs it", networks=networks)
    return cri.UpdateRuntimeConfigResponse()


def _network(text: str) -> IPv4Network | IPv6Network:
    if "/" not in text:
        raise ValueError(f"{text!r} has no prefix length")
    return ip_network(text, strict=False)

"""What a pod's CRI configuration means to CNI plugins: CNI_ARGS and capability arguments. Sans-IO; `Network.plan` calls it.

The conventions are those of https://www.cni.dev/docs/conventions/ and, for bandwidth, of the kubelet's old network plugins.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from agent.errdefs import InvalidArgument
from cri.api import api_pb2

INGRESS, EGRESS = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"
_BURST = 2**32 - 1
"""Bits; the kubelet's value: as good as no limit to the burst."""
_RATES = range(1000, 10**15 + 1)
"""Bits per second that Kubernetes lets a pod ask for: 1k to 1P."""

_QUANTITY = re.compile(r"(\+?\d{1,20}(?:\.\d{0,20})?)(?:(m|k|M|G|T|P|E)|(Ki|Mi|Gi|Ti|Pi|Ei)|[eE](\+?\d{1,2}))?")
_DECIMAL = {"m": Decimal("0.001")} | {unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", 1)}
_BINARY = {unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)}


def cni_args(sandbox: str, pod: api_pb2.PodSandboxMetadata) -> tuple[tuple[str, str], ...]:
    """The arguments that Kubernetes' plugins look for.

    Raises:
        InvalidArgument: a name that would end its argument and begin another one.
    """
    named = (("K8S_POD_NAMESPACE", pod.namespace), ("K8S_POD_NAME", pod.name), ("K8S_POD_UID", pod.uid))
    for key, value in named:
        if ";" in value or "=" in value or not value.isprintable():
            raise InvalidArgument(f"{value!r:.200} can't be passed to network plugins as {key}: it has ';', '=' or a control character")
    return (("IgnoreUnknown", "1"), *named[:2], ("K8S_POD_INFRA_CONTAINER_ID", sandbox), named[2])


def capabilities(config: api_pb2.PodSandboxConfig) -> dict[str, Any]:
    """The capability arguments in a pod's configuration: portMappings, dns, bandwidth, cgroupPath; those without a value left out.

    Raises:
        InvalidArgument: a port or a bandwidth annotation that can't be right.
    """
    found = {
        "portMappings": _port_mappings(config.port_mappings),
        "dns": _dns(config.dns_config),
        "bandwidth": _bandwidth(config.annotations),
        "cgroupPath": config.linux.cgroup_parent,
    }
    return {name: value for name, value in found.items() if value}


def _port_mappings(mappings: Iterable[api_pb2.PortMapping]) -> list[dict[str, Any]]:
    found = []
    for mapping in mappings:
        if mapping.host_port == 0:  # the container's port alone: information, nothing to map
            continue
        if not 0 < mapping.host_port < 65536 or not 0 < mapping.container_port < 65536:
            raise InvalidArgument(f"port mapping {mapping.host_port} to {mapping.container_port}: a port is a number from 1 to 65535")
        try:
            protocol = api_pb2.Protocol.Name(mapping.protocol).lower()
        except ValueError as error:
            raise InvalidArgument(f"port mapping {mapping.host_port} has the unknown protocol {mapping.protocol}") from error
        try:
            host_ip = str(ipaddress.ip_address(mapping.host_ip)) if mapping.host_ip else ""
        except ValueError as error:
            raise InvalidArgument(f"port mapping {mapping.host_port}: host_ip {mapping.host_ip!r:.100} is not an address") from error
        entry = {"hostPort": mapping.host_port, "containerPort": mapping.container_port, "protocol": protocol}
        found.append(entry | ({"hostIP": host_ip} if host_ip else {}))
    return found


def _dns(config: api_pb2.DNSConfig) -> dict[str, list[str]]:
    lists = {"servers": list(config.servers), "searches": list(config.searches), "options": list(config.options)}
    return {key: values for key, values in lists.items() if values}


def _bandwidth(annotations: Mapping[str, str]) -> dict[str, int]:
    limits = {}
    for direction, annotation in (("ingress", INGRESS), ("egress", EGRESS)):
        if annotation in annotations:
            limits[f"{direction}Rate"] = _rate(annotation, annotations[annotation])
            limits[f"{direction}Burst"] = _BURST
    return limits


def _rate(annotation: str, text: str) -> int:
    """Bits per second of a Kubernetes quantity ("10M"), rounded up as its `Value()` does."""
    if (match := _QUANTITY.fullmatch(text)) is None:
        raise InvalidArgument(f"annotation {annotation}: {text!r:.100} is not a quantity")
    number, decimal, binary, exponent = match.groups()
    factor = (_BINARY | _DECIMAL)[binary or decimal] if binary or decimal else Decimal(10) ** int(exponent or 0)
    if (rate := math.ceil(Decimal(number) * factor)) not in _RATES:
        raise InvalidArgument(f"annotation {annotation}: {text!r:.100} is not between 1k and 1P")
    return rate

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errdefs import InvalidArgument
from agent.network.podargs import EGRESS, INGRESS, capabilities, cni_args
from cri.api import api_pb2
from tests.unit.network.fakes import pod


def test_a_plain_pod_has_no_capability_arguments() -> None:
    assert capabilities(pod()) == {}


def test_kubernetes_arguments() -> None:
    assert cni_args("s1", pod().metadata) == (
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", "default"),
        ("K8S_POD_NAME", "web"),
        ("K8S_POD_INFRA_CONTAINER_ID", "s1"),
        ("K8S_POD_UID", "u-1"),
    )


@pytest.mark.parametrize("name", ["web;IP=10.0.0.1", "a=b", "a\nb", "a\0b"])
def test_a_name_can_not_become_another_argument(name: str) -> None:
    with pytest.raises(InvalidArgument, match="can't be passed to network plugins as K8S_POD_NAME"):
        cni_args("s1", api_pb2.PodSandboxMetadata(name=name, namespace="default", uid="u"))


def test_port_mappings_are_those_with_a_host_port() -> None:
    mappings = [
        api_pb2.PortMapping(container_port=8080, host_port=80),
        api_pb2.PortMapping(container_port=9090),
        api_pb2.PortMapping(container_port=53, host_port=53, protocol=api_pb2.UDP, host_ip="192.0.2.1"),
    ]
    assert capabilities(pod(port_mappings=mappings)) == {
        "portMappings": [
            {"hostPort": 80, "containerPort": 8080, "protocol": "tcp"},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
        ]
    }


@pytest.mark.parametrize(
    "mapping",
    [
        api_pb2.PortMapping(container_port=80, host_port=-1),
        api_pb2.PortMapping(container_port=80, host_port=65536),
        api_pb2.PortMapping(host_port=80),
        api_pb2.PortMapping(container_port=80, host_port=80, protocol=7),  # type: ignore[arg-type] # a newer kubelet may know more
    ],
)
def test_a_port_that_is_none_is_refused(mapping: api_pb2.PortMapping) -> None:
    with pytest.raises(InvalidArgument, match="port mapping"):
        capabilities(pod(port_mappings=[mapping]))


def test_dns_and_cgroup_path() -> None:
    dns = api_pb2.DNSConfig(servers=["10.0.0.10"], searches=["cluster.local"])
    assert capabilities(pod(dns_config=dns, linux=api_pb2.LinuxPodSandboxConfig(cgroup_parent="/kubepods/pod1"))) == {
        "dns": {"servers": ["10.0.0.10"], "searches": ["cluster.local"]},
        "cgroupPath": "/kubepods/pod1",
    }


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10M", 10_000_000),
        ("1Mi", 1_048_576),
        ("1500", 1500),
        ("1.5k", 1500),
        ("1500500m", 1501),
        ("1e6", 1_000_000),
        ("+2G", 2 * 10**9),
        ("1P", 10**15),
    ],
)
def test_bandwidth_in_bits_per_second(text: str, rate: int) -> None:
    assert capabilities(pod(annotations={INGRESS: text}))["bandwidth"] == {"ingressRate": rate, "ingressBurst": 4294967295}
    assert capabilities(pod(annotations={EGRESS: text}))["bandwidth"] == {"egressRate": rate, "egressBurst": 4294967295}


@pytest.mark.parametrize("text", ["", "ten", "10 M", "-1M", "999", "1001P", "1E99", "1e999999999", "9" * 50, "1Ki2"])
def test_a_bandwidth_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=EGRESS):
        capabilities(pod(annotations={EGRESS: text}))


@given(st.text(max_size=30) | st.from_regex(r"\+?\d{1,25}(\.\d*)?([mkMGTPE]|[KMGTPE]i|[eE]\d{1,3})?", fullmatch=True))
def test_any_bandwidth_is_in_range_or_refused(text: str) -> None:
    try:
        rate = capabilities(pod(annotations={INGRESS: text}))["bandwidth"]["ingressRate"]
    except InvalidArgument:
        return
    assert 1000 <= rate <= 10**15

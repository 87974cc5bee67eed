"""A node whose pod network is made from what the kubelet tells: UpdateRuntimeConfig with a template."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, refused, until
from tests.e2e.conftest import clean_afterwards, one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.test_bad_node import network_ready
from tests.e2e.toolbox import Pair

pytestmark = [pytest.mark.e2e, one_pair]

CIDRS = ("10.198.7.0/24", "fd00:198:7::/64")
GENERATED = "10-orlop-net.conflist"
TEMPLATE = """\
{
  "cniVersion": "1.0.0",
  "name": "e2e-generated",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "orlop-gen",
      "isGateway": true,
      "ipMasq": true,
      "ipam": {
        "type": "host-local",
        "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
        "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]
      }
    }
  ]
}
"""


def tell(kubelet: Client, cidr: str) -> None:
    config = cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr=cidr))
    kubelet.runtime.UpdateRuntimeConfig(cri.UpdateRuntimeConfigRequest(runtime_config=config))


@pytest.fixture
def bare(tmp_path: Path, pair: Pair, busybox: Path) -> Iterator[Daemon]:
    """A daemon with a template and without a network."""
    daemon = Daemon(tmp_path, pair)
    (daemon.cni / "10-e2e.conflist").unlink()
    template = tmp_path / "cni.template"
    template.write_text(TEMPLATE)
    drop_in = daemon.config.parent / "conf.d" / "template.toml"
    drop_in.parent.mkdir()
    drop_in.write_text(f'[cni]\nconf_template = "{template}"\n')
    daemon.start()
    daemon.orlop("image", "import", busybox)
    with clean_afterwards(daemon.root):
        yield daemon
        daemon.client.remove_all()
        daemon.stop()
    daemon.client.close()


def test_the_nodes_networks_become_the_pods(bare: Daemon) -> None:
    kubelet = bare.client
    assert not network_ready(kubelet).status
    tell(kubelet, ", ".join(CIDRS))
    until(lambda: network_ready(kubelet).status, what="the network is ready", within=5)
    assert [path.name for path in bare.cni.iterdir()] == [GENERATED]
    pod = kubelet.run_pod()
    network = kubelet.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id)).status.network
    addresses = [network.ip, *(other.ip for other in network.additional_ips)]
    for address, cidr in zip(addresses, CIDRS, strict=True):
        assert ipaddress.ip_address(address) in ipaddress.ip_network(cidr)
    container = kubelet.run_container(pod)
    routes = kubelet.exec_sync(container, "ip", "route").stdout.decode()
    assert "default via 10.198.7.1" in routes
    made = (bare.cni / GENERATED).read_bytes()
    bare.restart()
    tell(kubelet, "10.198.8.0/24")
    assert (bare.cni / GENERATED).read_bytes() == made, "a node that has a network keeps it"


def test_what_is_refused_makes_nothing(bare: Daemon, tmp_path: Path) -> None:
    kubelet = bare.client
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "runtime_config.network_config.pod_cidr", "10.198.7.0/33"):
        tell(kubelet, "10.198.7.0/33")
    (tmp_path / "cni.template").write_text('{"cniVersion": "1.0.0",\n"subnet": "{{.PodCIDR | js}}"}')
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "cni.conf_template", "line 2", "{{.PodCIDR | js}}"):
        tell(kubelet, CIDRS[0])
    assert list(bare.cni.iterdir()) == []
    assert not network_ready(kubelet).status

"""UpdateRuntimeConfig: which networks are taken, and with what the pod network is configured."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from agent.errdefs import FailedPrecondition, InvalidArgument
from agent.pods.context import Pods
from agent.pods.runtime_update import update_runtime_config
from cri.api import api_pb2 as cri


class FakeNetwork:
    def __init__(self) -> None:
        self.asked: list[tuple[list[str], list[str]]] = []
        self.error: FailedPrecondition | None = None

    async def configure(self, pod_cidrs: Sequence[str], routes: Sequence[str]) -> bool:
        if self.error is not None:
            raise self.error
        self.asked.append((list(pod_cidrs), list(routes)))
        return True


@pytest.fixture
def network() -> FakeNetwork:
    return FakeNetwork()


async def tell(network: FakeNetwork, cidr: str) -> None:
    request = cri.UpdateRuntimeConfigRequest(runtime_config=cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr=cidr)))
    assert await update_runtime_config(cast(Pods, SimpleNamespace(network=network)), request) == cri.UpdateRuntimeConfigResponse()


@pytest.mark.parametrize(
    ("cidr", "cidrs", "routes"),
    [
        ("10.0.0.0/8", ["10.0.0.0/8"], ["0.0.0.0/0"]),
        ("fd00::/64", ["fd00::/64"], ["::/0"]),
        ("10.0.0.0/8,fd00::/64", ["10.0.0.0/8", "fd00::/64"], ["0.0.0.0/0", "::/0"]),
        (" fd00::/64 , 10.0.0.0/8 ", ["fd00::/64", "10.0.0.0/8"], ["0.0.0.0/0", "::/0"]),
        ("10.1.2.3/8", ["10.0.0.0/8"], ["0.0.0.0/0"]),
        ("10.0.0.0/24,10.0.1.0/24", ["10.0.0.0/24", "10.0.1.0/24"], ["0.0.0.0/0"]),
    ],
)
async def test_networks(network: FakeNetwork, cidr: str, cidrs: list[str], routes: list[str]) -> None:
    await tell(network, cidr)
    assert network.asked == [(cidrs, routes)]


async def test_none_is_nothing_to_do(network: FakeNetwork) -> None:
    await tell(network, "")
    assert network.asked == []
    assert await update_runtime_config(cast(Pods, SimpleNamespace(network=network)), cri.UpdateRuntimeConfigRequest())


@pytest.mark.parametrize(
    ("cidr", "words"),
    [
        ("10.0.0.0", "'10.0.0.0' has no prefix length"),
        ("pods", "'pods' has no prefix length"),
        ("10.0.0.0/8,", "'' has no prefix length"),
        (" ", "'' has no prefix length"),
        ("10.0.0.0/33", "'10.0.0.0/33' does not appear to be"),
        ("10.0.0/8", "'10.0.0/8' does not appear to be"),
        ("10.0.0.0/8;fd00::/64", "'10.0.0.0/8;fd00::/64' is not ADDRESS/PREFIX-LENGTH"),
        ("10.0.0.0/255.0.0.0", "is not ADDRESS/PREFIX-LENGTH"),
        ("fe80::%eth0/64", "is not ADDRESS/PREFIX-LENGTH"),
        ("10.0.0.0/-1", "is not ADDRESS/PREFIX-LENGTH"),
        ("10.0.0.0/ 8", "is not ADDRESS/PREFIX-LENGTH"),
        ('10.0.0.0/8","x":"', "is not ADDRESS/PREFIX-LENGTH"),
        ("10.0.0.0/8,fd00::/64,10.1.0.0/16", "10.1.0.0/16 overlaps 10.0.0.0/8"),
        (",".join(f"10.{number}.0.0/16" for number in range(17)), "more than 16 networks"),
        ("1" * 100_000, "has no prefix length"),
    ],
)
async def test_what_is_no_network(network: FakeNetwork, cidr: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^runtime_config\.network_config\.pod_cidr") as refusal:
        await tell(network, cidr)
    assert words in str(refusal.value)
    assert len(str(refusal.value)) < 1000
    assert network.asked == []


async def test_a_template_that_is_not_usable_is_the_answer(network: FakeNetwork) -> None:
    network.error = FailedPrecondition("cni.conf_template /x: line 3")
    with pytest.raises(FailedPrecondition, match="line 3"):
        await tell(network, "10.0.0.0/8")

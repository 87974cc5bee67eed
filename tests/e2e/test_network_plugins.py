"""CNI with the plugins of Debian's containernetworking-plugins, on real namespaces, bridges and nat tables."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errdefs import DeadlineExceeded, FailedPrecondition, Internal, Unimplemented, Unknown
from agent.identifiers import new_id
from agent.linux.namespaces import Namespaces
from agent.linux.processes import Processes
from agent.network import Attachment, Network, read_leases
from agent.network.cache import DIRECTORY
from cri.api import api_pb2

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("node_is_clean")]

BRIDGE: dict[str, Any] = {
    "type": "bridge",
    "bridge": "orlop-test0",
    "isGateway": True,
    "ipMasq": True,
    "hairpinMode": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.211.0.0/24"}], [{"subnet": "fd00:211::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
LOOPBACK = {"type": "loopback"}
EXTRA = {"type": "extra"}  # a script of the test's own
PASS_ON = """#!/usr/bin/python3 -I
import json, os, sys
config = json.load(sys.stdin)
if os.environ["CNI_COMMAND"] == "ADD":
    json.dump(config["prevResult"], sys.stdout)
"""


@pytest.fixture(autouse=True)
def _furniture() -> Iterator[None]:
    """What outlives an attachment by design, before the first look at the node: the cache's directory; and no bridge after it."""
    (DIRECTORY / "results").mkdir(parents=True, exist_ok=True)
    yield
    subprocess.run(["ip", "link", "delete", "orlop-test0"], check=False, capture_output=True)


class Site:
    """A node's network with one sandbox to attach."""

    def __init__(self, root: Path) -> None:
        self.conf_dir, self.scripts = root / "net.d", root / "bin"
        self.conf_dir.mkdir()
        self.scripts.mkdir()
        self.processes, self.namespaces = Processes(), Namespaces()
        self.pins: list[Path] = []
        self.network = self.with_budget(60)

    def with_budget(self, budget: float) -> Network:
        return Network(
            self.processes, self.namespaces, conf_dir=self.conf_dir, bin_dirs=(self.scripts, Path("/usr/lib/cni")), budget=budget
        )

    def configure(self, *plugins: dict[str, Any], version: str = "1.0.0") -> None:
        content = {"cniVersion": version, "name": "orlop-test", "plugins": plugins or (BRIDGE, PORTMAP, LOOPBACK)}
        (self.conf_dir / "10-test.conflist").write_text(json.dumps(content))

    def script(self, text: str) -> None:
        path = self.scripts / "extra"
        path.write_text(text)
        path.chmod(0o755)

    async def sandbox(self, *, host_port: int = 8080) -> Attachment:
        """A network namespace, and the plan to attach it."""
        await self.network.refresh()
        sandbox = new_id()
        pin = Path("/run/netns") / f"cni-{sandbox[:12]}"
        pin.parent.mkdir(exist_ok=True)
        await self.namespaces.create({"net": pin})
        self.pins.append(pin)
        config = api_pb2.PodSandboxConfig(
            metadata=api_pb2.PodSandboxMetadata(name="web", namespace="default", uid=sandbox),
            port_mappings=[api_pb2.PortMapping(container_port=80, host_port=host_port)],
        )
        return self.network.plan(sandbox, config, pin)


@pytest.fixture
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    made.configure()
    yield made
    await made.network.stop(1)
    for pin in made.pins:
        await made.namespaces.release(pin)
    await made.processes.stop()


def leases(attachment: Attachment) -> list[str]:
    """The addresses that host-local holds for a sandbox."""
    return [lease.ip for lease in read_leases() if (lease.sandbox, lease.ifname) == (attachment.sandbox, "eth0")]


def cached(attachment: Attachment) -> bool:
    return (DIRECTORY / "results" / f"orlop-test-{attachment.sandbox}-eth0").exists()


def nat() -> str:
    """The rules of both families' nat tables."""
    tools = ("iptables-save", "ip6tables-save")
    return "".join(subprocess.run([tool, "-t", "nat"], check=True, capture_output=True, text=True).stdout for tool in tools)


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
async def test_a_sandbox_gets_its_network_and_gives_all_of_it_back(site: Site, version: str) -> None:
    site.configure(version=version)
    attachment = await site.sandbox()
    result = await site.network.add(attachment)
    v4, v6 = result.ips
    assert v4.startswith("10.211.0.")
    assert v6.startswith("fd00:211::")
    assert {v4, v6} <= {address.split("/")[0] for address in await site.namespaces.addresses(attachment.netns, "eth0")}
    assert sorted(leases(attachment)) == sorted(result.ips)
    assert f"--to-destination {v4}:80" in nat()
    assert f"--to-destination [{v6}]:80" in nat()
    assert any(interface.name.startswith("veth") for interface in result.interfaces)
    stored = json.loads(json.dumps(attachment.to_json()))
    await site.network.delete(Attachment.from_json(stored))
    assert not leases(attachment)
    assert not cached(attachment)
    await site.network.delete(attachment)  # and once more


async def test_check_sees_what_is_broken(site: Site) -> None:
    site.configure(BRIDGE, LOOPBACK)  # portmap's CHECK (1.1) looks for each rule in the tables of both families, and fails
    attachment = await site.sandbox()
    await site.network.add(attachment)
    await site.network.check(attachment)
    for lease in read_leases():
        lease.path.unlink()
    with pytest.raises(Unknown, match=f"CNI plugin bridge: CHECK of sandbox {attachment.sandbox} failed: "):
        await site.network.check(attachment)
    await site.network.delete(attachment)
    with pytest.raises(FailedPrecondition, match="is not attached"):
        await site.network.check(attachment)


async def test_0_3_1_has_no_check(site: Site) -> None:
    site.configure(version="0.3.1")
    with pytest.raises(Unimplemented):
        await site.network.check(await site.sandbox())


async def test_eight_sandboxes_at_once(site: Site) -> None:
    attachments = [await site.sandbox(host_port=8080 + index) for index in range(8)]
    results = await asyncio.gather(*(site.network.add(attachment) for attachment in attachments))
    assert len({ip for result in results for ip in result.ips}) == 16
    await asyncio.gather(*(site.network.delete(attachment) for attachment in attachments))


async def test_delete_of_what_was_never_added(site: Site) -> None:
    await site.network.delete(await site.sandbox())


@pytest.mark.field_fault("19")
async def test_delete_after_the_namespace_has_gone(site: Site) -> None:
    site.configure(BRIDGE | {"ipMasq": False}, PORTMAP, LOOPBACK)  # with it, bridge leaves its chains here: decisions.md 18
    attachment = await site.sandbox()
    await site.network.add(attachment)
    await site.namespaces.release(attachment.netns)
    await site.network.delete(attachment)
    assert not leases(attachment)


async def test_delete_after_the_namespace_has_gone_and_a_file_lies_there(site: Site) -> None:
    site.configure(BRIDGE | {"ipMasq": False}, LOOPBACK)
    attachment = await site.sandbox()
    await site.network.add(attachment)
    await site.namespaces.release(attachment.netns)
    attachment.netns.touch()
    await site.network.delete(attachment)
    attachment.netns.unlink()
    assert not leases(attachment)


@pytest.mark.field_fault("18")
async def test_an_add_that_failed_half_way(site: Site) -> None:
    site.configure(BRIDGE, EXTRA, PORTMAP)
    site.script('#!/bin/sh\n[ "$CNI_COMMAND" != ADD ] || { echo \'{"code": 103, "msg": "no such tenant"}\'; exit 1; }\n')
    attachment = await site.sandbox()
    with pytest.raises(Unknown, match=r"CNI plugin extra: ADD of sandbox \w+ failed: no such tenant \(code 103\)"):
        await site.network.add(attachment)
    assert len(leases(attachment)) == 2  # bridge has done its part
    await site.network.delete(attachment)


@pytest.mark.field_fault("18", "30")
async def test_a_plugin_whose_del_fails_pins_no_address_and_is_tried_again(site: Site) -> None:
    site.configure(BRIDGE, PORTMAP, EXTRA)
    site.script(PASS_ON)
    attachment = await site.sandbox()
    await site.network.add(attachment)
    (site.scripts / "extra").unlink()
    with pytest.raises(FailedPrecondition, match=r"CNI plugin extra: DEL of sandbox \w+ failed: it is not in "):
        await site.network.delete(attachment)
    assert not leases(attachment)
    assert cached(attachment)
    site.script(PASS_ON)
    await site.network.delete(attachment)


@pytest.mark.parametrize("output", ["hello", "[1, 2]", '{"cniVersion": "1.0.0", "ips": [{"address": "everywhere"}]}'])
async def test_a_plugin_that_prints_garbage(site: Site, output: str) -> None:
    site.configure(BRIDGE, EXTRA)
    site.script(f"#!/bin/sh\necho '{output}'\n")
    attachment = await site.sandbox()
    with pytest.raises(Internal, match=r"CNI plugin extra: ADD of sandbox \w+ printed no result"):
        await site.network.add(attachment)
    await site.network.delete(attachment)


async def test_a_plugin_that_is_no_program(site: Site) -> None:
    site.configure(BRIDGE, EXTRA)
    site.script("\0")
    attachment = await site.sandbox()
    with pytest.raises(FailedPrecondition, match=r"CNI plugin .*/extra can't be run: .*Exec format error"):
        await site.network.add(attachment)
    site.script(PASS_ON)
    await site.network.delete(attachment)


async def test_a_plugin_that_hangs_is_killed_and_leaves_the_others_their_time(site: Site) -> None:
    site.configure(BRIDGE, EXTRA)
    site.script("#!/bin/sh\nsleep 1000\n")  # the shell's child goes with it: the node is looked over for processes
    attachment = await site.sandbox()
    hasty = site.with_budget(4)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"CNI plugin extra: ADD of sandbox \w+ took longer than"):
        await hasty.add(attachment)
    assert len(leases(attachment)) == 2
    with pytest.raises(DeadlineExceeded, match=r"CNI plugin extra: DEL of sandbox \w+ took longer than 2 s"):
        await hasty.delete(attachment)
    assert time.monotonic() - began < 9
    assert not leases(attachment)
    site.script(PASS_ON)
    await hasty.delete(attachment)


async def test_the_watch_follows_the_directory(site: Site) -> None:
    (site.conf_dir / "10-test.conflist").unlink()
    await site.network.start()
    assert site.network.status().message == f"no network config found in {site.conf_dir}"
    site.configure()
    async with asyncio.timeout(5):
        while not site.network.status().ready:
            await asyncio.sleep(0.1)
    shutil.rmtree(site.conf_dir)
    async with asyncio.timeout(5):
        while site.network.status().ready:
            await asyncio.sleep(0.1)

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import failpoints, metrics
from agent.errdefs import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    OrlopError,
    Unavailable,
    Unimplemented,
    Unknown,
)
from agent.linux.processes import Completed
from agent.network import Attachment, NetworkStatus, network, plugin
from agent.network.network import NOT_READY
from cri.api import api_pb2
from tests.unit.network.fakes import NETNS, Node, Ran, conflist, pod, printed, result


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture(autouse=True)
def _no_failpoints() -> Iterator[None]:
    yield
    failpoints.configure("")


async def attached(node: Node, content: bytes | None = None, sandbox: str = "s1") -> Attachment:
    """A planned attachment to the network of `content`."""
    node.configure(content or conflist())
    await node.network.refresh()
    return node.network.plan(sandbox, pod(), NETNS)


def counted(verb: str, outcome: str) -> float:
    return metrics.registry.get_sample_value("orlop_cni_operations_total", {"verb": verb, "outcome": outcome}) or 0


class TestStatus:
    async def test_no_directory(self, node: Node) -> None:
        node.conf_dir.rmdir()
        await node.network.refresh()
        assert node.network.status() == NetworkStatus(False, NOT_READY, f"no network config found in {node.conf_dir}")

    async def test_nothing_usable(self, node: Node) -> None:
        node.configure(b"{")
        await node.network.refresh()
        status = node.network.status()
        assert not status.ready
        assert status.message.startswith(f"no usable network config in {node.conf_dir}: network config 10-podnet.conflist is not usable: ")

    async def test_ready_and_what_was_ignored(self, node: Node) -> None:
        node.configure(b"{", "05-bad.conf")
        await attached(node)
        status = node.network.status()
        assert status.ready
        assert "05-bad.conf" in status.message

    async def test_a_plugin_that_is_not_installed(self, node: Node) -> None:
        node.configure(conflist("bridge", "calico"))
        await node.network.refresh()
        status = node.network.status()
        assert (status.ready, status.reason) == (False, NOT_READY)
        assert "podnet (10-podnet.conflist): no plugin calico in " in status.message
        (node.bin_dir / "calico").touch()
        await node.network.refresh()
        assert node.network.status().ready

    async def test_a_broken_update_keeps_the_network_and_says_so(self, node: Node) -> None:
        await attached(node)
        node.configure(b'{"name"')
        await node.network.refresh()
        assert node.network.status().ready
        assert "its last good version stays in force" in node.network.status().message
        assert node.network.plan("s2", pod(), NETNS).config == conflist()

    async def test_a_removed_configuration_ends_readiness(self, node: Node) -> None:
        await attached(node)
        (node.conf_dir / "10-podnet.conflist").unlink()
        await node.network.refresh()
        assert not node.network.status().ready

    async def test_the_watch_sees_a_change(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(network, "_LOOK_EVERY", 0)
        await node.network.start()
        assert not node.network.status().ready
        node.configure(conflist())
        while not node.network.status().ready:
            await asyncio.sleep(0)
        await node.network.stop(1)

    async def test_plugins_are_asked_since_1_1_0(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        await attached(node, conflist(version="1.0.0"))
        assert not node.runner.ran
        node.runner.answers["STATUS portmap"] = printed({"code": 50, "msg": "daemon is away"}, 1)
        await attached(node, conflist(version="1.1.0"))
        assert node.runner.steps == ["STATUS bridge", "STATUS portmap"]
        assert node.runner.ran[0].config == {"type": "bridge", "name": "podnet", "cniVersion": "1.1.0"}
        status = node.network.status()
        assert not status.ready
        assert "CNI plugin portmap: STATUS failed: daemon is away (code 50)" in status.message
        await node.network.refresh()
        assert len(node.runner.ran) == 2  # not again at once
        monkeypatch.setattr(network, "_ASK_EVERY", 0)
        node.runner.answers.clear()
        await node.network.refresh()
        assert node.network.status().ready

    async def test_another_network_starts_without_the_last_ones_status(self, node: Node) -> None:
        node.runner.answers["STATUS bridge"] = DeadlineExceeded("5 s")
        await attached(node, conflist(version="1.1.0"))
        assert "took longer than 5 s" in node.network.status().message
        await attached(node, conflist(version="1.0.0"))
        assert node.network.status().ready


class TestPlan:
    async def test_it_holds_all_that_an_operation_needs(self, node: Node) -> None:
        node.configure(conflist(cniVersions=["0.4.0", "1.1.0"]))
        await node.network.refresh()
        config = pod(port_mappings=[api_pb2.PortMapping(container_port=80, host_port=8080)])
        planned = node.network.plan("s1", config, NETNS, capabilities={"ipRanges": [[{"subnet": "10.2.0.0/24"}]]})
        assert (planned.sandbox, planned.netns, planned.network, planned.version, planned.ifname) == (
            "s1",
            NETNS,
            "podnet",
            "1.1.0",
            "eth0",
        )
        assert planned.config == conflist(cniVersions=["0.4.0", "1.1.0"])
        assert dict(planned.args)["K8S_POD_NAME"] == "web"
        assert planned.capabilities == {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            "ipRanges": [[{"subnet": "10.2.0.0/24"}]],
        }

    async def test_without_a_network_it_is_refused(self, node: Node) -> None:
        with pytest.raises(FailedPrecondition, match="sandbox s1 can't be attached: no network config found"):
            node.network.plan("s1", pod(), NETNS)

    @pytest.mark.parametrize("sandbox", ["", "../x", "a b", "s" * 77])
    async def test_a_hostile_id_is_refused(self, node: Node, sandbox: str) -> None:
        await attached(node)
        with pytest.raises(InvalidArgument, match="sandbox id"):
            node.network.plan(sandbox, pod(), NETNS)


class TestAdd:
    async def test_each_plugin_gets_the_result_of_the_one_before(self, node: Node) -> None:
        bridged, mapped = result(), result(dns={"nameservers": ["10.0.0.10"]})
        node.runner.answers = {"ADD bridge": printed(bridged), "ADD portmap": printed(mapped)}
        done = await node.network.add(await attached(node))
        assert node.runner.steps == ["ADD bridge", "ADD portmap"]
        first, second = node.runner.ran
        assert first.config == {"type": "bridge", "name": "podnet", "cniVersion": "1.0.0"}
        assert second.config["prevResult"] == bridged
        assert done.ips == ("10.1.0.7", "fd00::7")
        assert done.raw == mapped
        assert node.cached() == ["podnet-s1-eth0"]

    async def test_the_environment(self, node: Node) -> None:
        await node.network.add(await attached(node))
        assert node.runner.ran[0].command.argv == (str(node.bin_dir / "bridge"),)
        assert node.runner.ran[0].env == {
            "PATH": "/usr/sbin:/usr/bin",
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "s1",
            "CNI_NETNS": str(NETNS),
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=s1;K8S_POD_UID=u-1",
            "CNI_PATH": f"{node.bin_dir.parent / 'nowhere'}:{node.bin_dir}",
        }

    async def test_a_missing_plugin_is_noticed_before_the_first_has_acted(self, node: Node) -> None:
        attachment = await attached(node, conflist("bridge", "calico"))
        with pytest.raises(FailedPrecondition, match="CNI plugin calico: ADD of sandbox s1 failed: it is not in"):
            await node.network.add(attachment)
        assert not node.runner.ran

    @pytest.mark.parametrize(
        ("answer", "kind", "text"),
        [
            (printed({"code": 7, "msg": "bad", "details": "subnet"}, 1), Unknown, "failed: bad; subnet (code 7)"),
            (printed({"code": 11, "msg": "later"}, 1), Unavailable, "failed: later (code 11)"),
            (printed({"code": 3, "msg": "what container?"}, 1), Unknown, "what container?"),
            (printed(b"panic: nil map\n\tmain.go:5", 2), Unknown, "failed with exit status 2, printing: panic: nil map main.go:5"),
            (printed(None, 1, b"no route"), Unknown, "failed with exit status 1, printing: no route"),
            (printed(None, -9), Unknown, "failed with signal 9, printing nothing"),
            (printed(b"x" * 100_000, 1), Unknown, "x" * 400 + " ..."),
            (printed(b"all good!"), Internal, "printed no result (Expecting value: line 1 column 1 (char 0)): all good!"),
            (printed(), Internal, "printed no result (Expecting value: line 1 column 1 (char 0)): nothing"),
            (printed({"cniVersion": "1.0.0", "ips": "10.0.0.1"}), Internal, "printed no result (ips is a string, not a list)"),
            (DeadlineExceeded("/bin/portmap took longer than 120 s"), DeadlineExceeded, "took longer than 120 s, it was killed"),
            (PermissionError(errno.EACCES, "Permission denied"), FailedPrecondition, "can't be run: [Errno 13] Permission denied"),
        ],
    )
    async def test_a_plugin_that_fails(self, node: Node, answer: Completed | Exception, kind: type[OrlopError], text: str) -> None:
        attachment = await attached(node)
        node.runner.answers["ADD portmap"] = answer
        with pytest.raises(kind) as raised:
            await node.network.add(attachment)
        assert type(raised.value) is kind
        assert text in str(raised.value)
        assert "portmap" in str(raised.value)
        if not isinstance(answer, OSError):
            assert str(raised.value).startswith("CNI plugin portmap: ADD of sandbox s1 ")
        assert len(str(raised.value)) < 600
        assert not node.cached()
        assert node.runner.steps == ["ADD bridge", "ADD portmap"]  # to take it back is the caller's business

    async def test_a_chain_that_gives_no_address_has_failed(self, node: Node) -> None:
        attachment = await attached(node)
        node.runner.answers["ADD bridge"] = printed(result(ips=[]))
        with pytest.raises(Internal, match="network podnet gave sandbox s1 no address on eth0"):
            await node.network.add(attachment)
        assert not node.cached()

    async def test_a_result_that_can_not_be_stored_is_a_failure(self, node: Node) -> None:
        attachment = await attached(node)
        node.cache_dir.write_text("")
        with pytest.raises(Unavailable, match="CNI result of sandbox s1 can't be stored"):
            await node.network.add(attachment)

    async def test_a_plugin_being_installed_is_tried_again(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plugin, "_BUSY_PAUSE", 0)
        attachment = await attached(node)
        busy = 3

        def installing(_: Ran) -> Completed:
            nonlocal busy
            busy -= 1
            if busy:
                raise OSError(errno.ETXTBSY, "Text file busy")
            return printed(result())

        node.runner.answers["ADD bridge"] = installing
        await node.network.add(attachment)
        assert node.runner.steps == ["ADD bridge"] * 3 + ["ADD portmap"]

    async def test_a_cancelled_caller_does_not_cut_it_in_two(self, node: Node) -> None:
        attachment = await attached(node)
        entered, go_on = asyncio.Event(), asyncio.Event()

        async def slow(_: Ran) -> Completed:
            entered.set()
            await go_on.wait()
            return printed(result())

        node.runner.answers["ADD bridge"] = slow
        caller = asyncio.create_task(node.network.add(attachment))
        await entered.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        undo = asyncio.create_task(node.network.delete(attachment))
        await asyncio.sleep(0)
        go_on.set()
        await undo
        assert node.runner.steps == ["ADD bridge", "ADD portmap", "DEL portmap", "DEL bridge"]  # in a row, never side by side
        assert not node.cached()

    async def test_different_sandboxes_go_side_by_side(self, node: Node) -> None:
        barrier = asyncio.Barrier(2)

        async def meet(_: Ran) -> Completed:
            async with barrier:
                return printed(result())

        node.runner.answers["ADD bridge"] = meet
        first = await attached(node)
        second = node.network.plan("s2", pod(), NETNS)
        await asyncio.gather(node.network.add(first), node.network.add(second))

    async def test_operations_are_counted(self, node: Node) -> None:
        before = counted("add", "ok"), counted("add", "error"), counted("add", "timeout"), counted("del", "ok")
        attachment = await attached(node)
        await node.network.add(attachment)
        await node.network.delete(attachment)
        node.runner.answers["ADD bridge"] = printed(None, 1)
        with pytest.raises(Unknown):
            await node.network.add(attachment)
        node.runner.answers["ADD bridge"] = DeadlineExceeded("")
        with pytest.raises(DeadlineExceeded):
            await node.network.add(attachment)
        after = counted("add", "ok"), counted("add", "error"), counted("add", "timeout"), counted("del", "ok")
        assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1, 1]

    @pytest.mark.parametrize(("point", "ran"), [("network.add.exec", ["ADD bridge"]), ("network.add.cache", ["ADD bridge", "ADD portmap"])])
    async def test_failpoints(self, node: Node, point: str, ran: list[str]) -> None:
        attachment = await attached(node)
        failpoints.configure(f"{point}={'2*' if 'exec' in point else ''}error(now)")
        with pytest.raises(Internal, match=point):
            await node.network.add(attachment)
        assert node.runner.steps == ran
        assert not node.cached()


class TestDelete:
    async def test_the_chain_runs_backwards_with_the_result_of_add(self, node: Node) -> None:
        attachment = await attached(node)
        final = result(dns={"nameservers": ["10.0.0.10"]})
        node.runner.answers["ADD portmap"] = printed(final)
        await node.network.add(attachment)
        node.runner.ran.clear()
        await node.network.delete(attachment)
        assert node.runner.steps == ["DEL portmap", "DEL bridge"]
        assert all(one.config["prevResult"] == final and one.env["CNI_NETNS"] == str(NETNS) for one in node.runner.ran)
        assert not node.cached()

    async def test_it_uses_what_was_stored_not_what_is_configured_now(self, node: Node) -> None:
        attachment = await attached(node, conflist({"type": "bridge", "bridge": "cni0"}, cniVersions=["0.4.0"]))
        await node.network.add(attachment)
        stored = attachment.to_json()
        node.configure(conflist("portmap", name="other", version="1.1.0"))
        restarted = node.restarted()
        await restarted.refresh()
        node.runner.ran.clear()
        await restarted.delete(Attachment.from_json(stored))
        assert node.runner.steps == ["DEL bridge"]
        assert node.runner.ran[0].config["bridge"] == "cni0"
        assert (node.runner.ran[0].config["name"], node.runner.ran[0].config["cniVersion"]) == ("podnet", "1.0.0")

    async def test_without_any_network_configured(self, node: Node) -> None:
        attachment = await attached(node)
        (node.conf_dir / "10-podnet.conflist").unlink()
        await node.network.refresh()
        await node.network.delete(attachment)
        assert node.runner.steps == ["DEL portmap", "DEL bridge"]

    @pytest.mark.field_fault("19")
    async def test_a_gone_namespace_is_not_passed(self, node: Node) -> None:
        attachment = await attached(node)
        await node.network.add(attachment)
        node.pins.inodes.clear()
        node.runner.ran.clear()
        await node.network.delete(attachment)
        assert [one.env["CNI_NETNS"] for one in node.runner.ran] == ["", ""]
        assert node.runner.ran[0].env["CNI_CONTAINERID"] == "s1"

    async def test_a_namespace_that_can_not_be_looked_at_is_not_taken_for_gone(self, node: Node) -> None:
        attachment = await attached(node)
        node.pins.error = OSError(errno.EIO, "Input/output error")
        with pytest.raises(Unavailable, match=f"netns {NETNS} of sandbox s1 can't be looked at"):
            await node.network.delete(attachment)
        assert not node.runner.ran

    async def test_twice_and_before_any_add(self, node: Node) -> None:
        attachment = await attached(node)
        await node.network.delete(attachment)
        await node.network.delete(attachment)
        assert all("prevResult" not in one.config for one in node.runner.ran)

    async def test_0_3_1_knows_no_result_on_del(self, node: Node) -> None:
        attachment = await attached(node, conflist(version="0.3.1"))
        await node.network.add(attachment)
        node.runner.ran.clear()
        await node.network.delete(attachment)
        assert all("prevResult" not in one.config for one in node.runner.ran)

    async def test_another_one_looks_for_what_the_first_could_not_remove(self, node: Node) -> None:
        """A bridge plugin that has removed the interface and is killed then doesn't know its chains any more."""
        attachment = await attached(node)
        await node.network.add(attachment)
        node.runner.answers["DEL bridge"] = Completed(-9, b"", b"")
        with pytest.raises(Unknown):
            await node.network.delete(attachment)
        assert node.chains == [], "it is still the plugin's turn"
        del node.runner.answers["DEL bridge"]
        await node.network.delete(attachment)
        assert node.chains == ["podnet s1"]

    async def test_one_that_may_have_been_begun_by_an_earlier_daemon_does_so_too(self, node: Node) -> None:
        attachment = await attached(node)
        await node.network.add(attachment)
        await node.restarted().delete(attachment)
        assert node.chains == ["podnet s1"]

    async def test_and_one_without_a_namespace(self, node: Node) -> None:
        attachment = await attached(node)
        await node.network.add(attachment)
        node.pins.inodes.clear()
        await node.network.delete(attachment)
        assert node.chains == ["podnet s1"]

    async def test_a_first_one_leaves_that_to_the_plugins(self, node: Node) -> None:
        attachment = await attached(node)
        await node.network.add(attachment)
        await node.network.delete(attachment)
        assert node.chains == []

    async def test_iptables_that_fails_does_not_hold_it_up(self, node: Node) -> None:
        attachment = await attached(node)
        await node.network.add(attachment)
        node.iptables = Unavailable("ip6tables-save -t nat failed: Table does not exist")
        await node.restarted().delete(attachment)
        assert node.cached() == [], "it is done with"

    async def test_a_torn_cache_does_not_hold_it_up(self, node: Node) -> None:
        attachment = await attached(node)
        await node.network.add(attachment)
        (node.cache_dir / "results" / "podnet-s1-eth0").write_bytes(b"")
        await node.network.delete(attachment)
        assert "prevResult" not in node.runner.ran[-1].config
        assert not node.cached()

    @pytest.mark.field_fault("30")
    async def test_a_failure_does_not_keep_the_others_from_releasing(self, node: Node) -> None:
        attachment = await attached(node)
        await node.network.add(attachment)
        node.runner.answers["DEL portmap"] = printed({"code": 100, "msg": "xtables lock"}, 1)
        with pytest.raises(Unknown, match=r"^CNI plugin portmap: DEL of sandbox s1 failed: xtables lock \(code 100\)$"):
            await node.network.delete(attachment)
        assert node.runner.steps[2:] == ["DEL portmap", "DEL bridge"]
        assert node.cached()  # the next attempt needs it
        node.runner.answers.clear()
        await node.network.delete(attachment)
        assert node.runner.steps[4:] == ["DEL portmap", "DEL bridge"]
        assert node.runner.ran[-1].config["prevResult"] == result()
        assert not node.cached()

    async def test_all_failures_are_told(self, node: Node) -> None:
        attachment = await attached(node, conflist("bridge", "calico", "portmap"))
        node.runner.answers["DEL bridge"] = DeadlineExceeded("")
        with pytest.raises(FailedPrecondition) as raised:
            await node.network.delete(attachment)
        assert str(raised.value).startswith(
            "2 of 3 plugins of network podnet failed: CNI plugin calico: DEL of sandbox s1 failed: it is not in "
        )
        assert "; CNI plugin bridge: DEL of sandbox s1 took longer than" in str(raised.value)
        assert isinstance(raised.value.__cause__, ExceptionGroup)

    async def test_a_container_that_the_plugin_never_knew_is_deleted(self, node: Node) -> None:
        attachment = await attached(node)
        node.runner.answers["DEL portmap"] = printed({"code": 3, "msg": "unknown container"}, 1)
        await node.network.delete(attachment)

    async def test_one_that_hangs_leaves_the_others_their_time(self, node: Node) -> None:
        attachment = await attached(node)
        await node.network.delete(attachment)
        portmap, bridge = (one.command.budget for one in node.runner.ran)
        assert 59 < portmap <= 60
        assert 119 < bridge <= 120  # portmap needed nothing of its share

    async def test_a_cache_that_can_not_be_removed_is_a_failure(self, node: Node) -> None:
        attachment = await attached(node)
        (node.cache_dir / "results" / "podnet-s1-eth0").mkdir(parents=True)
        with pytest.raises(Unavailable, match="CNI result of sandbox s1 can't be removed"):
            await node.network.delete(attachment)

    @pytest.mark.parametrize("change", [{"version": "2.0.0"}, {"config": "{"}])
    async def test_a_record_from_another_world_is_told_apart(self, node: Node, change: dict[str, Any]) -> None:
        attachment = Attachment.from_json((await attached(node)).to_json() | change)
        with pytest.raises((DataLoss, InvalidArgument), match=r"of sandbox s1|sandbox s1 was attached with"):
            await node.network.delete(attachment)
        assert not node.runner.ran

    @pytest.mark.parametrize("point", ["network.delete.exec", "network.delete.cache"])
    async def test_failpoints(self, node: Node, point: str) -> None:
        attachment = await attached(node)
        await node.network.add(attachment)
        failpoints.configure(f"{point}=1*error(now)")
        with pytest.raises(Internal, match=point):
            await node.network.delete(attachment)
        assert node.cached()
        await node.network.delete(attachment)
        assert not node.cached()


class TestCheck:
    async def test_the_chain_runs_forwards_with_the_result_of_add(self, node: Node) -> None:
        attachment = await attached(node)
        await node.network.add(attachment)
        node.runner.ran.clear()
        await node.network.check(attachment)
        assert node.runner.steps == ["CHECK bridge", "CHECK portmap"]
        assert all(one.config["prevResult"] == result() for one in node.runner.ran)

    async def test_the_first_failure_ends_it(self, node: Node) -> None:
        attachment = await attached(node)
        await node.network.add(attachment)
        node.runner.answers["CHECK bridge"] = printed({"code": 100, "msg": "no eth0"}, 1)
        with pytest.raises(Unknown, match="CNI plugin bridge: CHECK of sandbox s1 failed: no eth0"):
            await node.network.check(attachment)
        assert node.runner.steps[2:] == ["CHECK bridge"]

    async def test_what_was_never_added_can_not_be_checked(self, node: Node) -> None:
        with pytest.raises(FailedPrecondition, match="sandbox s1 is not attached to network podnet"):
            await node.network.check(await attached(node))

    async def test_a_torn_result_is_data_loss(self, node: Node) -> None:
        attachment = await attached(node)
        await node.network.add(attachment)
        (node.cache_dir / "results" / "podnet-s1-eth0").write_bytes(b"{")
        with pytest.raises(DataLoss, match="CNI result of sandbox s1 can't be read"):
            await node.network.check(attachment)

    async def test_disable_check_and_0_3_1(self, node: Node) -> None:
        await node.network.check(await attached(node, conflist(disableCheck=True)))
        with pytest.raises(Unimplemented, match=r"cniVersion 0\.3\.1, which has no CHECK"):
            await node.network.check(await attached(node, conflist(version="0.3.1")))
        assert not node.runner.ran


class TestGarbage:
    async def test_the_plugins_are_told_what_is_there(self, node: Node) -> None:
        attachment = await attached(node, conflist(version="1.1.0"))
        foreign = Attachment("s9", NETNS, "other", "1.1.0", b"{}")
        node.runner.ran.clear()
        node.runner.answers["GC bridge"] = printed(None, 1)
        with pytest.raises(Unknown, match="CNI plugin bridge: GC failed"):
            await node.network.collect_garbage([attachment, foreign])
        assert node.runner.steps == ["GC bridge", "GC portmap"]
        assert node.runner.ran[0].config["cni.dev/valid-attachments"] == [{"containerID": "s1", "ifname": "eth0"}]

    @pytest.mark.parametrize("content", [conflist(version="1.0.0"), conflist(version="1.1.0", disableGC=True), b"{"])
    async def test_nobody_is_asked_who_must_not_be(self, node: Node, content: bytes) -> None:
        node.configure(content)
        await node.network.refresh()
        await node.network.collect_garbage([])
        assert not [step for step in node.runner.steps if step.startswith("GC")]

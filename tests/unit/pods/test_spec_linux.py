"""`linux` of the spec, and the spec as a whole."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config.handlers import RuntimeHandler
from agent.errdefs import InvalidArgument, NotFound, OrlopError
from agent.pods import spec
from agent.pods.facts import NodeFacts
from agent.pods.spec import linux
from cri.api import api_pb2 as cri
from tests.unit.pods.specs import CONTAINER, PINS, facts, inputs

PRIVILEGED = cri.LinuxContainerSecurityContext(privileged=True)
MIB = 1 << 20


def built(config: cri.ContainerConfig | None = None, **changes: Any) -> dict[str, Any]:
    return linux.build(inputs(config, **changes), "")


class TestNamespaces:
    @staticmethod
    def of(**changes: Any) -> dict[str, str]:
        """Path by type; empty for a new one."""
        return {space["type"]: space.get("path", "") for space in built(**changes)["namespaces"]}

    def test_those_of_the_pod_are_joined_and_the_others_are_new(self) -> None:
        joined = {kind: pin.path for kind, pin in PINS.items()}
        assert self.of() == {"mount": "", "pid": "", **joined}

    def test_those_of_the_node_are_left_out(self) -> None:
        assert self.of(pins={}, pid_namespace="") == {"mount": ""}

    def test_the_pid_namespace_of_the_pod_or_of_another_container(self) -> None:
        assert self.of(pid_namespace="/proc/7/ns/pid")["pid"] == "/proc/7/ns/pid"

    @pytest.mark.parametrize(("v2", "security", "own"), [(True, None, True), (True, PRIVILEGED, False), (False, None, False)])
    def test_on_v2_all_but_privileged_containers_see_only_their_own_cgroup(self, v2: bool, security: Any, own: bool) -> None:
        assert ("cgroup" in self.of(facts=facts(cgroup_v2=v2), security=security)) is own


class TestCgroup:
    @pytest.mark.parametrize(
        ("parent", "systemd", "expected"),
        [
            ("/kubepods/pod1", False, f"/kubepods/pod1/{CONTAINER}"),
            ("/kubepods/pod1/", False, f"/kubepods/pod1/{CONTAINER}"),
            ("/", False, f"/{CONTAINER}"),
            ("kubepods-pod1.slice", True, f"kubepods-pod1.slice:cri-orlop:{CONTAINER}"),
            ("/kubepods.slice/kubepods-pod1.slice", True, f"kubepods-pod1.slice:cri-orlop:{CONTAINER}"),
            ("/kubepods.slice/kubepods-pod1.slice/", True, f"kubepods-pod1.slice:cri-orlop:{CONTAINER}"),
        ],
    )
    def test_path(self, parent: str, systemd: bool, expected: str) -> None:
        handler = RuntimeHandler("runc", systemd_cgroup=systemd)
        assert built(cgroup_parent=parent, handler=handler)["cgroupsPath"] == expected


def resources(node: NodeFacts | None = None, **fields: Any) -> dict[str, Any]:
    return linux.resources(cri.LinuxContainerResources(**fields), node or facts(), "config.linux.resources")


class TestResources:
    def test_nothing_is_set_by_default(self) -> None:
        assert resources() == {}

    def test_cpu(self) -> None:
        found = resources(cpu_shares=512, cpu_quota=50_000, cpu_period=100_000, cpuset_cpus="0-1", cpuset_mems="0")
        assert found == {"cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0-1", "mems": "0"}}
        assert resources(cpu_quota=-1) == {"cpu": {"quota": -1}}

    @pytest.mark.parametrize(
        ("swap", "accounting", "expected"),
        [
            pytest.param(0, True, {"limit": 8 * MIB, "swap": 8 * MIB}, id="no swap unless it is asked for"),
            pytest.param(0, False, {"limit": 8 * MIB}, id="no accounting"),
            pytest.param(9 * MIB, True, {"limit": 8 * MIB, "swap": 9 * MIB}, id="swap"),
            pytest.param(-1, True, {"limit": 8 * MIB, "swap": -1}, id="any swap"),
            pytest.param(9 * MIB, False, {"limit": 8 * MIB}, id="swap can't be limited here"),
        ],
    )
    def test_memory(self, swap: int, accounting: bool, expected: dict[str, int]) -> None:
        found = resources(facts(swap_accounting=accounting), memory_limit_in_bytes=8 * MIB, memory_swap_limit_in_bytes=swap)
        assert found == {"memory": expected}

    def test_huge_pages(self) -> None:
        limits = [cri.HugepageLimit(page_size="2MB", limit=4 * MIB), cri.HugepageLimit(page_size="1GB")]
        assert resources(hugepage_limits=limits) == {
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MIB}, {"pageSize": "1GB", "limit": 0}]
        }
        assert resources(facts(hugetlb=False), hugepage_limits=limits) == {}

    def test_unified(self) -> None:
        assert resources(facts(cgroup_v2=True), unified={"memory.high": "max"}) == {"unified": {"memory.high": "max"}}

    @pytest.mark.parametrize(
        ("wanted", "field"),
        [
            ({"cpu_shares": -1}, "cpu_shares -1"),
            ({"cpu_shares": 262_145}, "cpu_shares 262145 is not between 1 and 262144"),
            ({"cpu_period": -5}, "cpu_period -5"),
            ({"cpu_period": 999}, "cpu_period 999"),
            ({"cpu_period": 1_000_001}, "cpu_period 1000001"),
            ({"cpu_quota": 999}, "cpu_quota 999"),
            ({"memory_limit_in_bytes": -1}, "memory limit -1"),
            ({"memory_limit_in_bytes": MIB}, "memory_limit_in_bytes"),
            ({"memory_limit_in_bytes": 8 * MIB, "memory_swap_limit_in_bytes": -2}, "swap limit -2"),
            ({"memory_limit_in_bytes": 8 * MIB, "memory_swap_limit_in_bytes": 7 * MIB}, "memory_swap_limit_in_bytes"),
            ({"memory_swap_limit_in_bytes": 7 * MIB}, "memory_swap_limit_in_bytes"),
            ({"unified": {"memory.high": "max"}}, "unified"),
        ],
    )
    def test_what_can_not_be(self, wanted: dict[str, Any], field: str) -> None:
        with pytest.raises(InvalidArgument, match=rf"config\.linux\.resources.*{field}"):
            resources(**wanted)

    @pytest.mark.parametrize(("shares", "given"), [(1, 2), (2, 2), (262_144, 262_144)])
    def test_the_least_and_the_most_shares(self, shares: int, given: int) -> None:
        assert resources(cpu_shares=shares) == {"cpu": {"shares": given}}

    @pytest.mark.parametrize("size", ["", "2M", "2Mi", "0MB", "2MB/../x", "2MB\n", "1e3KB"])
    def test_what_is_no_size_of_pages(self, size: str) -> None:
        with pytest.raises(InvalidArgument, match="hugepage_limits"):
            resources(hugepage_limits=[cri.HugepageLimit(page_size=size, limit=1)])

    @pytest.mark.parametrize("name", ["../../x.y", "memory/high.x", "", "memory"])
    def test_a_name_that_leads_out_of_the_cgroup(self, name: str) -> None:
        with pytest.raises(InvalidArgument, match="unified"):
            resources(facts(cgroup_v2=True), unified={name: "1"})


def device(target: str, source: Path | str, permissions: str = "rwm") -> cri.ContainerConfig:
    return cri.ContainerConfig(devices=[cri.Device(container_path=target, host_path=str(source), permissions=permissions)])


class TestDevices:
    NULL = os.stat("/dev/null")

    def test_only_what_the_engine_always_allows(self) -> None:
        found = built()
        assert found["devices"] == []
        assert found["resources"]["devices"] == [{"allow": False, "access": "rwm"}]

    @pytest.mark.parametrize(("permissions", "access"), [("rw", "rw"), ("", "rwm")])
    def test_one(self, permissions: str, access: str) -> None:
        found = built(device("/dev/mine", "/dev/null", permissions))
        assert found["devices"] == [
            {
                "path": "/dev/mine", "type": "c", "major": 1, "minor": 3,
                "fileMode": stat.S_IMODE(self.NULL.st_mode), "uid": self.NULL.st_uid, "gid": self.NULL.st_gid,
            }
        ]  # fmt: skip
        assert found["resources"]["devices"][1:] == [{"allow": True, "type": "c", "major": 1, "minor": 3, "access": access}]

    def test_a_symbolic_link_is_resolved(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("/dev/null")
        (node,) = built(device("/dev/mine", tmp_path / "link"))["devices"]
        assert (node["path"], node["minor"]) == ("/dev/mine", 3)

    @pytest.mark.parametrize("target", ["/dev/snd", "/dev/snd/"])
    def test_all_of_a_directory(self, tmp_path: Path, target: str) -> None:
        (tmp_path / "below").mkdir()
        (tmp_path / "below/zero").symlink_to("/dev/zero")
        (tmp_path / "null").symlink_to("/dev/null")
        (tmp_path / "README").touch()
        found = built(device(target, tmp_path))["devices"]
        assert [(node["path"], node["minor"]) for node in found] == [("/dev/snd/below/zero", 5), ("/dev/snd/null", 3)]

    @pytest.mark.parametrize(
        ("config", "error", "words"),
        [
            (device("/dev/x", "/no/such"), NotFound, "host_path '/no/such'"),
            (device("/dev/x", "/etc/passwd"), InvalidArgument, "host_path '/etc/passwd' is not a device"),
            (device("/dev/x", "null"), InvalidArgument, "host_path 'null'"),
            (device("/dev/x", "/dev/\0"), InvalidArgument, "host_path"),
            (device("/dev/x", "/dev/null", "rwx"), InvalidArgument, "permissions 'rwx'"),
            (device("x", "/dev/null"), InvalidArgument, "container_path"),
            (device("", "/dev/null"), InvalidArgument, "container_path"),
            (device("/dev/\0", "/dev/null"), InvalidArgument, "container_path"),
        ],
    )
    def test_one_that_can_not_be(self, config: cri.ContainerConfig, error: type[OrlopError], words: str) -> None:
        with pytest.raises(error, match=words) as failure:
            built(config)
        assert str(failure.value).startswith(f"config.devices[{config.devices[0].container_path!r}]")

    def test_a_device_that_disappears_while_it_is_looked_at(self, tmp_path: Path) -> None:
        (tmp_path / "gone").symlink_to("nowhere")
        with pytest.raises(NotFound, match="can't be used"):
            built(device("/dev/x", tmp_path))

    def test_privileged_means_all_of_the_host(self) -> None:
        found = built(device("/dev/mine", "/dev/null"), security=PRIVILEGED)
        paths = [node["path"] for node in found["devices"]]
        assert {"/dev/null", "/dev/zero", "/dev/full"} <= set(paths)
        assert not [path for path in paths if path.startswith(("/dev/pts/", "/dev/shm/", "/dev/mqueue/", "/dev/fd"))]
        assert "/dev/console" not in paths
        assert found["resources"]["devices"] == [{"allow": True, "access": "rwm"}]

    def test_a_device_of_the_host_that_is_unplugged_meanwhile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def walk(top: str) -> Iterator[tuple[str, list[str], list[str]]]:
            yield top, [], ["null", "unplugged"]

        monkeypatch.setattr(os, "walk", walk)
        assert [node["path"] for node in built(security=PRIVILEGED)["devices"]] == ["/dev/null"]


def confined(**fields: Any) -> cri.LinuxContainerSecurityContext:
    return cri.LinuxContainerSecurityContext(
        masked_paths=["/proc/kcore"],
        readonly_paths=["/proc/sys"],
        seccomp=cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault),
        **fields,
    )


class TestConfinement:
    def test_paths_and_profile(self) -> None:
        found = built(security=confined())
        assert (found["maskedPaths"], found["readonlyPaths"]) == (["/proc/kcore"], ["/proc/sys"])
        assert found["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"

    def test_a_privileged_container_has_none_of_it(self) -> None:
        assert not {"maskedPaths", "readonlyPaths", "seccomp"} & set(built(security=confined(privileged=True)))

    @pytest.mark.parametrize(("node", "opened"), [(frozenset({"SYS_ADMIN"}), True), (frozenset({"CHOWN"}), False)])
    def test_only_a_capability_that_the_node_has_opens_system_calls(self, node: frozenset[str], opened: bool) -> None:
        security = confined(capabilities=cri.Capability(add_capabilities=["SYS_ADMIN"]))
        profile = built(security=security, facts=facts(capabilities=node))["seccomp"]
        assert any("mount" in rule["names"] for rule in profile["syscalls"]) is opened

    @pytest.mark.parametrize(
        "security",
        [
            cri.LinuxContainerSecurityContext(
                apparmor=cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref="mine")
            ),
            cri.LinuxContainerSecurityContext(apparmor_profile="localhost/mine"),
        ],
    )
    def test_an_apparmor_profile_is_not_left_out_in_silence(self, security: cri.LinuxContainerSecurityContext) -> None:
        with pytest.raises(InvalidArgument, match="apparmor"):
            built(security=security)

    @pytest.mark.parametrize("kind", [cri.SecurityProfile.RuntimeDefault, cri.SecurityProfile.Unconfined])
    def test_the_runtimes_own_apparmor_profile_is_none(self, kind: Any) -> None:
        assert "apparmorProfile" not in built(security=cri.LinuxContainerSecurityContext(apparmor=cri.SecurityProfile(profile_type=kind)))


class TestWhole:
    async def test_it_is_json_that_the_oldest_engine_takes(self) -> None:
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name="app"), image=cri.ImageSpec(image="sha256:00", user_specified_image="busybox:1")
        )
        made = await spec.build(inputs(config, security=cri.LinuxContainerSecurityContext(readonly_rootfs=True)))
        assert json.loads(json.dumps(made)) == made
        assert made["ociVersion"] == "1.0.2"
        assert made["root"] == {"path": "rootfs", "readonly": True}
        assert made["annotations"] == {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": "app",
            "io.kubernetes.cri.sandbox-id": "ab" * 32,
            "io.kubernetes.cri.sandbox-name": "web",
            "io.kubernetes.cri.sandbox-namespace": "default",
            "io.kubernetes.cri.sandbox-uid": "u1",
            "io.kubernetes.cri.image-name": "busybox:1",
        }
        # A container that set it would set it for its whole pod.
        assert not {"hostname", "domainname"} & set(made)
        assert "sysctl" not in made["linux"]
        assert "rootfsPropagation" not in made["linux"]

    @pytest.mark.field_fault("14")
    async def test_a_scope_that_fails_is_not_kept_by_systemd(self) -> None:
        made = await spec.build(inputs(handler=RuntimeHandler("crun", systemd_cgroup=True)))
        assert made["annotations"]["org.systemd.property.CollectMode"] == "'inactive-or-failed'"

    async def test_what_the_mounts_need_of_the_rootfs_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(spec.mounts, "plan", lambda _: spec.mounts.MountPlan([], "rslave"))
        assert (await spec.build(inputs()))["linux"]["rootfsPropagation"] == "rslave"

"""`mounts` of the spec: their order, what takes whose place, and which can't be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.errdefs import FailedPrecondition, InvalidArgument, NotFound, OrlopError
from agent.linux.mounts import Mount
from agent.pods.spec.inputs import SpecInputs
from agent.pods.spec.mounts import MountPlan, plan
from agent.runtime.v2.features import HandlerFeatures
from cri.api import api_pb2 as cri
from tests.unit.pods.specs import DIRECTORY, PINS, facts, inputs

PSEUDO = ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup"]
POD_FILES = ["/dev/shm", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]
PRIVILEGED = cri.LinuxContainerSecurityContext(privileged=True)


def given(*mounts: cri.Mount, **changes: Any) -> SpecInputs:
    return inputs(cri.ContainerConfig(mounts=mounts), **changes)


def planned(*mounts: cri.Mount, **changes: Any) -> dict[str, dict[str, Any]]:
    """By destination, in order."""
    made = plan(given(*mounts, **changes)).mounts
    found = {mount["destination"]: mount for mount in made}
    assert len(found) == len(made)
    return found


def volume(target: str, source: Path | str = "/tmp", **fields: Any) -> cri.Mount:
    return cri.Mount(container_path=target, host_path=str(source), **fields)


class TestDefaults:
    def test_what_every_container_has(self) -> None:
        assert sorted(planned()) == sorted(PSEUDO + POD_FILES)
        assert list(planned())[: len(PSEUDO)] == PSEUDO

    def test_the_pods_files_are_the_sandboxs(self) -> None:
        found = planned()
        assert {target: found[target]["source"] for target in POD_FILES} == {
            "/dev/shm": f"{DIRECTORY}/shm",
            "/etc/hostname": f"{DIRECTORY}/hostname",
            "/etc/hosts": f"{DIRECTORY}/hosts",
            "/etc/resolv.conf": f"{DIRECTORY}/resolv.conf",
        }

    def test_with_the_nodes_ipc_comes_the_nodes_shm(self) -> None:
        assert planned(pins={"network": PINS["network"]})["/dev/shm"]["source"] == "/dev/shm"

    @pytest.mark.parametrize("pins", [PINS, {}], ids=["pod", "node"])
    def test_sysfs_is_never_the_hosts_with_what_is_mounted_below_it(self, pins: dict[str, Any]) -> None:
        assert planned(pins=pins)["/sys"]["type"] == "sysfs"

    def test_only_a_privileged_container_may_write_to_sysfs_and_cgroups(self) -> None:
        for target in ("/sys", "/sys/fs/cgroup"):
            assert "ro" in planned()[target]["options"]
            assert "rw" in planned(security=PRIVILEGED)[target]["options"]

    def test_a_read_only_rootfs_has_read_only_files(self) -> None:
        read_only = cri.LinuxContainerSecurityContext(readonly_rootfs=True)
        assert "ro" in planned(security=read_only)["/etc/hosts"]["options"]
        assert "rw" in planned(security=read_only)["/dev/shm"]["options"]
        assert "rw" in planned()["/etc/hosts"]["options"]

    @pytest.mark.parametrize(
        ("v2", "security", "expected"),
        [(True, PRIVILEGED, {"nsdelegate", "memory_recursiveprot"}), (True, None, set()), (False, PRIVILEGED, set())],
    )
    def test_a_mount_of_the_nodes_cgroup2_keeps_its_options(self, tmp_path: Path, v2: bool, security: Any, expected: set[str]) -> None:
        made = plan(given(security=security, facts=facts(cgroup_v2=v2)), table(tmp_path)).mounts
        (options,) = (mount["options"] for mount in made if mount["destination"] == "/sys/fs/cgroup")
        assert {"nsdelegate", "memory_recursiveprot"} & set(options) == expected


class TestOrder:
    def test_what_lies_deeper_comes_later(self) -> None:
        found = list(planned(volume("/a/b/c"), volume("/a"), volume("/b/c"), volume("/a/b")))
        assert [target for target in found if target[1] in "ab"] == ["/a", "/b/c", "/a/b", "/a/b/c"]

    def test_a_volume_does_not_hide_the_pods_files_below_it(self) -> None:
        found = list(planned(volume("/etc")))
        assert found.index("/etc") < found.index("/etc/hosts")

    def test_two_at_one_place_keep_their_order(self, tmp_path: Path) -> None:
        made = plan(given(volume("/a", "/tmp"), volume("/a", tmp_path))).mounts
        assert [mount["source"] for mount in made if mount["destination"] == "/a"] == ["/tmp", str(tmp_path)]

    @pytest.mark.parametrize("target", ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm", "/proc", "/sys", "/dev/mqueue"])
    @pytest.mark.parametrize("spelling", ["{}", "{}/", "/x/..{}", "/{}", "{}/."])
    def test_a_volume_takes_the_place_of_a_default(self, target: str, spelling: str) -> None:
        assert planned(volume(spelling.format(target)))[target]["source"] == "/tmp"

    def test_a_volume_on_dev_takes_the_place_of_all_below(self) -> None:
        found = planned(volume("/dev", "/dev"))
        assert found["/dev"]["type"] == "bind"
        assert [target for target in found if target.startswith("/dev/")] == ["/dev/shm"]
        assert list(found).index("/dev") < list(found).index("/dev/shm")


class TestVolumes:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, ["rbind", "rprivate", "rw"]),
            ({"readonly": True}, ["rbind", "rprivate", "ro"]),
            ({"readonly": True, "recursive_read_only": True}, ["rbind", "rprivate", "rro"]),
            ({"mount_options": ["noexec", "nodev"]}, ["rbind", "rprivate", "rw", "noexec", "nodev"]),
        ],
    )
    def test_options(self, fields: dict[str, Any], expected: list[str]) -> None:
        assert planned(volume("/data", **fields))["/data"]["options"] == expected

    def test_an_image(self) -> None:
        made = {("sha256:1", ""): Mount("overlay", "overlay", ("ro", "lowerdir=/a")), ("sha256:1", "etc"): Mount("overlay", "o", ("ro",))}
        image = cri.ImageSpec(image="sha256:1")
        both = [
            cri.Mount(container_path="/all", image=image, readonly=True, mount_options=["noexec", "nodev"]),
            cri.Mount(container_path="/etc", image=image, image_sub_path="etc", readonly=True, propagation=ONE_WAY),
        ]
        found = planned(*both, image_volumes=made)
        assert found["/all"] == {
            "destination": "/all", "type": "overlay", "source": "overlay", "options": ["ro", "lowerdir=/a", "noexec", "nodev"],
        }  # fmt: skip
        assert found["/etc"]["source"] == "o"
        assert plan(given(*both, image_volumes=made)).rootfs_propagation == "", "nothing of the host is below an image"

    def test_what_the_engine_can_not_make_read_only_is_refused(self) -> None:
        features = HandlerFeatures("engine x has no mount option rro")
        deep = volume("/data", readonly=True, recursive_read_only=True)
        with pytest.raises(FailedPrecondition, match=r"^RROUnsupported: config.mounts\['/data'\]: recursive_read_only: engine x has no"):
            planned(deep, features=features)
        assert "ro" in planned(volume("/data", readonly=True), features=features)["/data"]["options"]

    def test_a_symbolic_link_is_resolved(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        assert planned(volume("/data", tmp_path / "link"))["/data"]["source"] == str(tmp_path / "real")

    @pytest.mark.parametrize(
        ("mount", "error", "words"),
        [
            (volume(""), InvalidArgument, "container_path"),
            (volume("data"), InvalidArgument, "container_path"),
            (volume("/a\0"), InvalidArgument, "container_path"),
            (volume("/"), InvalidArgument, "container_path"),
            (volume("/a/.."), InvalidArgument, "container_path"),
            (volume("/data", ""), InvalidArgument, "host_path"),
            (volume("/data", "tmp"), InvalidArgument, "host_path"),
            (volume("/data", "/tmp\0"), InvalidArgument, "host_path"),
            (volume("/data", "/no/such/place"), NotFound, "host_path '/no/such/place'"),
            (volume("/data", "/dev/null/below"), NotFound, "host_path '/dev/null/below'"),
            (volume("/data", recursive_read_only=True), InvalidArgument, "recursive_read_only"),
            (
                volume("/data", readonly=True, recursive_read_only=True, propagation=cri.PROPAGATION_HOST_TO_CONTAINER),
                InvalidArgument, "recursive_read_only",
            ),
            (volume("/data", mount_options=["suid"]), InvalidArgument, "mount_options"),
            (volume("/data", propagation=9), InvalidArgument, "propagation 9"),
            (volume("/data", uidMappings=[cri.IDMapping(length=1)]), InvalidArgument, "idmapped"),
            (volume("/data", gidMappings=[cri.IDMapping(length=1)]), InvalidArgument, "idmapped"),
        ],
    )  # fmt: skip
    def test_a_volume_that_can_not_be(self, mount: cri.Mount, error: type[OrlopError], words: str) -> None:
        with pytest.raises(error, match=words) as failure:
            planned(mount)
        assert str(failure.value).startswith(f"config.mounts[{mount.container_path!r}]")


def table(tmp_path: Path) -> Path:
    """A node's mounts: / is private, /shared and /shared/below/private what they say, /slave receives."""
    path = tmp_path / "mountinfo"
    path.write_text(
        "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"21 20 8:1 / {tmp_path}/shared rw shared:7 - ext4 /dev/sda1 rw\n"
        f"22 21 8:1 / {tmp_path}/shared/private rw - ext4 /dev/sda1 rw\n"
        f"23 20 8:1 / {tmp_path}/slave rw master:7 - ext4 /dev/sda1 rw\n"
        f"24 20 8:1 / {tmp_path}/twice rw shared:8 - ext4 /dev/sda1 rw\n"
        f"25 24 8:1 / {tmp_path}/twice rw - ext4 /dev/sda1 rw\n"
        "26 20 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup rw,nsdelegate,memory_recursiveprot\n"
    )
    return path


BOTH_WAYS, ONE_WAY, PRIVATE = cri.PROPAGATION_BIDIRECTIONAL, cri.PROPAGATION_HOST_TO_CONTAINER, cri.PROPAGATION_PRIVATE


class TestPropagation:
    @staticmethod
    def plan(tmp_path: Path, *wanted: tuple[str, cri.MountPropagation]) -> MountPlan:
        mounts = []
        for number, (name, propagation) in enumerate(wanted):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            mounts.append(volume(f"/data{number}", tmp_path / name, propagation=propagation))
        return plan(given(*mounts), table(tmp_path))

    @pytest.mark.parametrize(
        ("place", "propagation", "option"),
        [
            ("shared/x", BOTH_WAYS, "rshared"),
            ("shared", BOTH_WAYS, "rshared"),
            ("shared/x", ONE_WAY, "rslave"),
            ("slave", ONE_WAY, "rslave"),
            ("alone", PRIVATE, "rprivate"),
            ("sharedx/../shared/y", ONE_WAY, "rslave"),
        ],
    )
    def test_option(self, tmp_path: Path, place: str, propagation: cri.MountPropagation, option: str) -> None:
        (tmp_path / "sharedx").mkdir()
        (options,) = (mount["options"] for mount in self.plan(tmp_path, (place, propagation)).mounts if mount["destination"] == "/data0")
        assert option in options

    @pytest.mark.parametrize(
        ("place", "propagation"),
        [
            ("alone", BOTH_WAYS),
            ("alone", ONE_WAY),
            ("slave", BOTH_WAYS),
            ("shared/private", BOTH_WAYS),
            ("shared/private/x", ONE_WAY),
            ("sharedx", ONE_WAY),
            ("twice", ONE_WAY),
        ],
    )
    def test_it_needs_a_mount_of_the_host_that_propagates(self, tmp_path: Path, place: str, propagation: cri.MountPropagation) -> None:
        with pytest.raises(InvalidArgument, match=f"{tmp_path}/{place} is"):
            self.plan(tmp_path, (place, propagation))

    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            ([PRIVATE], ""),
            ([PRIVATE, ONE_WAY], "rslave"),
            ([BOTH_WAYS, ONE_WAY], "rshared"),
            ([ONE_WAY, BOTH_WAYS], "rshared"),
        ],
    )
    def test_the_rootfs_propagates_as_the_strongest_mount_needs(
        self, tmp_path: Path, wanted: list[cri.MountPropagation], expected: str
    ) -> None:
        assert self.plan(tmp_path, *(("shared", propagation) for propagation in wanted)).rootfs_propagation == expected

"""`process` of the spec: what runs, with which environment and rights."""

from __future__ import annotations

import os
from typing import Any

import pytest

from agent.errdefs import InvalidArgument
from agent.images.documents import ImageConfig
from agent.pods.facts import CAPABILITIES
from agent.pods.spec import capabilities as caps
from agent.pods.spec import process
from cri.api import api_pb2 as cri
from tests.unit.pods.specs import facts, inputs


def container(**fields: Any) -> cri.ContainerConfig:
    return cri.ContainerConfig(metadata=cri.ContainerMetadata(name="app"), **fields)


class TestArguments:
    IMAGE = ImageConfig(entrypoint=("/entry", "-e"), cmd=("serve", "-c"))

    @pytest.mark.parametrize(
        ("command", "args", "expected"),
        [
            ([], [], ["/entry", "-e", "serve", "-c"]),
            ([], ["x"], ["/entry", "-e", "x"]),
            (["/other"], [], ["/other"]),
            (["/other"], ["x"], ["/other", "x"]),
        ],
    )
    def test_command_replaces_entrypoint_and_args_replace_cmd(self, command: list[str], args: list[str], expected: list[str]) -> None:
        assert process.arguments(inputs(container(command=command, args=args), image=self.IMAGE)) == expected

    def test_args_alone_run_in_an_image_without_entrypoint(self) -> None:
        assert process.arguments(inputs(container(args=["x"]), image=ImageConfig(cmd=("y",)))) == ["x"]

    def test_nothing_to_run(self) -> None:
        with pytest.raises(InvalidArgument, match=r"config\.command is empty"):
            process.arguments(inputs(image=ImageConfig()))

    @pytest.mark.parametrize(
        ("config", "image"),
        [
            (container(command=["a\0b"]), ImageConfig()),
            (container(args=["\0"]), ImageConfig()),
            (container(), ImageConfig(cmd=("a", "b\0"))),
        ],
    )
    def test_a_word_with_nul(self, config: cri.ContainerConfig, image: ImageConfig) -> None:
        with pytest.raises(InvalidArgument, match=r"command.*NUL"):
            process.arguments(inputs(config, image=image))


def environment(*variables: tuple[str, bytes], tty: bool = False, image: tuple[str, ...] = (), **changes: Any) -> dict[str, str]:
    config = container(envs=[cri.KeyValue(key=key, value=value) for key, value in variables], tty=tty)
    entries = process.environment(inputs(config, image=ImageConfig(cmd=("x",), env=image), **changes))
    names = [entry.partition("=")[0] for entry in entries]
    assert len(names) == len(set(names)), names
    return {entry.partition("=")[0]: entry.partition("=")[2] for entry in entries}


class TestEnvironment:
    def test_path_and_host_name_are_always_there(self) -> None:
        assert environment() == {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME": "web"}

    def test_the_image_wins_over_defaults_and_the_request_over_the_image(self) -> None:
        found = environment(("B", b"request"), ("PATH", b"/mine"), image=("A=image", "B=image", "PATH=/image", "HOSTNAME=image"))
        assert found == {"A": "image", "B": "request", "PATH": "/mine", "HOSTNAME": "image"}

    def test_the_last_of_a_name_wins(self) -> None:
        assert environment(("A", b"1"), ("A", b"2"))["A"] == "2"

    def test_values_may_hold_anything_but_nul(self) -> None:
        found = environment(("A", b"x=y\n z"), ("EMPTY", b""), ("BYTES", b"\xff\xfe"))
        assert (found["A"], found["EMPTY"]) == ("x=y\n z", "")
        assert found["BYTES"].encode("utf-8", "surrogateescape") == b"\xff\xfe"

    def test_a_terminal_has_a_type_unless_somebody_says_another(self) -> None:
        assert environment(tty=True)["TERM"] == "xterm"
        assert environment(("TERM", b"vt100"), tty=True)["TERM"] == "vt100"
        assert "TERM" not in environment()

    def test_in_the_nodes_network_a_container_has_the_nodes_name(self) -> None:
        assert environment(pod=cri.PodSandboxConfig(), pins={})["HOSTNAME"] == os.uname().nodename

    @pytest.mark.parametrize(("key", "value"), [("", b"x"), ("A=B", b"x"), ("A\0", b"x"), ("A", b"x\0y")])
    def test_what_is_no_variable(self, key: str, value: bytes) -> None:
        with pytest.raises(InvalidArgument, match=r"config\.envs"):
            environment((key, value))

    def test_an_image_with_nul_in_it(self) -> None:
        with pytest.raises(InvalidArgument, match="environment of the image"):
            environment(image=("A=\0",))


class TestWorkingDirectory:
    @pytest.mark.parametrize(("wanted", "image", "expected"), [("", "", "/"), ("", "/srv", "/srv"), ("/mine", "/srv", "/mine")])
    def test_the_request_wins_over_the_image(self, wanted: str, image: str, expected: str) -> None:
        built = process.build(inputs(container(working_dir=wanted), image=ImageConfig(cmd=("x",), working_dir=image)))
        assert built["cwd"] == expected

    @pytest.mark.parametrize(
        ("wanted", "image", "field"),
        [
            ("here", "", r"config\.working_dir 'here'"),
            ("", "srv", "the image's working directory 'srv'"),
            ("/a\0", "", r"config\.working_dir"),
        ],
    )
    def test_a_directory_that_can_not_be(self, wanted: str, image: str, field: str) -> None:
        with pytest.raises(InvalidArgument, match=field):
            process.build(inputs(container(working_dir=wanted), image=ImageConfig(cmd=("x",), working_dir=image)))


def capability_sets(node: frozenset[str] = frozenset(CAPABILITIES), /, **security: Any) -> dict[str, set[str]]:
    wanted = cri.LinuxContainerSecurityContext(privileged=security.pop("privileged", False), capabilities=cri.Capability(**security))
    found = caps.capabilities(wanted, facts(capabilities=node))
    return {kind: {name.removeprefix("CAP_") for name in names} for kind, names in found.items()}


class TestCapabilities:
    ALL = frozenset(CAPABILITIES)
    DEFAULT = frozenset(caps.DEFAULT)

    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            pytest.param({}, DEFAULT, id="default"),
            pytest.param(
                {"add_capabilities": ["NET_ADMIN", "cap_sys_time"]}, DEFAULT | {"NET_ADMIN", "SYS_TIME"}, id="added, in any spelling"
            ),
            pytest.param({"drop_capabilities": ["CHOWN"]}, DEFAULT - {"CHOWN"}, id="dropped"),
            pytest.param({"drop_capabilities": ["ALL"], "add_capabilities": ["CHOWN"]}, {"CHOWN"}, id="one alone"),
            pytest.param({"add_capabilities": ["ALL"], "drop_capabilities": ["SYS_ADMIN"]}, ALL - {"SYS_ADMIN"}, id="all but one"),
            pytest.param(
                {"add_capabilities": ["ALL", "CHOWN"], "drop_capabilities": ["all"]}, {"CHOWN"}, id="drop ALL comes after add ALL"
            ),
            pytest.param({"add_capabilities": ["CHOWN"], "drop_capabilities": ["CHOWN"]}, DEFAULT - {"CHOWN"}, id="drop comes after add"),
            pytest.param({"privileged": True, "drop_capabilities": ["CHOWN"]}, ALL, id="privileged"),
        ],
    )
    def test_granted(self, wanted: dict[str, Any], expected: frozenset[str]) -> None:
        found = capability_sets(**wanted)
        assert found["bounding"] == found["effective"] == found["permitted"] == expected
        assert found["inheritable"] == found["ambient"] == set()

    def test_ambient_ones_are_granted_and_inheritable(self) -> None:
        found = capability_sets(add_ambient_capabilities=["NET_ADMIN"])
        assert found["ambient"] == found["inheritable"] == {"NET_ADMIN"}
        assert "NET_ADMIN" in found["permitted"]

    def test_an_ambient_one_that_is_dropped_is_not_raised(self) -> None:
        assert capability_sets(add_ambient_capabilities=["CHOWN"], drop_capabilities=["CHOWN"])["ambient"] == set()

    @pytest.mark.parametrize(
        "wanted", [{"privileged": True}, {"add_capabilities": ["ALL"]}, {"add_capabilities": ["SYS_RESOURCE", "CHOWN"]}]
    )
    def test_nothing_that_the_node_does_not_have(self, wanted: dict[str, Any]) -> None:
        assert capability_sets(frozenset({"CHOWN"}), **wanted)["bounding"] == {"CHOWN"}

    @pytest.mark.parametrize("field", ["add_capabilities", "drop_capabilities", "add_ambient_capabilities"])
    @pytest.mark.parametrize("name", ["NO_SUCH", "", "CAP_", "CAP_CAP_CHOWN"])
    def test_a_name_that_linux_does_not_know(self, field: str, name: str) -> None:
        with pytest.raises(InvalidArgument, match=rf"capabilities\.{field}"):
            capability_sets(**{field: [name]})


class TestLimits:
    @pytest.mark.parametrize(("node", "soft", "hard"), [(1 << 20, 1024, 524288), (20000, 1024, 20000), (512, 512, 512)])
    def test_open_files_never_exceed_the_nodes(self, node: int, soft: int, hard: int) -> None:
        limits = process.build(inputs(facts=facts(nofile_limit=node)))["rlimits"]
        assert limits == [{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}]

    @pytest.mark.parametrize(
        ("wanted", "floor", "expected"), [(-997, -1000, -997), (-997, 0, 0), (1000, -1000, 1000), (-1000, -1000, -1000)]
    )
    def test_the_oom_score_is_what_the_node_allows(self, wanted: int, floor: int, expected: int) -> None:
        built = process.build(inputs(resources=cri.LinuxContainerResources(oom_score_adj=wanted), facts=facts(oom_score_floor=floor)))
        assert built["oomScoreAdj"] == expected

    @pytest.mark.parametrize("score", [-1001, 1001, 2**40])
    def test_an_oom_score_that_linux_does_not_have(self, score: int) -> None:
        with pytest.raises(InvalidArgument, match="oom_score_adj"):
            process.build(inputs(resources=cri.LinuxContainerResources(oom_score_adj=score)))


def test_the_rest_is_passed_on() -> None:
    security = cri.LinuxContainerSecurityContext(no_new_privs=True, run_as_user=cri.Int64Value(value=7), supplemental_groups=[9])
    built = process.build(inputs(container(tty=True), security=security))
    assert (built["terminal"], built["noNewPrivileges"]) == (True, True)
    assert built["user"] == {"uid": 7, "gid": 0, "additionalGids": [0, 9]}

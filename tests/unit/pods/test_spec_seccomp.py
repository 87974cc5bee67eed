"""Seccomp profiles: what the default one allows, and profiles of the node."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.errdefs import InvalidArgument, NotFound, OrlopError
from agent.pods.spec import capabilities, seccomp
from cri.api import api_pb2 as cri

Profile = cri.SecurityProfile
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWCGROUP, CLONE_VM = 0x20000, 0x10000000, 0x2000000, 0x100
DEFAULT = [f"CAP_{name}" for name in capabilities.DEFAULT]
EPERM, ENOSYS = 1, 38


def asked(kind: Any, reference: str = "") -> cri.LinuxContainerSecurityContext:
    return cri.LinuxContainerSecurityContext(seccomp=Profile(profile_type=kind, localhost_ref=reference))


def verdict(profile: dict[str, Any], call: str, *arguments: int) -> int:
    """What the kernel would do with a call: 0 to let it pass, else the errno. Of several rules that match, one that allows wins."""
    compare: dict[str, Callable[[int, int, int], bool]] = {
        "SCMP_CMP_NE": lambda given, value, _: given != value,
        "SCMP_CMP_EQ": lambda given, value, _: given == value,
        "SCMP_CMP_LT": lambda given, value, _: given < value,
        "SCMP_CMP_GT": lambda given, value, _: given > value,
        "SCMP_CMP_MASKED_EQ": lambda given, mask, value: given & mask == value,
    }
    matching = [
        rule
        for rule in profile["syscalls"]
        if call in rule["names"]
        and all(compare[test["op"]](arguments[test["index"]], test["value"], test["valueTwo"]) for test in rule.get("args", []))
    ]
    if any(rule["action"] == "SCMP_ACT_ALLOW" for rule in matching):
        return 0
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    return int(matching[0]["errnoRet"] if matching else profile["defaultErrnoRet"])


class TestWhich:
    def test_without_a_word_there_is_none(self) -> None:
        assert seccomp.profile(cri.LinuxContainerSecurityContext(), DEFAULT) is None

    def test_unconfined(self) -> None:
        assert seccomp.profile(asked(Profile.Unconfined), DEFAULT) is None

    def test_the_default(self) -> None:
        assert seccomp.profile(asked(Profile.RuntimeDefault), DEFAULT) == seccomp.default_profile(DEFAULT)

    def test_one_of_the_nodes_is_passed_on_as_it_is(self, tmp_path: Path) -> None:
        mine = {
            "defaultAction": "SCMP_ACT_LOG",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["bpf"], "action": "SCMP_ACT_KILL"}],
        }
        (tmp_path / "mine.json").write_text(json.dumps(mine))
        assert seccomp.profile(asked(Profile.Localhost, str(tmp_path / "mine.json")), DEFAULT) == mine

    @pytest.mark.parametrize(
        ("content", "error"),
        [
            (None, NotFound),
            (b"", InvalidArgument),
            (b"{", InvalidArgument),
            (b"\xff\xfe", InvalidArgument),
            (b"[]", InvalidArgument),
            (b"null", InvalidArgument),
            (b"{}", InvalidArgument),
            (b'{"defaultAction": 7}', InvalidArgument),
            (b"[" * 100_000, InvalidArgument),
        ],
    )
    def test_one_of_the_nodes_that_is_none(self, tmp_path: Path, content: bytes | None, error: type[OrlopError]) -> None:
        path = tmp_path / "mine.json"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(error, match=rf"seccomp\.localhost_ref '{path}'"):
            seccomp.profile(asked(Profile.Localhost, str(path)), DEFAULT)

    def test_one_of_the_nodes_that_would_hang_or_is_a_directory(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path, tmp_path / "fifo"):
            with pytest.raises(InvalidArgument, match="is not a file"):
                seccomp.profile(asked(Profile.Localhost, str(path)), DEFAULT)

    @pytest.mark.parametrize("reference", ["", "mine.json", "../mine.json", "localhost/mine.json"])
    def test_a_reference_that_is_no_path(self, reference: str) -> None:
        with pytest.raises(InvalidArgument, match=r"seccomp\.localhost_ref"):
            seccomp.profile(asked(Profile.Localhost, reference), DEFAULT)

    def test_a_kind_that_the_cri_does_not_have_is_not_unconfined(self) -> None:
        with pytest.raises(InvalidArgument, match=r"seccomp\.profile_type 7"):
            seccomp.profile(asked(7), DEFAULT)

    def test_the_field_of_old_is_not_left_out_in_silence(self) -> None:
        with pytest.raises(InvalidArgument, match="seccomp_profile_path"):
            seccomp.profile(cri.LinuxContainerSecurityContext(seccomp_profile_path="localhost/mine"), DEFAULT)
        both = asked(Profile.Unconfined)
        both.seccomp_profile_path = "unconfined"
        assert seccomp.profile(both, DEFAULT) is None


class TestDefault:
    PROFILE = seccomp.default_profile(DEFAULT)

    @pytest.mark.parametrize("call", ["read", "openat2", "futex_waitv", "epoll_pwait2", "ptrace", "chroot", "lsm_get_self_attr", "mseal"])
    def test_ordinary_calls_pass(self, call: str) -> None:
        assert verdict(self.PROFILE, call) == 0

    @pytest.mark.parametrize(
        "call", ["mount", "bpf", "reboot", "kexec_load", "open_by_handle_at", "unshare", "setns", "keyctl", "io_uring_setup"]
    )
    def test_others_are_not_permitted(self, call: str) -> None:
        assert verdict(self.PROFILE, call) == EPERM

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [(0, 0), (CLONE_VM, 0), (CLONE_NEWNS, EPERM), (CLONE_NEWUSER | CLONE_VM, EPERM), (CLONE_NEWCGROUP, EPERM)],
    )
    def test_clone_makes_threads_and_processes_but_no_namespaces(self, flags: int, expected: int) -> None:
        assert verdict(self.PROFILE, "clone", flags) == expected

    def test_on_s390x_the_flags_of_clone_come_second(self) -> None:
        profile = seccomp.default_profile(DEFAULT, "s390x")
        assert verdict(profile, "clone", CLONE_NEWNS, 0) == 0
        assert verdict(profile, "clone", 0, CLONE_NEWNS) == EPERM

    def test_clone3_sends_the_c_library_back_to_clone(self) -> None:
        assert verdict(self.PROFILE, "clone3") == ENOSYS

    @pytest.mark.parametrize(("family", "expected"), [(1, 0), (2, 0), (10, 0), (16, 0), (38, EPERM), (39, 0), (40, EPERM), (41, 0)])
    def test_sockets_of_all_families_but_two(self, family: int, expected: int) -> None:
        assert verdict(self.PROFILE, "socket", family) == expected

    @pytest.mark.parametrize(("persona", "expected"), [(0, 0), (8, 0), (0xFFFFFFFF, 0), (0x0040000, EPERM)])
    def test_no_personality_that_turns_randomisation_off(self, persona: int, expected: int) -> None:
        assert verdict(self.PROFILE, "personality", persona) == expected

    @pytest.mark.parametrize(
        ("capability", "calls"),
        [
            ("CAP_SYS_ADMIN", ["mount", "unshare", "setns", "bpf", "clone3"]),
            ("CAP_BPF", ["bpf"]),
            ("CAP_PERFMON", ["perf_event_open"]),
            ("CAP_SYS_BOOT", ["reboot"]),
            ("CAP_SYS_TIME", ["clock_settime"]),
            ("CAP_DAC_READ_SEARCH", ["open_by_handle_at"]),
            ("CAP_SYS_PTRACE", ["kcmp", "pidfd_getfd"]),
            ("CAP_SYSLOG", ["syslog"]),
        ],
    )
    def test_a_capability_opens_its_calls(self, capability: str, calls: list[str]) -> None:
        wider = seccomp.default_profile([*DEFAULT, capability])
        for call in calls:
            assert verdict(self.PROFILE, call) != 0
            assert verdict(wider, call) == 0

    def test_without_the_capability_even_chroot_is_closed(self) -> None:
        assert verdict(seccomp.default_profile([]), "chroot") == EPERM

    def test_with_the_capability_clone_makes_namespaces(self) -> None:
        assert verdict(seccomp.default_profile(["CAP_SYS_ADMIN"]), "clone", CLONE_NEWNS) == 0

    @pytest.mark.parametrize(("machine", "architectures"), [("x86_64", 3), ("aarch64", 2), ("riscv64", 1), ("mips", 0)])
    def test_the_programs_of_older_architectures_are_filtered_too(self, machine: str, architectures: int) -> None:
        assert len(seccomp.default_profile(DEFAULT, machine)["architectures"]) == architectures

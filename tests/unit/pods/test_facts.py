"""What a node allows, read from trees that look like one."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.pods import facts
from agent.pods.facts import CAPABILITIES, NodeFacts

ALL = (1 << len(CAPABILITIES)) - 1
SYS_RESOURCE = 1 << CAPABILITIES.index("SYS_RESOURCE")


class Node:
    """Fakes of /proc and /sys; `read` looks at them."""

    def __init__(self, root: Path) -> None:
        self.proc, self.sys = root / "proc", root / "sys"
        self.put("proc/cmdline", "root=/dev/sda quiet\n")
        self.put("proc/self/oom_score_adj", "-900\n")
        self.capabilities(ALL)
        (root / "sys/fs/cgroup").mkdir(parents=True)

    def put(self, path: str, text: str = "") -> None:
        file = self.proc.parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def capabilities(self, bounding: int) -> None:
        self.put("proc/self/status", f"Name:\tx\nCapInh:\t0000000000000000\nCapBnd:\t{bounding:016x}\nCapAmb:\t0000000000000000\n")

    def read(self, *, v2: bool) -> NodeFacts:
        return facts.read(cgroup_v2=v2, proc=self.proc, sys=self.sys, nofile_limit=20000)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_node_that_forbids_nothing(node: Node) -> None:
    node.put("sys/fs/cgroup/cgroup.controllers", "cpu memory hugetlb pids\n")
    node.put("proc/swaps")
    node.put("sys/module/apparmor/parameters/enabled", "Y\n")
    assert node.read(v2=True) == NodeFacts(
        capabilities=frozenset(CAPABILITIES),
        oom_score_floor=-1000,
        nofile_limit=20000,
        cgroup_v2=True,
        hugetlb=True,
        swap_accounting=True,
        apparmor=True,
    )


def test_without_cap_sys_resource_the_oom_score_has_a_floor(node: Node) -> None:
    node.put("sys/fs/cgroup/cgroup.controllers", "hugetlb")
    node.put("proc/swaps")
    node.capabilities(ALL & ~SYS_RESOURCE)
    found = node.read(v2=True)
    assert found.oom_score_floor == -900
    assert "SYS_RESOURCE" not in found.capabilities
    (sentence,) = found.restrictions
    assert "-900" in sentence
    assert "20000" in sentence


@pytest.mark.parametrize(
    ("files", "v2", "hugetlb", "swap"),
    [
        pytest.param({"sys/fs/cgroup/cgroup.controllers": "memory", "proc/swaps": ""}, True, False, True, id="v2 without hugetlb"),
        pytest.param({"sys/fs/cgroup/cgroup.controllers": "hugetlb"}, True, True, False, id="v2, a kernel without swap"),
        pytest.param(
            {"sys/fs/cgroup/cgroup.controllers": "hugetlb", "proc/swaps": "", "proc/cmdline": "quiet swapaccount=0\n"},
            True, True, False, id="v2, switched off",
        ),
        pytest.param({"sys/fs/cgroup/hugetlb/x": "", "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes": ""}, False, True, True, id="v1"),
        pytest.param({"sys/fs/cgroup/memory/memory.limit_in_bytes": "", "proc/swaps": ""}, False, False, False, id="v1 with neither"),
    ],
)  # fmt: skip
def test_controllers(node: Node, files: dict[str, str], v2: bool, hugetlb: bool, swap: bool) -> None:
    for path, text in files.items():
        node.put(path, text)
    found = node.read(v2=v2)
    assert (found.hugetlb, found.swap_accounting) == (hugetlb, swap)
    assert [word for word in ("huge page", "swap") if not any(word in sentence for sentence in found.restrictions)] == [
        word for word, there in (("huge page", hugetlb), ("swap", swap)) if there
    ]


@pytest.mark.parametrize(("content", "enabled"), [(None, False), ("N\n", False), ("Y\n", True)])
def test_apparmor(node: Node, content: str | None, enabled: bool) -> None:
    if content is not None:
        node.put("sys/module/apparmor/parameters/enabled", content)
    assert node.read(v2=False).apparmor is enabled


def test_capabilities_are_told_by_their_bits(node: Node) -> None:
    node.capabilities(1 << 0 | 1 << 21 | 1 << 40)
    assert node.read(v2=False).capabilities == {"CHOWN", "SYS_ADMIN", "CHECKPOINT_RESTORE"}


def test_this_machine_can_be_read() -> None:
    assert facts.read(cgroup_v2=False, nofile_limit=1).nofile_limit == 1

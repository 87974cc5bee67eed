"""Option strings, and the mount(2) calls that they mean."""

from __future__ import annotations

import errno

import pytest

from agent.linux.libc import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC, MS_REMOUNT, MS_SHARED, MS_SLAVE
from agent.linux.mountoptions import Call, calls

REMOUNT = MS_REMOUNT | MS_BIND


@pytest.mark.parametrize(
    ("fstype", "source", "options", "expected"),
    [
        pytest.param("tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=64m"],
                     [Call("shm", "tmpfs", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=1777,size=64m")], id="flags and data"),
        pytest.param("overlay", "overlay", ["lowerdir=/a:/b", "upperdir=/u", "workdir=/w", "index=off", "volatile"],
                     [Call("overlay", "overlay", 0, "lowerdir=/a:/b,upperdir=/u,workdir=/w,index=off,volatile")], id="overlay"),
        pytest.param("tmpfs", "t", ["ro", "nosuid", "rw", "suid"], [Call("t", "tmpfs", 0)], id="the last one holds"),
        pytest.param("tmpfs", "t", ["defaults", "", "x-mount.mkdir", "X-orlop.note=1"], [Call("t", "tmpfs", 0)], id="notes to others"),
        pytest.param("bind", "/a", ["bind"], [Call("/a", "", MS_BIND)], id="bind"),
        pytest.param("bind", "/a", ["rbind", "ro", "nodev"],
                     [Call("/a", "", MS_BIND | MS_REC), Call("", "", REMOUNT | MS_RDONLY | MS_NODEV)], id="bind takes flags by remount"),
        pytest.param("bind", "/a", ["rbind", "rprivate"],
                     [Call("/a", "", MS_BIND | MS_REC), Call("", "", MS_PRIVATE | MS_REC)], id="rprivate"),
        pytest.param("bind", "/a", ["bind", "ro", "rslave"],
                     [Call("/a", "", MS_BIND), Call("", "", REMOUNT | MS_RDONLY), Call("", "", MS_SLAVE | MS_REC)], id="all three"),
        pytest.param("tmpfs", "t", ["shared"], [Call("t", "tmpfs", 0), Call("", "", MS_SHARED)], id="shared"),
        pytest.param("", "", ["remount", "bind", "ro"], [Call("", "", REMOUNT | MS_RDONLY)], id="remount"),
    ],
)  # fmt: skip
def test_calls(fstype: str, source: str, options: list[str], expected: list[Call]) -> None:
    assert calls(fstype, source, options) == expected


def test_data_that_the_kernel_would_cut_off_are_refused() -> None:
    with pytest.raises(OSError, match="don't fit in a page") as refused:
        calls("overlay", "overlay", ["lowerdir=" + ":".join(f"/layers/{number:064d}" for number in range(100))])
    assert refused.value.errno == errno.E2BIG

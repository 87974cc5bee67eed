"""What network plugins wrote down, of any runtime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errdefs import DataLoss
from agent.network.attachment import Attachment
from agent.network.cache import ResultCache
from agent.network.inventory import CachedResult, Inventory, cached_attachment


def write(path: Path, **content: object) -> Path:
    path.write_text(json.dumps({"kind": "cniCacheV1", "networkName": "pods", "containerId": path.name, **content}))
    return path


def test_results_of_old_and_new_libcni(tmp_path: Path) -> None:
    new = write(tmp_path / "a", netns="/run/netns/cni-a")
    old = write(tmp_path / "b", result={"interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/cni-b"}]})
    bare = write(tmp_path / "c", result=None)
    assert Inventory().results(tmp_path) == [
        CachedResult("pods", "a", "/run/netns/cni-a", new),
        CachedResult("pods", "b", "/run/netns/cni-b", old),
        CachedResult("pods", "c", "", bare),
    ]


def test_what_is_no_result_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "torn").write_text('{"kind": "cniC')
    (tmp_path / "list").write_text("[1]")
    (tmp_path / "numbers").write_text('{"networkName": 1, "containerId": 2}')
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(write(tmp_path / "a"))
    assert [result.path.name for result in Inventory().results(tmp_path)] == ["a"]
    assert Inventory().results(tmp_path / "nowhere") == []


def test_what_a_cached_result_says_is_enough_for_del(tmp_path: Path) -> None:
    config = b'{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}'
    attachment = Attachment("s1", Path("/run/netns/cni-1"), "pods", "1.0.0", config, (("K8S_POD_NAME", "web"),), {"dns": {}}, "eth0")
    cache = ResultCache(tmp_path)
    cache.write(attachment, {"ips": []})
    assert cached_attachment(cache.path(attachment)) == attachment


@pytest.mark.parametrize("text", ["", "[]", '{"containerId": "s1", "config": "e30="}'])
def test_one_that_does_not_say_enough(tmp_path: Path, text: str) -> None:
    (tmp_path / "result").write_text(text)
    with pytest.raises(DataLoss, match="no cached result with all that CNI DEL needs"):
        cached_attachment(tmp_path / "result")

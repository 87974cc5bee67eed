"""The image of the watch: the same bytes from the same content, as the specification wants them, and nothing that isn't needed.

What is in it is run by tests/e2e/test_daemonset.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy import image, oci, rootfs
from tests.e2e.toolbox import REPO

MTIME = 1_700_000_000
CREATED = {"org.opencontainers.image.created": "2023-11-14T22:13:20Z"}
COMMANDS = ("watch", "audit", "explain")
"""Those that are of use in the image."""


def tree(folder: Path, files: Sequence[str], *, mtime: float, mode: int) -> Path:
    """A root file system, made in this order."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
        path.chmod(mode)
        os.utime(path, (mtime, mtime))
    (folder / "lib").symlink_to("usr/lib")
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Of two layers."""
    (tmp_path / "out").mkdir()
    layers = [
        oci.write_layer(tree(tmp_path / name, [f"usr/lib/{name}"], mtime=1, mode=0o644), tmp_path / "out", MTIME) for name in ("one", "two")
    ]
    path = tmp_path / "out/image.tar"
    oci.write_archive(layers, {"Cmd": ["watch"]}, CREATED, "localhost/x:1", path)
    return path


def test_a_layer_is_the_same_however_its_tree_was_made(tmp_path: Path) -> None:
    first = tree(tmp_path / "1", ["usr/lib/b", "usr/lib/a", "etc/x"], mtime=5, mode=0o640)
    second = tree(tmp_path / "2", ["etc/x", "usr/lib/a", "usr/lib/b"], mtime=7, mode=0o604)
    (tmp_path / "out").mkdir()
    one, two = (oci.write_layer(made, tmp_path / "out", MTIME) for made in (first, second))
    assert one == two
    (first / "etc/x").write_text("other")
    assert oci.write_layer(first, tmp_path / "out", MTIME).diff_id != two.diff_id


def test_what_is_in_a_layer_is_roots(tmp_path: Path) -> None:
    made = tree(tmp_path / "tree", ["usr/bin/tool", "etc/x"], mtime=5, mode=0o600)
    (made / "usr/bin/tool").chmod(0o4711)
    (tmp_path / "out").mkdir()
    layer = oci.write_layer(made, tmp_path / "out", MTIME)
    with tarfile.open(layer.blob.path) as tar:
        members = {member.name: member for member in tar}
    assert [*members] == sorted(members)
    assert {(member.uid, member.gid, member.uname, member.mtime) for member in members.values()} == {(0, 0, "", MTIME)}
    modes = {name: oct(members[name].mode) for name in ("usr/bin/tool", "etc/x", "usr", "tmp")}
    assert modes == {"usr/bin/tool": "0o755", "etc/x": "0o644", "usr": "0o755", "tmp": "0o1777"}
    assert members["lib"].linkname == "usr/lib"


def test_the_archive_is_a_layout_in_which_everything_is_what_its_name_says(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        files = {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
    blobs = {f"sha256:{name.rpartition('/')[2]}": data for name, data in files.items() if name.startswith("blobs/")}
    assert all(digest == f"sha256:{hashlib.sha256(data).hexdigest()}" for digest, data in blobs.items())
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    [top] = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(blobs[top["digest"]])
    config = json.loads(blobs[manifest["config"]["digest"]])
    described: list[Any] = [top, manifest["config"], *manifest["layers"]]
    assert [one["size"] for one in described] == [len(blobs[one["digest"]]) for one in described]
    assert {one["digest"] for one in described} == blobs.keys()
    assert (config["architecture"], config["os"], config["config"]) == (top["platform"]["architecture"], "linux", {"Cmd": ["watch"]})
    assert len(config["rootfs"]["diff_ids"]) == len(config["history"]) == len(manifest["layers"]) == 2
    assert top["annotations"] == {"org.opencontainers.image.ref.name": "1", "io.containerd.image.name": "localhost/x:1"}
    [saved] = json.loads(files["manifest.json"])
    assert saved["RepoTags"] == ["localhost/x:1"]
    assert [files[name] for name in (saved["Config"], *saved["Layers"])] == [blobs[one["digest"]] for one in described[1:]]


def test_the_image_has_what_its_commands_import_and_nothing_else() -> None:
    """Of what the project depends on."""
    look = (
        f"import sys, agent.cli.main, {', '.join(f'agent.cli.{name}' for name in COMMANDS)}\n"
        "from importlib.metadata import packages_distributions\n"
        "known = packages_distributions()\n"
        "print(*{name for module in sys.modules for name in known.get(module.partition('.')[0], ())})\n"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=REPO, capture_output=True, text=True, check=True)
    imported = {name.lower().replace("_", "-") for name in done.stdout.split()}
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    declared = {re.split("[>=<]", dependency)[0] for dependency in project["dependencies"]}
    assert sorted(declared - imported) == list(rootfs.NOT_IMPORTED)


def test_the_containerfile_says_the_same() -> None:
    text = (REPO / "deploy/Containerfile").read_text()
    final = dict(line.split(" ", 1) for line in text.partition("FROM scratch\n")[2].splitlines() if not line.startswith("#"))
    assert final["COPY"] == "--from=build /image/ /"
    assert "-m deploy.rootfs /image\n" in text
    assert (final["USER"], final["WORKDIR"], final["STOPSIGNAL"]) == tuple(
        image.CONFIG[name] for name in ("User", "WorkingDir", "StopSignal")
    )
    assert final["ENV"].split() == image.CONFIG["Env"]
    assert (json.loads(final["ENTRYPOINT"]), json.loads(final["CMD"])) == (image.CONFIG["Entrypoint"], image.CONFIG["Cmd"])
    assert f"debian:{rootfs.SUITE}-slim" in text


def test_the_time_of_the_image_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(MTIME))
    assert rootfs.last_change() == MTIME

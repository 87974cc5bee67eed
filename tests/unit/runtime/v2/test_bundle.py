"""Bundles: made whole or not at all, never healed, removed out of sight, and never with what is mounted in them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent.errdefs import AlreadyExists, FailedPrecondition, InvalidArgument
from agent.runtime.v2.bundle import Bundles

SPEC = {"ociVersion": "1.0.2", "annotations": {"a": "b"}}


@pytest.fixture
def bundles(tmp_path: Path) -> Bundles:
    return Bundles(tmp_path / "run" / "k8s.io", tmp_path / "lib" / "k8s.io")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def test_create(bundles: Bundles) -> None:
    bundle = await bundles.create("c1", SPEC)
    assert json.loads((bundle.path / "config.json").read_text()) == SPEC
    assert (mode(bundle.path), mode(bundle.rootfs), mode(bundle.work_dir), mode(bundle.path.parent)) == (0o700, 0o711, 0o711, 0o711)
    assert os.readlink(bundle.path / "work") == str(bundle.work_dir)
    assert await bundles.ids() == await bundles.work_dir_ids() == {"c1"}
    assert await bundles.exists(bundle)


async def test_create_wipes_an_old_work_dir(bundles: Bundles) -> None:
    work_dir = bundles.at("c1").work_dir
    work_dir.mkdir(parents=True)
    (work_dir / "old").touch()
    await bundles.create("c1", SPEC)
    assert list(work_dir.iterdir()) == []


async def test_a_bundle_that_is_there_belongs_to_somebody(bundles: Bundles) -> None:
    bundle = await bundles.create("c1", SPEC)
    (bundle.path / "shim-binary-path").write_text("mine")
    with pytest.raises(AlreadyExists, match="belongs to another"):
        await bundles.create("c1", SPEC)
    assert (bundle.path / "shim-binary-path").read_text() == "mine"


async def test_a_create_that_fails_leaves_nothing(bundles: Bundles) -> None:
    with pytest.raises(TypeError):
        await bundles.create("c1", {"not": object()})
    assert await bundles.ids() == await bundles.work_dir_ids() == set()


async def test_container_root_passes_through_the_bundle(bundles: Bundles) -> None:
    mapping = {"linux": {"gidMappings": [{"containerID": 5, "hostID": 0}, {"containerID": 0, "hostID": os.getgid()}]}}
    bundle = await bundles.create("c1", mapping)
    assert mode(bundle.path) == 0o710
    assert bundle.path.stat().st_gid == os.getgid()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 77])
def test_an_id_that_is_no_path_component(bundles: Bundles, name: str) -> None:
    with pytest.raises(InvalidArgument):
        bundles.at(name)


async def test_remove(bundles: Bundles) -> None:
    bundle = await bundles.create("c1", SPEC)
    (bundle.path / "deep").mkdir()
    (bundle.path / "deep" / "file").touch()
    (bundle.path / "link").symlink_to("/")
    os.mkfifo(bundle.log)
    await bundles.remove(bundle)
    assert list(bundle.path.parent.iterdir()) == []
    assert bundle.work_dir.is_dir()
    await bundles.remove_work_dir(bundle)
    assert list(bundle.work_dir.parent.iterdir()) == []
    await bundles.remove(bundle)
    await bundles.remove_work_dir(bundle)


@pytest.mark.field_fault("26")
async def test_a_rootfs_with_files_is_left_alone(bundles: Bundles) -> None:
    bundle = await bundles.create("c1", SPEC)
    (bundle.rootfs / "precious").touch()
    with pytest.raises(FailedPrecondition, match="precious"):
        await bundles.remove(bundle)
    assert (bundle.rootfs / "precious").exists()
    (bundle.rootfs / "precious").unlink()
    await bundles.remove(bundle)


async def test_a_removal_that_a_crash_cut_off(bundles: Bundles) -> None:
    bundle = await bundles.create("c1", SPEC)
    hidden = bundle.path.rename(bundle.path.parent / ".c1")
    assert await bundles.ids() == set()
    other = await bundles.create("c1", SPEC)
    await bundles.remove(other)
    assert not hidden.exists(), "an old leftover of the same name is no obstacle"
    hidden.mkdir()
    (hidden / "config.json").touch()
    assert await bundles.sweep() == []
    assert not hidden.exists()


async def test_sweep_names_what_it_can_not_remove(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = await bundles.create("c1", SPEC)
    bundle.path.rename(bundle.path.parent / ".c1")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr(os, "unlink", refuse)
    [failed] = await bundles.sweep()
    assert ".c1" in failed

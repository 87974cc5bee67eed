"""Each of the six pairs runs on this machine, without the agent: where one doesn't, the agent's own tests needn't be read."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e import toolbox
from tests.e2e.node import CGROUP_PARENT
from tests.e2e.toolbox import Pair

pytestmark = pytest.mark.e2e


def test_the_shim_is_of_the_release_it_is_named_after(pair: Pair) -> None:
    assert f" {pair.shim}." in toolbox.version(pair.shim_path)


def test_the_engine_runs_a_container(pair: Pair, tmp_path: Path, node_is_clean: None) -> None:
    for folder in ("bin", "dev", "proc"):
        (tmp_path / "rootfs" / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", tmp_path / "rootfs/bin/sh")
    (tmp_path / "config.json").write_text(json.dumps(bundle_config(["sh", "-c", "echo $$; exit 7"])))
    command: list[str | Path] = [pair.engine_path, "--root", tmp_path / "engine", "run", "--bundle", tmp_path, "toolbox"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "1\n"), done.stderr


def bundle_config(argv: list[str]) -> dict[str, object]:
    return {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": argv, "env": ["PATH=/bin"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        ],
        "linux": {
            "cgroupsPath": f"{CGROUP_PARENT}/toolbox",
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "resources": {"memory": {"limit": 64 << 20}},
        },
    }

"""A node in user-mode Linux with Orlop installed: a unit of systemd's, which starts when the node boots.

Used by `tests/e2e/test_uml_*.py` and the power matrix. What runs on the node's side is in `tests/uml/inside.py` and `tests/uml/stage.py`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.e2e.daemon import CNI_PLUGINS, PAUSE, bridge_network
from tests.e2e.toolbox import REPO, Pair
from tests.uml.node import PYTHON, Node

UNIT = f"""\
[Unit]
Description=Orlop

[Service]
Type=notify
Environment=ORLOP_FAILPOINTS=
WorkingDirectory={REPO}
ExecStart={PYTHON} -B -m agent.cli.main serve
Delegate=yes
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""
CONFIG = """\
cgroup_driver = "{driver}"
metrics_address = ""
sandbox_image = "{pause}"
default_runtime = "{pair.engine}"

[log]
level = "debug"

[cni]
bin_dirs = ["{plugins}"]

[runtimes.{pair.engine}]
path = "{pair.shim_path}"
engine = "{pair.engine_path}"
"""
STAGE_BUDGET = 300.0
"""Seconds; what is done there takes some ten on a machine that has nothing else to do."""


class OrlopNode:
    """`node` boots when this is made, and gets Orlop with these images; the cgroup driver is "systemd" or "cgroupfs"."""

    def __init__(self, node: Node, pair: Pair, driver: str, *images: Path) -> None:
        self.node = node
        self.driver = driver
        self._cgroup = "/e2e.slice" if driver == "systemd" else "/e2e"
        config = CONFIG.format(driver=driver, pause=PAUSE, pair=pair, plugins=CNI_PLUGINS)
        files = {
            "/etc/orlop/config.toml": config,
            "/etc/cni/net.d/10-e2e.conflist": json.dumps(bridge_network("a")),
            "/etc/systemd/system/orlop.service": UNIT,
        }
        node.boot()
        for path, content in files.items():
            source = node.share / Path(path).name
            source.write_text(content)
            node.run(f"install -D -m 644 {source} {path}")
        for image in images:
            (node.share / image.name).write_bytes(image.read_bytes())
        node.run("mkdir -p /var/lib/cni; systemctl daemon-reload; systemctl enable orlop")
        self.start()
        for image in images:
            self.orlop(f"image import {node.share / image.name}")
        node.run("sync")

    def start(self) -> None:
        """Waits until the daemon is ready; it is being started when the node boots."""
        self.node.run("systemctl start orlop || { systemctl status -n 100 orlop; exit 1; }")

    def power_cut(self) -> None:
        """Takes the power away, and gives it back."""
        self.node.cut()
        self.node.boot()
        self.start()

    def orlop(self, arguments: str) -> str:
        """What the `orlop` command prints; it has to succeed."""
        return self.node.run(f"cd {REPO}; {PYTHON} -B -m agent.cli.main {arguments}").stdout

    def kubelet(self, arguments: str) -> str:
        """Does something by `tests.uml.inside`, and returns what it prints."""
        return self._module("inside", arguments).stdout

    def stage(self, request: str) -> subprocess.CompletedProcess[str]:
        """Does something by `tests.uml.stage`, which may fail."""
        return self._module("stage", request, check=False)

    def _module(self, name: str, arguments: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = f"cd {REPO}; ORLOP_E2E_CGROUP={self._cgroup} {PYTHON} -B -m tests.uml.{name} {arguments}"
        return self.node.run(command, check=check, budget=STAGE_BUDGET)

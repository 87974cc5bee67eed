"""What goes into `Any` fields: bare type URLs, and the options that belong to the handler's shim."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from agent.api.types.runc.options.oci_pb2 import Options
from agent.api.types.runtimeoptions.v1.api_pb2 import Options as RuntimeOptions
from agent.config.handlers import RuntimeHandler
from agent.runtime.v2 import options
from agent.runtime.v2.config import RuntimeConfig

CONFIG = RuntimeConfig(Path("/run/orlop"), Path("/var/lib/orlop"), "/run/orlop/sock", "/run/orlop/events", "/bin/true", "/shims")


def test_runc() -> None:
    packed = options.of_handler(RuntimeHandler("crun", engine="/usr/bin/crun", systemd_cgroup=True), CONFIG)
    assert packed is not None
    assert packed.type_url == "containerd.runc.v1.Options"
    assert Options.FromString(packed.value) == Options(binary_name="/usr/bin/crun", root="/run/orlop/runc", systemd_cgroup=True)


def test_gvisor() -> None:
    handler = RuntimeHandler("gvisor", "io.containerd.runsc.v1", config_path="/etc/containerd/runsc.toml")
    packed = options.of_handler(handler, CONFIG)
    assert packed is not None
    assert packed.type_url == "runtimeoptions.v1.Options"
    assert RuntimeOptions.FromString(packed.value) == RuntimeOptions(
        type_url="io.containerd.runsc.v1.options", config_path="/etc/containerd/runsc.toml"
    )


def test_a_shim_without_options() -> None:
    assert options.of_handler(RuntimeHandler("kata", "io.containerd.kata.v2"), CONFIG) is None


@pytest.mark.parametrize("packed", [options.pack_process({"args": ["true"]}), options.pack_resources({"args": ["true"]})])
def test_a_part_of_a_spec(packed: Any) -> None:
    assert json.loads(packed.value) == {"args": ["true"]}
    assert not packed.type_url.startswith("type.googleapis.com/")


@pytest.mark.parametrize(
    ("runtime_type", "runc"),
    [
        ("io.containerd.runc.v2", True),
        ("/opt/bin/containerd-shim-runc-v2", True),
        ("io.containerd.runsc.v1", False),
        ("io.containerd.kata.v2", False),
        ("/opt/bin/containerd-shim-kata-v2", False),
    ],
)
def test_whose_shim_it_is(runtime_type: str, runc: bool) -> None:
    assert options.is_runc(RuntimeHandler("x", runtime_type)) is runc

"""What goes into the `Any` fields of shim messages.

Type URLs are bare message names (`containerd.runc.v1.Options`): shims of containerd 1.6 refuse the `type.googleapis.com/`
that `Any.Pack()` would put in front.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any as JSON

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from agent.api.types.runc.options.oci_pb2 import Options as RuncOptions
from agent.api.types.runtimeoptions.v1.api_pb2 import Options as RuntimeOptions
from agent.config.handlers import RuntimeHandler
from agent.runtime.v2.config import RuntimeConfig

_PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
"""containerd's name for an OCI process as JSON; shims don't look at it."""
_RESOURCES = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


def pack(message: Message) -> Any:
    """`message` as an `Any` with a bare type URL."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def pack_process(process: Mapping[str, JSON]) -> Any:
    """An OCI process, for `Exec`."""
    return Any(type_url=_PROCESS, value=json.dumps(process).encode())


def pack_resources(resources: Mapping[str, JSON]) -> Any:
    """OCI `linux.resources`, for `Update`."""
    return Any(type_url=_RESOURCES, value=json.dumps(resources).encode())


def is_runc(handler: RuntimeHandler) -> bool:
    """Whether the handler's shim is containerd's own, which drives an OCI engine on this host's kernel."""
    return ".runc." in handler.runtime_type or handler.runtime_type.rsplit("/", 1)[-1].startswith("containerd-shim-runc-")


def of_handler(handler: RuntimeHandler, config: RuntimeConfig) -> Any | None:
    """The handler's options for `start` and `Create`; the runc shim refuses those of the others, and the other way round."""
    if is_runc(handler):
        return pack(RuncOptions(binary_name=handler.engine, root=str(config.engine_root), systemd_cgroup=handler.systemd_cgroup))
    if handler.config_path:
        return pack(RuntimeOptions(type_url=f"{handler.runtime_type}.options", config_path=handler.config_path))
    return None

"""What a spec is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.config.handlers import RuntimeHandler
from agent.images.documents import ImageConfig
from agent.linux.mounts import Mount
from agent.pods.facts import NodeFacts
from agent.pods.sandbox import SandboxRecord
from agent.runtime.v2.features import HandlerFeatures
from cri.api import api_pb2 as cri


@dataclass(frozen=True)
class SpecInputs:
    """`passwd` and `group` are the image's files, empty where it has none.

    `pid_namespace`: a path to join, "" for the host's, None for one of the container's own. `image_volumes`: how to mount the images
    that `config` names, by image and sub path.
    """

    container_id: str
    sandbox: SandboxRecord
    handler: RuntimeHandler
    config: cri.ContainerConfig
    image: ImageConfig
    passwd: bytes
    group: bytes
    facts: NodeFacts
    features: HandlerFeatures
    pid_namespace: str | None
    image_volumes: Mapping[tuple[str, str], Mount] = field(default_factory=dict)

    @property
    def security(self) -> cri.LinuxContainerSecurityContext:
        return self.config.linux.security_context

    @property
    def host_network(self) -> bool:
        return "network" not in self.sandbox.pins

    @property
    def host_ipc(self) -> bool:
        return "ipc" not in self.sandbox.pins

"""The registry client: manifests and blobs by digest, from the hosts that an operator has named, with what a pull's caller may see.

`agent.images` pulls with `client.RegistryClient`; `agent.daemon` makes it. It knows no images: what a manifest means is read there.
Protocol: https://github.com/opencontainers/distribution-spec, tokens as in https://distribution.github.io/distribution/spec/auth/.
"""

from agent.registry.auth import Credentials
from agent.registry.client import RegistryClient, Repository
from agent.registry.messages import RegistryUnavailable

__all__ = ["Credentials", "RegistryClient", "RegistryUnavailable", "Repository"]

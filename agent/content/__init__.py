"""Blobs by digest: manifests and configs for as long as an image needs them, layers until they are unpacked."""

from agent.content.digest import digest_of, validate_digest
from agent.content.store import ContentStore

__all__ = ["ContentStore", "digest_of", "validate_digest"]

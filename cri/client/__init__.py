"""A client for any CRI socket: Orlop's, containerd's, CRI-O's."""

from cri.client.client import Client

__all__ = ["Client"]

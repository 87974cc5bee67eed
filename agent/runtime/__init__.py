"""Runtimes: how the agent drives what runs containers. `v2` is containerd's shim protocol of that number, the only one."""

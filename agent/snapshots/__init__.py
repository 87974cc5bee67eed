"""Layers and writable snapshots on overlayfs.

`agent.images` unpacks and commits layers through `snapshotter.Snapshotter`; `agent.pods` gets a container's rootfs from it.
Nothing is imported here: `unpack_worker` is a process of its own, and starts faster without the rest.
"""

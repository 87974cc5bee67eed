"""Driving runtime v2 shims: the port of containerd's v2 task manager. `../README.md` explains it.

`manager.TaskManager` is the way in; `cleanup` is the only module that orders teardown, and the only one that may import
`shim_delete`.
"""

"""The kernel, as the agent needs it: mounts, processes, cgroups and namespaces. Used by every layer above.

Kernel errors arrive as `OSError` with errno and file name kept; what an operator must act on (a busy mount, a cgroup with
processes in it) as an `agent.errdefs` class that names the holders.
"""

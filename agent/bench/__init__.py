"""`orlop bench`: CRI runtimes measured side by side, by the calls that a kubelet makes.

It sees runtimes from outside, by their sockets and by /proc, so that another one's numbers come from the very code that ours come from.
`agent.cli.bench` calls `run.run`; each family of measurements is a file of its own (see `run.FAMILIES`).
"""

"""Named budgets, in seconds. Each wait of the agent on something outside the process has one of these.

A budget bounds the waiting, not the resource: when it runs out the resource stays owned and its release is tried again.

They are no settings. Tests of what hangs shorten them, by `ORLOP_TIMEOUTS=NAME=SECONDS[;NAME=SECONDS...]` in the environment.
"""

from __future__ import annotations

import os

SHIM_START = 30.0
"""`SHIM start`, from fork to its address on stdout."""
SHIM_DIAL = 10.0
"""Connecting to a shim's socket; ENOENT and ECONNREFUSED fail at once."""
SHIM_LOAD = 5.0
"""Connect and State of one shim at daemon start (containerd's value); a mute shim is 'unknown' after it, not dead."""
SHIM_DELETE = 30.0
"""`SHIM delete`: a 10 s kill wait of the engine plus 2.5 s per busy mount (runtime-v2 section 5)."""
SHIM_SHUTDOWN = 3.0
"""Task.Shutdown until the shim has exited; then SIGKILL."""
SHIM_PING = 2.0
"""Connect or State as a sign of life."""
SHIM_SILENT = 10.0
"""A live shim that dropped us and doesn't answer a redial is killed after this."""
TASK_DELETE = 30.0
"""Task.Delete of one container; the engine's delete and the unmount of a dirty rootfs."""
TASK_KILL = 10.0
"""Task.Kill of one container or exec."""
TASK_UPDATE = 30.0
"""Task.Update of one container; lowering a memory limit makes the kernel take pages back first."""
EXIT_AFTER_KILL = 10.0
"""From SIGKILL to the exit of the container's init."""
EXIT_AFTER_SHIM_KILL = 10.0
"""Until the cgroup of a dead shim's container is empty."""
LOG_DRAIN = 5.0
"""Reading what a container wrote last, after its exit; a child that holds the pipe must not delay the exit more."""
CNI = 120.0
"""One ADD, CHECK or DEL of a whole plugin chain."""
CNI_STATUS = 5.0
"""STATUS of one plugin; the answer is only advice, and the conf watch waits for it."""
EXEC_DRAIN = 10.0
"""Reading an ExecSync's pipes after the process ended, when a background child still holds them."""
EXEC_END = 1.0
"""An ExecSync's answer waits this long for the exec to be taken down; the rest goes on behind it."""
ENGINE = 30.0
"""A direct call of the OCI engine (`runc delete --force`)."""
ENGINE_FEATURES = 5.0
"""`ENGINE features`, asked when the daemon starts; an engine that doesn't answer is used without any."""
UNPACK_LAYER = 1800.0
"""One layer through the unpack worker."""
DAEMON_STOP = 12.0
"""For what is under way when the daemon stops, in all its parts together; what is cut off then is found by the next start."""
IN_FLIGHT = 30.0
"""StopPodSandbox waits this long for creates and starts in flight; then their shim is killed under them."""
SANDBOX_TASK = 120.0
"""Create and Start of a sandbox that is a task, its shim's start included; then the shim is killed under them."""
RELEASE = 300.0
"""One attempt to release one ledger entry, above the budgets of its steps: a releaser that hangs is given up and tried again."""
RELEASE_RETRY = 300.0
"""The longest pause between two attempts to release one ledger entry; the first is a second, then it doubles."""
LOG_COPIER_START = 10.0
"""The log copier, from fork to its socket; also the daemon's first connection to it."""
LOG_COPIER_CALL = 10.0
"""Open, reopen or close of one container's log. A log file system that hangs makes it run out; the streams stay owned."""
LOG_COPIER_PING = 10.0
"""A log copier that is silent for so long is killed and started again, which loses no line."""
TEARDOWN_STEP = 30.0
"""One step of a teardown on the node itself: unmount, removal of a directory tree or a cgroup."""
SYSTEMD = 30.0
"""A slice or service started or stopped; systemd answers in milliseconds unless it reloads a large node's units."""
SNAPSHOT_USAGE = 60.0
"""One walk over what all containers have written."""
STATS = 5.0
"""Reading the cgroup files of some containers; those of one whose kernel doesn't answer have no numbers then."""
STORE_CLOSE = 10.0
"""Writing what is pending and closing the databases when the daemon stops; a hung disk gets no more."""
LOG_COPIER_END = 1.0
"""For a copier without containers to end, after the daemon has let go of it."""
REGISTRY_DIAL = 30.0
"""Connecting to a registry, the TLS handshake included (containerd's value); `dial_timeout` in a hosts.toml goes before."""
REGISTRY_ANSWER = 30.0
"""From a request to the headers of its answer."""
REGISTRY_RETRY = 60.0
"""No further attempt at a request to a registry begins so long after the first: whoever waits for the pull shall hear of a dead one."""
PULL_SILENCE = 60.0
"""A download that sends nothing for so long is broken off and resumed."""
PULL_PROGRESS = 300.0
"""A pull is given up when one of its downloads has got no byte for so long (containerd's and CRI-O's value)."""
EXEC_START = 30.0
"""Exec and Start of an ExecSync's command in the shim; a shorter timeout of the caller counts instead."""
EDGE_STOP = 5.0
"""For calls to be answered when the daemon stops, of DAEMON_STOP."""
DAEMON_KILL = 25.0
"""A daemon that hasn't ended by then, in a file system that hangs, ends itself at once; our own tests wait 30 s."""
EXIT_AFTER_CGROUP_KILL = 5.0
"""From the end of all processes of a container's cgroup to the exit that its shim tells."""
FOREIGN_LIST = 5.0
"""For another runtime to list its pods and containers, in an audit; all of its things are unknown if it doesn't."""
AUDIT_INTERVAL = 60.0
"""From the end of one of the daemon's audits to the next; two in a row have to find what it then releases by itself."""
AUDIT_FIRST = 5.0
"""From the end of recovery to the first of them: the node may be busy starting, too."""

# The last lines: what comes behind them can't be shortened.
for _entry in filter(None, os.environ.get("ORLOP_TIMEOUTS", "").split(";")):
    _name, _, _seconds = _entry.partition("=")
    if not isinstance(globals().get(_name), float):
        raise ValueError(f"ORLOP_TIMEOUTS: {_entry!r} is no budget of agent.timeouts")
    globals()[_name] = float(_seconds)

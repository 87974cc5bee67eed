"""A shim that misbehaves on request, for what real ones won't do on demand: a real containerd-shim-runc-v2 behind a relay.

It is a program of its own, which speaks the real protocol: `start`, `delete` and `-info`, the task service over ttrpc, events. The agent
sees its process, its socket and its answers; behind it the real shim does the work, and dies with it. Without a fault it does what the
real one does: it is held to `tests.shim_contract`, as those are.

| file | what it is |
|---|---|
| `__main__.py` | the program: its actions, and the process that serves |
| `relay.py` | one connection of the agent, and one to the real shim: frames go through, or not |
| `faults.py` | what goes wrong, as lines of a file that is read at each call; what went wrong, as lines of another |
| `overlays.py` | mounts over a rootfs as Kata has them, held from another mount namespace, that only its own `delete` takes away |
| `install.py` | the test's side: makes one, and tells it what to do |
"""

"""The crash matrix: harm at every point of every verb, with the shim of each generation, and what is left on the node afterwards.

The daemon is killed, or fails, at every failpoint (`test_crashes.py`); the shim, the engine, network plugins and the log copier are killed
while the agent works with them (`test_kills.py`); the disk is full or fails at every step of the store (`test_disk.py`). Each case says
what it found (`table.py`), and fails if it didn't do its harm.

`make crash-matrix` runs the whole and prints the tables; CI runs a slice that changes by the day (`slices.py`).
"""

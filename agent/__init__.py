"""Orlop's node agent: pods on real containerd shims, and a teardown that leaks nothing.

`agent/README.md` has the layers; import-linter holds them.
"""

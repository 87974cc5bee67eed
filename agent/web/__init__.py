"""Metrics over HTTP, on a loopback address."""

from agent.web.metrics import MetricsServer

__all__ = ["MetricsServer"]

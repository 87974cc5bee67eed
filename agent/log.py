"""Structured logging. One event is one sentence plus fields; the same fields everywhere: sandbox, container, step, error."""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger

Format = Literal["console", "json"]


def get(name: str) -> FilteringBoundLogger:
    """The logger of a module; `name` is its package, as operators filter by it."""
    return cast(FilteringBoundLogger, structlog.get_logger(component=name))


def configure(*, level: str = "info", style: Format = "console", stream: TextIO | None = None) -> None:
    """Set up logging of this process. `level` is one of debug, info, warning, error."""
    renderer: structlog.typing.Processor
    if style == "json":
        renderer = structlog.processors.JSONRenderer(default=str)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=stream or sys.stderr),
        cache_logger_on_first_use=True,
    )

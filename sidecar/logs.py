"""Sets up structlog: one JSON object per line on standard error, or plain text for a terminal.

Logs never contain span content, only ids, counts, reasons and statuses (D19).
"""

import logging
import sys

import structlog

from sidecar.config import LogConfig


def configure(config: LogConfig) -> None:
    """Configure logging for the whole process."""
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if config.format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[config.level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )

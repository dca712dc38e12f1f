"""structlog set-up: one JSON object a line on standard error, or text for a terminal.

Logs never hold span content (D19): ids, counts, reasons and statuses only.
"""

import logging
import sys

import structlog

from sidecar.config import LogConfig


def configure(config: LogConfig) -> None:
    """Set up logging for the process."""
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

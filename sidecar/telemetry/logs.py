"""Sets up structlog: one JSON object per line on standard error, or text for people on a terminal.

Logs never contain span content, only ids, counts, reasons and statuses (D19). `run` has everything
that the process prints written by one `LogWriter`: our lines, those of libraries that use
`logging`, warnings, tracebacks, and whatever is printed by mistake.
"""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog

from sidecar.config import LogConfig, PodConfig
from sidecar.process.descriptors import occupy_standard_descriptors
from sidecar.process.log_hints import add_hint
from sidecar.process.log_writer import LogWriter
from sidecar.process.terminal import to_ascii_json, visible

_STDERR = 2
# At the end of the process, how long to wait for whoever reads the log.
DRAIN_S = 0.3
# The first and the last line of `run` say where it ran. The other ones need not: in Kubernetes, who
# collects lines adds the pod to each.
_WITH_POD = {"started", "stopped"}


def configure(config: LogConfig) -> None:
    """For a command that ends by itself: each line is written at once."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    _configure(_level(config), _processors(config, terminal=terminal), _write_to_stderr)


def start(config: LogConfig, pod: PodConfig) -> LogWriter:
    """For `run`: nothing that is written to standard output or error waits or fails from now on.

    What is known of `pod` is in the lines of `_WITH_POD`. At the end of the process, `drain` the
    writer.
    """
    occupy_standard_descriptors()
    level, processors = _level(config), _processors(config, terminal=os.isatty(_STDERR))
    processors.insert(0, _say_where(pod))
    log = structlog.wrap_logger(structlog.ReturnLogger(), processors=processors)

    def dropped(count: int) -> str:
        # An error, because it is said at every `log.level`.
        return f"{log.error('log_lines_dropped', count=count)}\n"

    writer = LogWriter(_STDERR, report=dropped)
    _configure(level, processors, writer.write)
    sys.stdout = sys.stderr = cast("TextIO", writer)
    logging.basicConfig(handlers=[_Records()], level=max(level, logging.WARNING), force=True)
    logging.captureWarnings(capture=True)
    return writer


def _level(config: LogConfig) -> int:
    return logging.getLevelNamesMapping()[config.level.upper()]


def _processors(config: LogConfig, *, terminal: bool) -> list[structlog.typing.Processor]:
    renderers: list[structlog.typing.Processor] = [structlog.processors.JSONRenderer(to_ascii_json)]
    if config.format == "console" or (config.format == "auto" and terminal):
        console = structlog.dev.ConsoleRenderer(
            colors=terminal, exception_formatter=structlog.dev.plain_traceback
        )
        renderers = [_say_text, _make_visible, console]
    return [
        structlog.processors.add_log_level,
        add_hint,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        *renderers,
    ]


def _configure(
    level: int, processors: list[structlog.typing.Processor], write: Callable[[str], object]
) -> None:
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(write),
        cache_logger_on_first_use=True,
    )


def _say_where(pod: PodConfig) -> structlog.typing.Processor:
    where = {"pod": pod.name, "namespace": pod.namespace, "node": pod.node}
    known = {key: name for key, name in where.items() if name}

    def add(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if event["event"] in _WITH_POD:
            event.update(known)
        return event

    return add


def _say_text(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """For people, a line that has a sentence is that sentence, with its hint."""
    if "text" in event:
        shown = ("timestamp", "level", "hint", "exception")
        return {"event": event["text"]} | {key: event[key] for key in shown if key in event}
    return event


def _make_visible(
    _: object, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escape others' text in a console line; only a traceback has several lines."""
    for key, value in event.items():
        if isinstance(value, str):
            lines = value.split("\n") if key == "exception" else [value]
            event[key] = "\n".join(map(visible, lines))
    return event


def _write_to_stderr(line: str) -> None:
    # Whoever started the command may have closed it, which is no reason to end the command.
    with suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.write(line)


class _Lines:
    """Writes each rendered event as a line.

    structlog's own logger holds a lock meanwhile. A finalizer that runs there and logs, as that of
    an asyncio task may, would wait for it for ever.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def msg(self, line: str) -> None:
        self._write(f"{line}\n")

    debug = info = warning = error = critical = msg


class _Records(logging.Handler):
    """Logs the records of libraries as our own lines, with the name of their logger."""

    _log: Any = structlog.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        # structlog knows the standard levels only.
        level = min(record.levelno // 10 * 10, logging.CRITICAL)
        try:
            text = record.getMessage().rstrip()
            self._log.log(level, text, logger=record.name, exc_info=record.exc_info or None)
        except Exception:  # noqa: BLE001 (arguments that do not fit must not fail whoever logs)
            self.handleError(record)

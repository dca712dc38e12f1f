"""Dead letters: writes that an upstream will never accept, kept in a bounded file for inspection.

JSON lines: `time`, `sink`, `reason`, `status`, and the write as an event, so that `sidecar replay`
can send it again. There are at most two files: at half of `max_bytes` the current file replaces the
older one, whose lines are counted as dropped. Without a path, nothing is kept. Either way, span ids
and reasons are logged, within a rate limit. A disk failure never stops the lane.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from sidecar.sinks import SinkError
from sidecar.spans.span import Span, to_row

log = structlog.get_logger()


class Head(msgspec.Struct):
    """The metadata of a dead letter, without the content of the write."""

    time: str
    sink: str
    reason: str
    status: int


class DeadLetter(Head):
    """A dead letter: its metadata, and the write as an event of docs/api.md."""

    event: msgspec.Raw


class DeadLetters:
    """Appends to the file at `path`, created with the first letter; "" keeps no letters."""

    def __init__(self, path: str, max_bytes: int) -> None:
        self._path = Path(path) if path else None
        self._half = max_bytes // 2
        self._size = 0
        if self._path is not None and self._path.exists():
            self._size = self._path.stat().st_size
        self.dropped = 0  # letters deleted to make room for newer ones
        self.errors = 0  # letters that could not be written

    def add(self, sink: str, span: Span, reason: str, error: SinkError) -> None:
        """Append one write that the upstream of `sink` will never accept."""
        if self._path is None:
            return
        kind = b"start" if span.end_time is None else b"end"
        head = msgspec.json.encode(
            Head(datetime.now(UTC).isoformat(timespec="milliseconds"), sink, reason, error.status)
        )
        line = b'%b,"event":{"event_type":"%b","span":%b}}\n' % (head[:-1], kind, to_row(span))
        try:
            self._append(self._path, line)
        except OSError as failure:
            self.errors += 1
            log.error(  # noqa: TRY400 (a traceback would add nothing)
                "dead_letter_not_kept", span_id=span.id, error=failure.strerror
            )

    def _append(self, path: Path, line: bytes) -> None:
        if self._size and self._size + len(line) > self._half:
            older = path.with_name(path.name + ".1")
            dropped = 0
            if older.exists():
                with older.open("rb") as file:
                    dropped = sum(1 for _ in file)
            path.replace(older)
            self.dropped += dropped
            self._size = 0
        if len(line) > self._half:
            raise OSError(0, "larger than half of dead_letters.max_bytes")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(line)
        self._size += len(line)

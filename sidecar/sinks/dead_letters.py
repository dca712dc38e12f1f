"""Dead letters: writes that are not delivered, kept in a bounded file.

An upstream will never accept them, or the process ended first (`keep`). JSON lines: `time`, `sink`,
`reason`, `status`, `account` (the id of the span's account, if it is known), `hidden` (what was
taken out, because the upstream must not see it), and the write as an event, so that `sidecar
replay` can send it again. There are at most two files: at half of
`max_bytes` the current file replaces the older one, whose lines are counted as dropped. Without a
path, nothing is kept. Either way, span ids and reasons are logged, within a rate limit.

`DeadLetters` blocks; lanes use it through `LetterWriter`, because the disk may hang (D27).

A disk failure never stops the lane, and damages one letter at most: a write that fails is undone,
and a letter always begins on a line of its own. What is in the file is looked up for every letter,
because operators move it away, and `sidecar replay` may append to it, too.
"""

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import NamedTuple, Self

import msgspec
import structlog

from sidecar.config import Config, upstreams
from sidecar.process.blocking import BlockingThread
from sidecar.sinks import SinkError
from sidecar.sinks.hiding import names_of, taken_out, without
from sidecar.sinks.replayed import marks_of, read_marks, waiting_in
from sidecar.spans.span import Payload, Span, to_row

# How long the disk may take for one letter.
LIMIT_S = 3.0
# How many of the last letters are remembered, for operators.
LAST = 20

log = structlog.get_logger()


class Head(msgspec.Struct, omit_defaults=True):
    """The metadata of a dead letter, without the content of the write."""

    time: str
    sink: str
    reason: str
    status: int
    account: str = ""
    hidden: list[Payload] = []


class Latest(NamedTuple):
    """A dead letter as `/status` shows it; `kind` is `start` or `end`."""

    time: str
    id: str
    sink: str
    reason: str
    status: int
    kind: str
    account: str | None


class _NoRoom(OSError):
    """The letter does not fit, whatever the state of the disk."""


class DeadLetters:
    """Appends to the file at `path`, created with the first letter; "" keeps no letters.

    `account_id` returns the id of the account with the number `Span.account`, "" if unknown.
    `hidden`: the bits of the `PAYLOADS` that an upstream must not see, by the name of its sink.
    """

    def __init__(
        self,
        path: str,
        max_bytes: int,
        account_id: Callable[[int], str] = lambda _: "",
        hidden: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.path = Path(path) if path else None
        self._older = Path(path + ".1")
        self._half = max_bytes // 2
        self.account_id = account_id
        self._hidden = hidden
        self.dropped = 0  # letters deleted to make room for newer ones, before they were replayed
        self.written = 0
        self.is_writing = False
        self.errors = 0  # letters that could not be written

    @classmethod
    def configured(cls, config: Config, account_id: Callable[[int], str]) -> Self:
        """As `config` says."""
        hidden = {name: section.hidden for name, section in upstreams(config).items()}
        section = config.dead_letters
        return cls(section.path, section.max_bytes, account_id, hidden)

    @property
    def is_on(self) -> bool:
        """Whether there is a path."""
        return self.path is not None

    def add(
        self, sink: str, span: Span, reason: str, error: SinkError, lacks: Sequence[Payload] = ()
    ) -> None:
        """Append one write that the upstream of `sink` will never accept.

        `lacks`: the payloads that were taken out of it before.
        """
        if self.path is None:
            return
        try:
            letter = self._letter(sink, span, reason, error.status, lacks)
            self._append(self.path, letter, may_drop=True)
        except OSError as failure:
            self.failed(span, failure)

    def keep(
        self, sink: str, spans: Sequence[Span], kept: list[Span], time_left: Callable[[], float]
    ) -> None:
        """Append the writes that are left when the process ends; those that it keeps go to `kept`.

        Complete writes come first: an open one can't always be replayed. No older letter is dropped
        for them. It ends at the first failure of the disk, and when `time_left` (seconds) is over.
        """
        if self.path is None:
            return
        for span in sorted(spans, key=lambda span: span.end_time is None):
            if time_left() <= 0:
                break
            try:
                self._append(self.path, self._letter(sink, span, "shutdown", 0), may_drop=False)
            except _NoRoom:
                continue  # a smaller one may fit
            except OSError as failure:
                self.failed(span, failure)
                break
            kept.append(span)

    def _letter(
        self, sink: str, span: Span, reason: str, status: int, lacks: Sequence[Payload] = ()
    ) -> bytes:
        kind = _kind(span).encode()
        account = self.account_id(span.account)
        if hidden := self._hidden.get(sink, 0):
            lacks = names_of(taken_out(span, hidden), lacks)
            span = without(span, hidden)
        head = Head(_now(), sink, reason, status, account, [*lacks])
        return b'%b,"event":{"event_type":"%b","span":%b}}\n' % (
            msgspec.json.encode(head)[:-1],
            kind,
            to_row(span),
        )

    def failed(self, span: Span, failure: OSError) -> None:
        """A letter could not be written: count and log it."""
        self.errors += 1
        log.error("dead_letter_not_kept", span_id=span.id, error=failure.strerror)

    def _append(self, path: Path, letter: bytes, *, may_drop: bool) -> None:
        if len(letter) > self._half:
            raise _NoRoom(0, "larger than half of dead_letters.max_bytes")
        size = _size(path)
        # The letter may need a newline in front of it.
        if size and size + 1 + len(letter) > self._half:
            self._rotate(path, may_drop=may_drop)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.is_writing = True
        try:
            _write(descriptor, letter)
            self.written += 1
        finally:
            self.is_writing = False
            os.close(descriptor)

    def _rotate(self, path: Path, *, may_drop: bool) -> None:
        dropped = 0
        if _size(self._older):
            if not may_drop:
                raise _NoRoom(0, "would replace older letters")
            marks = b""
            with suppress(OSError):  # whoever replayed may be another user: no reason to lose more
                marks = read_marks(marks_of(path))
            with self._older.open("rb") as older:
                dropped = waiting_in(older, marks, 0, _size(self._older))
        path.replace(self._older)
        self.dropped += dropped


class LetterWriter:
    """Writes dead letters beside the event loop. Create it inside a running loop.

    While the disk hangs, letters are not kept. `latest` has the last ones, oldest first, kept or
    not.
    """

    def __init__(self, letters: DeadLetters) -> None:
        self.letters = letters
        self.latest = deque[Latest](maxlen=LAST)
        self.thread = BlockingThread("dead letters")

    async def add(self, sink: str, span: Span, reason: str, error: SinkError) -> None:
        """`DeadLetters.add`."""
        account = self.letters.account_id(span.account) or None
        self.latest.append(
            Latest(_now(), span.id, sink, reason, error.status, _kind(span), account)
        )
        if not self.letters.is_on:
            return
        letter = sink, span, reason, error, self.lacks(span)
        try:
            await self.thread.call(self.letters.add, *letter, limit_s=LIMIT_S)
        except OSError as failure:
            self.letters.failed(span, failure)

    def lacks(self, _: Span) -> Sequence[Payload]:
        """The payloads that were taken out of a write before it came here."""
        return ()

    async def keep(self, sink: str, spans: Sequence[Span], limit_s: float) -> list[Span]:
        """`DeadLetters.keep`, for at most `limit_s`; returns the writes that were kept."""
        kept: list[Span] = []
        if spans and self.letters.is_on:
            until = monotonic() + limit_s
            arguments = sink, spans, kept, lambda: until - monotonic()
            with suppress(OSError):
                await self.thread.call(self.letters.keep, *arguments, limit_s=limit_s)
        return kept.copy()  # the call may still go on


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _kind(span: Span) -> str:
    return "start" if span.end_time is None else "end"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _write(descriptor: int, letter: bytes) -> None:
    """Append a letter on a line of its own, or leave the file as it was.

    Where that is impossible, or a process was killed while it wrote, the file ends in part of a
    letter: the next one begins on a new line.
    """
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        letter = b"\n" + letter
    left = memoryview(letter)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:
        with suppress(OSError):
            # Unless another process has appended since.
            if os.fstat(descriptor).st_size == size + len(letter) - len(left):
                os.ftruncate(descriptor, size)
        raise

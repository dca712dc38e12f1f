"""A span as the agent holds it, and the recording that sends its START and its END.

A span is plain data plus its recording. Copies and pickles have no recording, so they send nothing.

Every step of a recording may be interrupted (see `interrupts`) and is then done once more. Only one
step must not happen twice, the append of the END to the sender's buffer; the iterator `_unsent`
takes care of that.
"""

import os
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

from .encoders import default_encoder
from .events import Kind, encode_event
from .interrupts import Interrupted, is_interrupt
from .sender import Sender
from .stack import Entry


class _Recorded:
    # Not in the dataclass: it is no field, and `asdict` and copies leave it out.
    _recording: "Recording | None" = None


@dataclass
class Span(_Recorded):
    """One span. Set `output` and `data` while it is open. Times are UTC."""

    id: str
    trace_id: str
    name: str
    start_time: datetime
    parent_id: str | None = None
    task_id: str | None = None
    end_time: datetime | None = None
    input: object = None
    output: object = None
    data: object = None

    @property
    def recording(self) -> "Recording | None":
        """What sends the END. None once it is sent, and for a span that sends nothing."""
        return self._recording

    @property
    def is_open(self) -> bool:
        """Whether `end()` has something to send."""
        return self._recording is not None

    def end(self, error: BaseException | None = None) -> None:
        """End the span and send its END; further calls do nothing. `error` is what ended it.

        A copy, and a span that was made by hand, sends nothing and only gets its `end_time`.
        """
        recording = self._recording
        if recording is None:
            self.end_time = self.end_time or _now(self.start_time)
            return
        try:
            recording.finish(self, error)
        except BaseException:
            # Interrupted: do what was left of it, then let the agent see the interrupt.
            try:
                recording.finish(self, error)
            except BaseException:  # noqa: BLE001 - a value that raises it again
                recording.finish_without_values(self)
            raise

    def record(self, error: BaseException) -> None:
        """Record an exception in `data`, as the Agentex SDK does. SGP shows the span as `ERROR`."""
        details = {"type": type(error).__name__, "message": _message(error), "category": "unknown"}
        if self.data is None:
            self.data = {"__error__": details}
            return
        try:
            self.data = {**self.data, "__error__": details}  # type: ignore[dict-item]
        except Exception as bug:  # not a dict, or one that raises
            if is_interrupt(bug):
                raise
            self.data = {"value": self.data, "__error__": details}

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _now(earliest: datetime) -> datetime | None:
    try:
        return max(earliest, datetime.now(UTC))
    except Exception as bug:  # Temporal's sandbox forbids it, or the agent has set another time
        if is_interrupt(bug):
            raise
        return None


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as bug:  # the agent must see its own exception, not this one
        if is_interrupt(bug):
            raise
        return ""


class Recording:
    """Sends one span's START and END. Nothing here raises, except an interrupt."""

    __slots__ = ("_entry", "_guard", "_process", "_sender", "_started", "_unsent")

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._process = os.getpid()
        self._started = monotonic()
        # Used up by the append of the END to the sender's buffer.
        self._unsent: Iterator[bool] = iter((True,))
        self._entry: Entry | None = None
        self._guard: weakref.ref[object] | None = None

    @property
    def entered(self) -> bool:
        """Whether a block has been entered with the span."""
        return self._entry is not None

    def guard(self, span: Span, held: object) -> None:
        """End `span` when `held` is gone, if its block was entered and has not ended it by then."""

        def end(_: object) -> None:
            if self.entered:
                # At the recursion limit, the agent gets its own error; Python would print this one.
                with suppress(RecursionError):
                    span.end(Interrupted())

        self._guard = weakref.ref(held, end)

    def enter(self, span: Span, *, hidden: bool) -> None:
        """Send the START; make `span` current in this context until it ends, unless `hidden`."""
        self._entry = Entry(span)
        if not hidden:
            self._entry.enter()
        self.start(span)

    def start(self, span: Span) -> None:
        """Send the START."""
        self._put("start", span, None)

    def finish(self, span: Span, error: BaseException | None) -> None:
        """Send the END, unless another process or thread does; may be called again."""
        if error is not None:
            span.record(error)
        self._put("end", span, self._unsent)
        self._close(span)

    def finish_without_values(self, span: Span) -> None:
        """Like `finish`. The sidecar has the values of the START, if one was sent."""
        try:
            bare = replace(span, input=None, output=None, data=None)
            self._put("end", bare, self._unsent)
        finally:
            self._close(span)

    def _close(self, span: Span) -> None:
        if self._entry is not None:
            self._entry.leave()
        span._recording = None  # noqa: SLF001 - the two belong together
        self._guard = None

    def _put(self, kind: Kind, span: Span, once: Iterator[bool] | None) -> None:
        try:
            if kind == "end":
                # From the monotonic clock: the wall clock may have been set back.
                elapsed = timedelta(seconds=monotonic() - self._started)
                span.end_time = span.end_time or span.start_time + elapsed
            # After a fork, the END belongs to the process that began the span.
            if self._sender.disabled or os.getpid() != self._process:
                return
            encoded = encode_event(kind, span, default_encoder())
        except BaseException as bug:
            if is_interrupt(bug):
                raise
            count(self._sender, f"encoding failed: {type(bug).__name__}")
        else:
            self._sender.send(encoded, once)


def count(sender: Sender, reason: str) -> None:
    """Count an event that is not sent; raises nothing, not even in Temporal's sandbox."""
    try:
        sender.drop(reason)
    except Exception as bug:
        if is_interrupt(bug):
            raise

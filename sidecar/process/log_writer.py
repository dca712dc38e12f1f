"""Writes log lines beside the event loop: whoever reads them, or does not, can't stop us (D27)."""

import io
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import cast

MAX_BYTES = 2**20
# What a waiting line costs besides its bytes: a million empty lines must not take 100 MiB.
_OVERHEAD = 64
# The beginning of a line that has no end yet becomes a line of its own at this size.
_MAX_BEGUN = 2**16
# How much of the latest lines is kept for `sidecar debug`.
TAIL_BYTES = 2**16
# A write that takes longer is a stall.
STALL_S = 1.0
# While lines are being dropped continuously, how often a line says so.
REPORT_S = 1.0
# Before a descriptor that could not take more, and said that it can, is tried again.
_AGAIN_S = 0.01


class LogWriter(io.TextIOBase):
    """A text file over `descriptor` whose `write` neither waits nor fails.

    A daemon thread writes whole lines, in order. It alone waits while nobody reads. What does not
    fit in `max_bytes` meanwhile is dropped and counted, and so is a line that the descriptor
    refuses; the next one is tried again. When lines get through, the line that `report` renders
    from the number of dropped ones follows.

    The descriptor may be shared with other processes, so it is never made non-blocking. The lock is
    reentrant, and waking the thread takes no lock: a finalizer or a signal handler that logs can
    interrupt `write` itself.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(
        self,
        descriptor: int,
        *,
        report: Callable[[int], str],
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._report = report
        self._max_bytes = max_bytes
        self._clock = clock  # seconds
        self._lock = threading.RLock()
        self._queue = SimpleQueue[bytes | threading.Event]()
        self._waiting = 0  # bytes in the queue
        self._begun: dict[int, bytes] = {}  # lines without an end, by thread
        self._latest = bytearray()  # at most twice `TAIL_BYTES`
        self.dropped = 0  # lines
        self._stalls = 0
        self._writing_since: float | None = None
        # Used by the thread only.
        self._next: bytes | threading.Event = b""
        self._reported = 0
        self._report_due = clock()
        self._works = True
        self._torn = False  # the last byte written is not the end of a line
        threading.Thread(target=self._run, name="log-writer", daemon=True).start()

    def write(self, text: str, /) -> int:
        """Take `text`; complete lines are written as soon as the descriptor takes them."""
        data = text.encode(self.encoding, self.errors)
        thread = threading.get_ident()
        with self._lock:
            data = self._begun.pop(thread, b"") + data
            end = data.rfind(b"\n") + 1
            if end:
                self._add(data[:end])
            rest = data[end:]
            if len(rest) > _MAX_BEGUN:
                self._add(rest + b"\n")
            elif rest:
                self._begun[thread] = rest
        return len(text)

    def flush(self) -> None:
        """Do nothing: `drain` waits."""

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def writable(self) -> bool:
        """Always."""
        return True

    def drain(self, timeout_s: float) -> bool:
        """Wait until all that was taken so far is written or refused; False if time is over."""
        reached = threading.Event()
        with self._lock:
            for rest in self._begun.values():
                self._add(rest + b"\n")
            self._begun.clear()
            self._queue.put(reached)
        return reached.wait(timeout_s)

    @property
    def stalls(self) -> int:
        """How many writes took longer than `STALL_S`, including the one that is going on."""
        with self._lock:
            return self._stalls + self._is_stalled()

    def _is_stalled(self) -> bool:
        since = self._writing_since
        return since is not None and self._clock() - since >= STALL_S

    def tail(self) -> str:
        """The latest whole lines, up to `TAIL_BYTES`, whether they were written or dropped."""
        with self._lock:
            latest = bytes(self._latest)
        kept = latest[-TAIL_BYTES:]
        if len(kept) < len(latest) and latest[-TAIL_BYTES - 1] != ord("\n"):
            kept = kept[kept.find(b"\n") + 1 :]  # without the rest of a line
        return kept.decode(self.encoding, "replace")

    def _add(self, lines: bytes) -> None:
        self._latest += lines[-TAIL_BYTES - 1 :]
        if len(self._latest) > 2 * TAIL_BYTES:
            del self._latest[: -TAIL_BYTES - 1]
        size = len(lines) + _OVERHEAD
        if self._waiting + size > self._max_bytes:
            self.dropped += lines.count(b"\n")
            return
        self._waiting += size
        self._queue.put(lines)

    # The thread

    def _run(self) -> None:
        while True:
            with suppress(Empty):
                timeout = REPORT_S if self._is_report_wanted() else None
                self._next = self._next or self._queue.get(timeout=timeout)
            if isinstance(self._next, threading.Event):
                self._say_dropped()
                self._next.set()
                self._next = b""
            elif self._next:
                self._put_next()
            if self._clock() >= self._report_due:
                self._say_dropped()

    def _put_next(self) -> None:
        """Write the next lines: together, since a busy loop lets this thread run only rarely.

        A pipe takes `PIPE_BUF` bytes at once, so they do not mix with what other processes write.
        """
        lines, self._next = cast("bytes", self._next), b""
        size = len(lines) + _OVERHEAD
        with suppress(Empty):
            while isinstance(after := self._queue.get_nowait(), bytes):
                if len(lines) + len(after) > select.PIPE_BUF:
                    break
                lines += after
                size += len(after) + _OVERHEAD
            self._next = after
        self._put(lines)
        with self._lock:
            self._waiting -= size

    def _is_report_wanted(self) -> bool:
        # Where the last line was refused, only the next one shows whether lines get through.
        return self._works and self.dropped > self._reported

    def _say_dropped(self) -> None:
        if self._is_report_wanted():
            dropped = self.dropped
            line = self._report(dropped - self._reported).encode(self.encoding, self.errors)
            self._report_due = self._clock() + REPORT_S
            if self._put(line, counts=False):
                self._reported = dropped

    def _put(self, lines: bytes, *, counts: bool = True) -> bool:
        """Write `lines`; whether that worked. What did not is counted as dropped if it `counts`."""
        left = memoryview(b"\n" + lines if self._torn else lines)
        with self._lock:
            self._writing_since = self._clock()
        try:
            while left:
                try:
                    written = os.write(self._descriptor, left)
                except BlockingIOError:
                    self._wait_until_writable()
                    continue
                self._torn = left[written - 1] != ord("\n")
                left = left[written:]
        except OSError:
            pass  # what is left is dropped
        self._works = not left
        with self._lock:
            self._stalls += self._is_stalled()
            self._writing_since = None
            if counts:
                self.dropped += min(lines.count(b"\n"), bytes(left).count(b"\n"))
        return self._works

    def _wait_until_writable(self) -> None:
        """For a descriptor that somebody else has made non-blocking."""
        writable = select.poll()
        writable.register(self._descriptor, select.POLLOUT)
        writable.poll()
        time.sleep(_AGAIN_S)

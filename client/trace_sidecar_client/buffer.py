"""What waits for the sidecar: events in order, bounded in bytes, for any number of threads.

`offer` never waits and never throws out what is older: when it is full, the newest is not taken.
What a sender has in hand counts until it is settled, so the bound holds for all of it.
"""

import threading
import time
from collections import deque

# What a bytes object and its place in the deque cost beside its text.
_OVERHEAD_BYTES = 64
_FLUSH_BACKOFF_S = 0.1


class Buffer:
    """A bounded FIFO of events. `max_bytes` counts what waits and what is in hand."""

    def __init__(self, max_bytes: int, batch_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._batch_bytes = batch_bytes
        self._events: deque[bytes] = deque()
        self._queued_bytes = 0  # bytes in `_events`
        self._held_bytes = 0  # those, and what is in hand
        self._depth = 0
        # A re-entrant lock: a destructor that ends a span may run inside `offer`.
        self._changed = threading.Condition(threading.RLock())
        self._flush_deadline = 0.0

    @property
    def held_bytes(self) -> int:
        """Bytes held: waiting and in hand."""
        return self._held_bytes

    @property
    def depth(self) -> int:
        """Events held: waiting and in hand."""
        return self._depth

    def offer(self, event: bytes) -> bool:
        """Take `event`, or say that there is no room."""
        size = len(event) + _OVERHEAD_BYTES
        with self._changed:
            if self._held_bytes + size > self._max_bytes:
                return False
            before = self._queued_bytes
            self._events.append(event)
            self._queued_bytes = before + size
            self._held_bytes += size
            self._depth += 1
            # The thread sleeps through all between the first event and a full batch.
            if not before or before < self._batch_bytes <= self._queued_bytes:
                self._changed.notify_all()
        return True

    def take(self, max_events: int, linger_s: float) -> list[bytes]:
        """The next events, in hand until `settle`. Waits for one, then `linger_s` for more."""
        with self._changed:
            self._changed.wait_for(lambda: self._events)
            self._changed.wait_for(
                lambda: self._flushing or self._queued_bytes >= self._batch_bytes, timeout=linger_s
            )
            batch: list[bytes] = []
            size = 0
            while self._events and len(batch) < max_events:
                size += len(self._events[0]) + _OVERHEAD_BYTES
                if batch and size > self._batch_bytes:
                    break
                batch.append(self._events.popleft())
            self._queued_bytes -= _size(batch)
            return batch

    def settle(self, events: list[bytes]) -> None:
        """These, which were taken, are done with."""
        with self._changed:
            self._held_bytes -= _size(events)
            self._depth -= len(events)
            if not self._held_bytes:
                self._flush_deadline = 0.0
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Let nothing linger until all is settled; whether it is, within `timeout_s` seconds."""
        with self._changed:
            self._flush_deadline = max(self._flush_deadline, time.monotonic() + timeout_s)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._held_bytes, timeout=timeout_s)

    def back_off(self, delay_s: float) -> None:
        """Wait before trying again: `seconds`, or much less when someone is in a hurry."""
        with self._changed:
            self._changed.wait_for(lambda: self._flushing, timeout=delay_s)
            if self._flushing:
                self._changed.wait(min(delay_s, _FLUSH_BACKOFF_S))

    @property
    def _flushing(self) -> bool:
        return time.monotonic() < self._flush_deadline


def _size(events: list[bytes]) -> int:
    return sum(map(len, events)) + _OVERHEAD_BYTES * len(events)

"""A bounded FIFO of encoded events, between any number of agent threads and one sender thread.

`offer` never blocks and never evicts: when the buffer is full, the new event is the one refused.
Events in flight count against the limit until the sender settles them.
"""

import threading
import time
from collections import deque

# A bytes object and its slot in the deque, on top of the payload.
_OVERHEAD_BYTES = 64
# The longest back-off while a flush is waiting.
_FLUSH_BACKOFF_S = 0.1


class Buffer:
    """A FIFO of events. `max_bytes` limits queued and in-flight events together."""

    def __init__(self, max_bytes: int, batch_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._batch_bytes = batch_bytes
        self._events: deque[bytes] = deque()
        self._queued_bytes = 0
        self._held_bytes = 0  # queued and in flight
        self._depth = 0
        # Re-entrant, because a destructor that ends a span may run inside `offer`.
        self._changed = threading.Condition(threading.RLock())
        self._flush_deadline = 0.0

    @property
    def held_bytes(self) -> int:
        """Bytes queued and in flight."""
        return self._held_bytes

    @property
    def depth(self) -> int:
        """Events queued and in flight."""
        return self._depth

    def offer(self, event: bytes) -> bool:
        """Append `event`; return False if the buffer has no room for it."""
        size = len(event) + _OVERHEAD_BYTES
        with self._changed:
            if self._held_bytes + size > self._max_bytes:
                return False
            before = self._queued_bytes
            self._events.append(event)
            self._queued_bytes = before + size
            self._held_bytes += size
            self._depth += 1
            # The sender thread needs waking only for the first event and for a full batch.
            if not before or before < self._batch_bytes <= self._queued_bytes:
                self._changed.notify_all()
        return True

    def take(self, max_events: int, linger_s: float) -> list[bytes]:
        """Wait for an event, then up to `linger_s` for a full batch; in flight until `settle`."""
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
        """Free the space of events that `take` returned: they were delivered or dropped."""
        with self._changed:
            self._held_bytes -= _size(events)
            self._depth -= len(events)
            if not self._held_bytes:
                self._flush_deadline = 0.0
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Send without lingering for up to `timeout_s`; return whether the buffer became empty."""
        with self._changed:
            self._flush_deadline = max(self._flush_deadline, time.monotonic() + timeout_s)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._held_bytes, timeout=timeout_s)

    def back_off(self, delay_s: float) -> None:
        """Wait `delay_s` before a retry, or at most 0.1 s while a flush is waiting."""
        with self._changed:
            self._changed.wait_for(lambda: self._flushing, timeout=delay_s)
            if self._flushing:
                self._changed.wait(min(delay_s, _FLUSH_BACKOFF_S))

    @property
    def _flushing(self) -> bool:
        return time.monotonic() < self._flush_deadline


def _size(events: list[bytes]) -> int:
    return sum(map(len, events)) + _OVERHEAD_BYTES * len(events)

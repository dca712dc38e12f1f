"""A bounded FIFO of encoded events, between any number of agent threads and one that delivers.

`offer` never blocks and never evicts: when the buffer is full, the new event is the one refused.
`take` only looks: an event stays in the queue until `settle` removes it, so nothing that interrupts
a delivery loses it.

An exception may be raised almost anywhere in an agent's thread: by Ctrl-C, a signal handler, or
an interrupted notebook cell. Signal handlers and destructors may also trace, and so call `offer` in
the middle of `offer`. Therefore nothing here is counted beside the queue, which one call into C
changes: sizes are read from it. And locks are those in C, which `with` acquires and releases
without a gap. `threading.Condition` is written in Python, and could stay locked.
"""

import threading
import time
from _thread import LockType, RLock, allocate_lock
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import compress, repeat

# On top of the payload: a bytes object, its entry, its position, and a slot in the deque.
_OVERHEAD_BYTES = 128
# The longest back-off while a flush is waiting.
_FLUSH_BACKOFF_S = 0.1
_NEVER = 1 << 62


class Waiter:
    """A flush that waits for the first `target` events since the buffer was made."""

    def __init__(self, target: int, deadline: float, *, last_try: bool) -> None:
        self.target = target
        self.deadline = deadline
        self.last_try = last_try
        self._waiting = allocate_lock()
        self._waiting.acquire()

    def wait(self, timeout_s: float) -> None:
        """Wait for `end`."""
        self._waiting.acquire(timeout=timeout_s)

    def end(self) -> None:
        """Let `wait` return."""
        _release(self._waiting)


class Buffer:
    """A FIFO of events. `max_bytes` limits queued and in-flight events together.

    Any thread may call `offer` and `flush`. `take`, `settle` and `back_off` are for the one thread
    that delivers.
    """

    def __init__(self, max_bytes: int, batch_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._batch_bytes = batch_bytes
        # Each event behind its position: the bytes up to its end, from an arbitrary beginning.
        self._queue: deque[tuple[int, bytes]] = deque()
        self._settled_end = 0
        self._settled = 0
        self._offering = RLock()  # re-entrant: see above
        self._waiters: list[Waiter] = []
        # Held while there is no news for the delivering thread, which sleeps in `acquire`.
        self._no_news = allocate_lock()
        self._no_news.acquire()
        self._wake_at = _NEVER  # an event that ends here or later is news

    @property
    def held_bytes(self) -> int:
        """Bytes queued and in flight."""
        return max(self._end() - self._settled_end, 0)

    @property
    def depth(self) -> int:
        """Events queued and in flight."""
        return len(self._queue)

    def offer(self, event: bytes, once: Iterator[bool] | None = None) -> bool:
        """Append `event`; return False if the buffer has no room for it.

        With `once`, only the first call with that iterator appends: in one call into C, which no
        interrupt can split, the event is appended and the iterator's only item is used up.
        """
        with self._offering:
            end = self._end() + len(event) + _OVERHEAD_BYTES
            if end - self._settled_end > self.max_bytes:
                return False
            try:
                self._queue.extend(compress(((end, event),), once or repeat(True, 1)))  # noqa: FBT003
            finally:
                if end >= self._wake_at:
                    _release(self._no_news)
        return True

    def take(self, max_events: int, linger_s: float) -> list[bytes]:
        """Wait for an event, then up to `linger_s` for a full batch; in flight until `settle`."""
        while not self._queue:
            self._sleep(until=0, timeout_s=-1)
        full = self._settled_end + self._batch_bytes
        deadline = time.monotonic() + linger_s
        while self._end() < full and not self._flushing:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                break
            self._sleep(until=full, timeout_s=remaining_s)
        return self.peek(max_events)

    def peek(self, max_events: int) -> list[bytes]:
        """The oldest events, as many as a batch may hold and at least one, without waiting."""
        batch: list[bytes] = []
        size = 0
        for index in range(min(max_events, len(self._queue))):
            event = self._queue[index][1]
            size += len(event) + _OVERHEAD_BYTES
            if batch and size > self._batch_bytes:
                break
            batch.append(event)
        return batch

    def settle(self, events: list[bytes]) -> None:
        """Remove the oldest events, from `take`: they were delivered or dropped."""
        for event in events:
            # A flush in a signal handler may have removed it meanwhile.
            if self._queue and self._queue[0][1] is event:
                self._settled_end = self._queue[0][0]
                self._settled += 1
                self._queue.popleft()
        for waiter in self._waiters.copy():
            if self._is_over(waiter):
                waiter.end()

    def flush(self, timeout_s: float, *, last_try: bool = False) -> bool:
        """Wait for all events of this moment, without lingering; return whether they are settled.

        Events that are offered meanwhile do not prolong the wait. `last_try`: see `on_last_try`.
        """
        timeout_s = min(max(0.0, timeout_s), threading.TIMEOUT_MAX)
        # Read in this order, their sum is never too low, however many are settled in between.
        queued = len(self._queue)
        deadline = time.monotonic() + timeout_s
        waiter = Waiter(queued + self._settled, deadline, last_try=last_try)
        try:
            self._waiters.append(waiter)
            _release(self._no_news)
            if not self._is_over(waiter):
                waiter.wait(timeout_s)
            return self._is_over(waiter)
        finally:
            # No call before `remove`: each one is a chance for another interrupt.
            try:  # noqa: SIM105
                self._waiters.remove(waiter)
            except ValueError:
                pass  # interrupted before it was added

    def on_last_try(self) -> list[Waiter]:
        """The flushes that give up if the next attempt fails."""
        return [waiter for waiter in self._waiters.copy() if waiter.last_try]

    def back_off(self, delay_s: float) -> None:
        """Wait `delay_s` before a retry, or at most 0.1 s while a flush is waiting."""
        deadline = time.monotonic() + delay_s
        while not self._flushing:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return
            self._sleep(until=_NEVER, timeout_s=remaining_s)
        time.sleep(min(delay_s, _FLUSH_BACKOFF_S))

    def abandon(self) -> None:
        """Let every flush return: in a forked child, nothing delivers what this buffer holds."""
        for waiter in self._waiters.copy():
            waiter.end()

    def _end(self) -> int:
        try:
            return self._queue[-1][0]
        except IndexError:
            return self._settled_end

    def _is_over(self, waiter: Waiter) -> bool:
        return self._settled >= waiter.target or not self._queue

    @property
    def _flushing(self) -> bool:
        now = time.monotonic()
        return any(
            now < waiter.deadline and not self._is_over(waiter) for waiter in self._waiters.copy()
        )

    def _sleep(self, until: int, timeout_s: float) -> None:
        """Wait for a flush, or for an event that ends at `until` or later."""
        self._wake_at = until
        # An event that came before the line above has woken nobody.
        if not self._queue or self._end() < until:
            self._no_news.acquire(timeout=timeout_s)
        self._wake_at = _NEVER


def _release(lock: LockType) -> None:
    """Release `lock` if it is held, by whichever thread."""
    if lock.locked():
        with suppress(RuntimeError):  # another thread was faster
            lock.release()

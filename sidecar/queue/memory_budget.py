"""The memory bound: bytes of accepted spans, wherever they wait, and of arriving bodies."""

from collections.abc import Callable

from sidecar.spans.span import Span


def _ignore(_: Span) -> None:
    """The budget of a process without open spans."""


def _nothing_leaves(_: int) -> bool:
    return False


class MemoryBudget:
    """Counts bytes against `queue.max_bytes`.

    A span counts once, however many holders it has (D4): every holder calls `hold` when it takes
    the span and `release` when it drops it. `on_idle` is called with a START that has only one
    holder left: the open spans, unless they have forgotten it. `make_room` lets idle ones leave
    memory until so many bytes are available.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.on_idle: Callable[[Span], None] = _ignore
        self.make_room: Callable[[int], bool] = _nothing_leaves
        self.used = 0  # accepted spans
        self.reading = 0  # request bodies that are still arriving
        self._reservations: list[Callable[[], int]] = []

    def reserve(self, reserved: Callable[[], int]) -> None:
        """Keep as many bytes free as `reserved` returns, for a use other than new events."""
        self._reservations.append(reserved)

    @property
    def available(self) -> int:
        """Bytes that new events may take now."""
        free = self.limit - self.used - self.reading
        for reserved in self._reservations:
            free -= reserved()
        return free

    def has_room_for_bodies(self) -> bool:
        """Whether all bodies that are arriving fit, once what is idle has left memory."""
        if self.used + self.reading > self.limit:
            self.make_room(0)
        return self.used + self.reading <= self.limit

    def hold(self, span: Span) -> None:
        """Add a holder of `span`."""
        if not span.holders:
            self.used += span.size
        span.holders += 1

    def release(self, span: Span) -> None:
        """Remove a holder of `span`."""
        span.holders -= 1
        if not span.holders:
            self.used -= span.size
        elif span.end_time is None and span.holders == 1:
            self.on_idle(span)

    def resized(self, span: Span, before: int) -> None:
        """A span that is held had `before` bytes until now."""
        self.used += span.size - before

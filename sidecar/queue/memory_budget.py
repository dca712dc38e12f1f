"""The memory bound: bytes of accepted spans, wherever they wait, and of arriving bodies."""

from sidecar.spans.span import Span


class MemoryBudget:
    """Counts bytes against `queue.max_bytes`.

    A span counts once, however many holders it has (D4): every holder calls `hold` when it takes
    the span and `release` when it drops it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0  # accepted spans
        self.reading = 0  # request bodies that are still arriving

    def fits(self, size: int) -> bool:
        """Whether `size` more bytes stay within the limit."""
        return self.used + self.reading + size <= self.limit

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

"""The one bound on memory: bytes of accepted spans, wherever they wait, and of bodies read."""

from sidecar.spans.span import Span


class MemoryBudget:
    """Counts bytes against `queue.max_bytes`.

    A span is counted once however many places hold it (D4): `hold` when a place
    takes it, `release` when that place lets it go.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0  # accepted spans
        self.reading = 0  # request bodies that are still arriving

    def fits(self, size: int) -> bool:
        """Whether `size` more bytes stay within the limit."""
        return self.used + self.reading + size <= self.limit

    def hold(self, span: Span) -> None:
        """One more place holds `span`."""
        if not span.holders:
            self.used += span.size
        span.holders += 1

    def release(self, span: Span) -> None:
        """One place less holds `span`."""
        span.holders -= 1
        if not span.holders:
            self.used -= span.size

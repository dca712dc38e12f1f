"""Joins an END with its START: fills in what the END leaves out, and remembers that it did."""

from collections import OrderedDict

from sidecar.spans.span import ALL_PAYLOADS, Key, Span, measure, payloads_in_memory

# How many finished spans to remember (a hash each, about 100 bytes), so that a late START or a
# repeated END is recognized. At 500 spans/s they cover the last 20 seconds.
MAX_REMEMBERED = 10_000


def signature(span: Span) -> int:
    """Hash of an END as it arrived; never 0."""
    extra = b"" if span.sdk is None else span.sdk.extra
    return hash((span.end_time, span.input, span.output, span.data, span.name, extra)) or 1


def fill(span: Span, start: Span) -> int:
    """Fill in what `span` leaves out from its earlier event `start`.

    Returns the signature of `span` as it arrived if a payload was filled in, else 0. A repeat
    of such an END is recognized by this signature.
    """
    span.parent_id = span.parent_id or start.parent_id
    span.task_id = span.task_id or start.task_id
    if not (
        (start.input and not span.input)
        or (start.output and not span.output)
        or (start.data and not span.data)
    ):
        return 0
    as_arrived = signature(span)
    span.input = span.input or start.input
    span.output = span.output or start.output
    span.data = span.data or start.data
    span.size = measure(span)
    return as_arrived


class EndedSpans:
    """The spans that ended last, by their `join_key`."""

    def __init__(self) -> None:
        # Hash of a key -> signature of the END as it arrived, 0 if nothing was filled in.
        self.signatures: OrderedDict[int, int] = OrderedDict()
        # Hash of a key -> bits of the `PAYLOADS` that an END without a START has left open.
        self._lacking: dict[int, int] = {}
        # Hash of a key -> bits of the lanes that had no room for its END, if there are any.
        self._not_taken: dict[int, int] = {}

    def is_repeat(self, key: Key, end: Span) -> bool:
        """Whether `end` repeats an END that was filled in from its START."""
        seen = self.signatures.get(hash(key), 0)
        return bool(seen) and seen == signature(end)

    def add(self, key: Key, signature: int = 0) -> None:
        """A span has ended. Without a signature, that of an earlier END of it is kept."""
        signatures, hashed = self.signatures, hash(key)
        if signature or hashed not in signatures:
            signatures[hashed] = signature
            if len(signatures) > MAX_REMEMBERED:
                forgotten, _ = signatures.popitem(last=False)
                self._lacking.pop(forgotten, None)
                self._not_taken.pop(forgotten, None)

    def taken(self, key: Key, end: Span) -> None:
        """An END is about to be written: remember which lanes had no room for any of its span."""
        lanes, addressed_to = end.lanes, end.addressed_to
        hashed = hash(key)
        missed = self._not_taken.pop(hashed, 0 if hashed in self.signatures else addressed_to)
        if missed & ~lanes:
            self._not_taken[hashed] = missed & ~lanes

    def not_taken_by(self, key: Key) -> int:
        """Bits of the lanes that had no room for the END of a span; 0 if it has not ended."""
        return self._not_taken.get(hash(key), 0) if self._not_taken else 0

    def add_unjoined(self, key: Key, end: Span) -> None:
        """A span has ended whose START is unknown."""
        hashed = hash(key)
        lacking = ~payloads_in_memory(end) & ALL_PAYLOADS
        if hashed in self.signatures:  # what an earlier END or START said is written
            lacking &= self._lacking.get(hashed, 0)
        self.add(key)
        if lacking or hashed in self._lacking:
            self._lacking[hashed] = lacking

    def added_by(self, key: Key, start: Span) -> int:
        """Bits of the payloads that a START adds which arrives after its END; each only once."""
        hashed = hash(key)
        lacking = self._lacking.get(hashed, 0)
        adds = lacking & payloads_in_memory(start)
        if adds:
            self._lacking[hashed] = lacking & ~adds
        return adds


def is_partial_duplicate(span: Span, earlier: Span) -> bool:
    """Whether the END `span` repeats the END `earlier` with fewer payloads.

    An SDK sends an END again after a lost response. The first one was filled from its START; the
    repeat is not, because the START is gone by then.
    """
    if span.end_time is None or span.end_time != earlier.end_time:
        return False
    return bool(payloads_in_memory(earlier) & ~payloads_in_memory(span))

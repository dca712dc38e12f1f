"""The latest decisions about each span, for `sidecar explain`: a ring in one preallocated buffer.

A row has when it was, what was decided, and which span it is about: ids, never content. The newest
row replaces the oldest. `ROW_BYTES` times the capacity is all the memory that the rows take, and no
object is kept for any of them.

An id is found by its hash, so that a search is one pass over the buffer in C, and ids of any length
take the same room. The first `TEXT_BYTES` bytes of a span's id are there to be shown; of a trace's,
only the hash.
"""

import mmap
from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import NamedTuple

from sidecar.spans.span import Span

TEXT_BYTES = 45
# Hashes of the span's and the trace's id, loop time, code, number of the account, the span's id.
_ROW = Struct(f"<qqdHB{TEXT_BYTES}s")
ROW_BYTES = _ROW.size
_pack = _ROW.pack_into
_HASH = Struct("<q")
_OF_SPAN, _OF_TRACE = 0, 8  # where they are in a row
# How much a search looks at before others get their turn: milliseconds if every row matches.
PIECE_BYTES = 1024 * ROW_BYTES
# How many different decisions have their details kept, and how much of each.
MAX_MEANINGS, MAX_DETAIL = 1024, 200
OTHER = "a reason that was not kept: there are too many"


class Meaning(NamedTuple):
    """What was decided by which sink ("" for the intake), and why or how."""

    sink: str
    what: str
    detail: str


class Decision(NamedTuple):
    """A decision about a write, or about an event, at loop time `at` in seconds.

    `id` is the span's, or what is stored of it: then it ends in "…". `ended`: it is about an END,
    or about a complete write.
    """

    at: float
    sink: str
    what: str
    detail: str
    ended: bool
    id: str
    span_hash: int
    trace_hash: int
    account: int


class Decisions:
    """The last `capacity` decisions; with 0, nothing is recorded. `now` is loop time in seconds.

    `note` records the same decision about each of some spans: `note(spans, code, now)`. It is
    called for every event and every write.
    """

    def __init__(self, capacity: int = 0, now: float = 0.0) -> None:
        self.capacity = capacity
        self._began = now
        # Unlike a bytearray, it takes memory only when it is written.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._rows = mmap.mmap(-1, max(1, capacity) * ROW_BYTES, flags=flags)
        self._end = capacity * ROW_BYTES
        self._next = 0  # where the next row goes, in bytes
        self._laps = 0  # how often the buffer was filled
        self._meanings: list[Meaning] = []
        self._codes: dict[tuple[str, str, str], int] = {}
        self.note: Callable[[Sequence[Span], int, float], None] = (
            self._note if capacity else _ignore
        )

    def code(self, sink: str, what: str, detail: str = "") -> int:
        """The code of a decision, for `note`. Look it up once, where that is possible."""
        code = self._codes.get((sink, what, detail))
        if code is None and len(detail) > MAX_DETAIL:
            return self.code(sink, what, detail[:MAX_DETAIL])
        if code is None:
            if len(self._meanings) >= MAX_MEANINGS and detail != OTHER:
                return self.code(sink, what, OTHER)
            # The last bit of a row's code says whether it is about an END.
            code = self._codes[sink, what, detail] = 2 * len(self._meanings)
            self._meanings.append(Meaning(sink, what, detail))
        return code

    def _note(self, spans: Sequence[Span], code: int, now: float) -> None:
        # Local names, because this runs for every event and write (DECISIONS.md 32).
        rows, at, end = self._rows, self._next, self._end
        for span in spans:
            key = span.key
            id_ = key[1]
            _pack(
                rows,
                at,
                hash(id_),
                hash(key[0]),
                now,
                code if span.end_time is None else code + 1,
                span.account,
                id_.encode(),
            )
            at += ROW_BYTES
            if at == end:
                at = 0
                self._laps += 1
        self._next = at

    @property
    def is_complete(self) -> bool:
        """Whether no decision was replaced since the start."""
        return not self._laps

    @property
    def recorded(self) -> int:
        """Bytes of all rows since the start."""
        return self._laps * self._end + self._next

    @property
    def since(self) -> float:
        """Loop time from which on all decisions are here."""
        if self.is_complete:
            return self._began
        oldest: float = _ROW.unpack_from(self._rows, self._next)[2]
        return oldest

    @property
    def _full(self) -> int:
        """Bytes of the rows that were written."""
        return self._next if self.is_complete else self._end

    def about(self, id_: str, *, trace: bool, after: int = 0) -> Iterator[list[Decision]]:
        """The decisions about the span, or about all spans of the trace, with this id.

        Newest first, a piece of the buffer at a time, so that the caller can let others run. What
        is recorded meanwhile is not found; later, it is what follows `after`, an earlier value of
        `recorded`.
        """
        needle, offset = _HASH.pack(hash(id_)), _OF_TRACE if trace else _OF_SPAN
        high = self.recorded
        while high > (oldest := max(after, self.recorded - self._end)):
            lap = (high - 1) // self._end * self._end
            low = max(oldest, high - PIECE_BYTES, lap)
            yield self._between(low - lap, high - lap, needle, offset)
            high = low

    def latest(self, count: int) -> list[Decision]:
        """The last `count` decisions, newest first."""
        full = self._full
        total = min(count, full // ROW_BYTES)
        places = ((self._next - ROW_BYTES * (1 + n)) % full for n in range(total))
        return [self._decision(at) for at in places]

    def _between(self, low: int, high: int, needle: bytes, offset: int) -> list[Decision]:
        """The rows between two places that have `needle` at `offset`, newest first."""
        rows, found = self._rows, list[Decision]()
        at = rows.find(needle, low, high)
        while at >= 0:
            is_match = (at - offset) % ROW_BYTES == 0
            if is_match:
                found.append(self._decision(at - offset))
            at = rows.find(needle, at + (ROW_BYTES if is_match else 1), high)
        found.reverse()
        return found

    def _decision(self, at: int) -> Decision:
        span_hash, trace_hash, when, code, account, text = _ROW.unpack_from(self._rows, at)
        sink, what, detail = self._meanings[code // 2]
        id_ = text.rstrip(b"\0").decode(errors="ignore")
        if hash(id_) != span_hash:
            id_ += "…"
        ended = bool(code % 2)
        return Decision(when, sink, what, detail, ended, id_, span_hash, trace_hash, account)


def _ignore(_: Sequence[Span], __: int, ___: float) -> None:
    """Decisions are not recorded."""

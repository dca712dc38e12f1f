"""Open spans without an event loop: writes go to a list, and the test plays clock and lanes."""

from typing import Any

from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.open_span import State
from sidecar.queue.open_spans import OpenSpans
from sidecar.spans.span import ALL_PAYLOADS, DATA, Lanes, Span, Stored, copy_payloads
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import IntakeAccounting
from tests.support.spans import make_span

HOLD_S, TTL_S = 2.0, 30.0
BOTH = 0b11
INPUT, OUTPUT = b'{"from":"start"}', b'{"from":"end"}'
HELD, KEPT = State.HELD.value, State.KEPT.value
KEY = ("t1", "s")  # of the span that is meant where no id is given
AGENTEX, SGP = int(Lanes.AGENTEX), int(Lanes.SGP)
# Payloads of a START that has all.
ALL: dict[str, Any] = {"input": b'{"i":1}', "output": b'{"o":1}', "data": b'{"d":1}'}


class RecordingSpool(Spool):
    """A spool without a disk: numbers the writes, and records what becomes of their rows."""

    is_configured = True

    def __init__(self) -> None:
        self.rows: list[Span] = []
        self.starts: list[Span | None] = []  # the START that each write completes
        self.replaced: list[int] = []
        self.retired: list[int] = []

    def add(self, span: Span, start: Span | None = None) -> None:
        """Give the write the next row, unless the disk fails."""
        if self.degraded:
            if start is not None:
                self.replace(start)
            return
        self.rows.append(make_span(span.id, complete=False))
        copy_payloads(self.rows[-1], span, ALL_PAYLOADS)
        self.starts.append(start)
        span.stored = Stored(len(self.rows), span.addressed_to & BOTH)
        if span.is_supplement and start is not None and start.stored is not None:
            span.stored.dropped = start.stored.dropped & DATA

    def replace(self, start: Span) -> None:
        """Record it."""
        if start.stored is not None:
            self.replaced.append(start.stored.row)

    def has_row(self, row: int) -> bool:
        """Every row can be loaded."""
        return 0 < row <= len(self.rows)

    def retire(self, start: Span) -> None:
        """Record it."""
        if start.stored is not None:
            self.retired.append(start.stored.row)


class Bench:
    """Open spans that write to a list; the lanes of each write hold it until `settle`.

    `data_follows`: the bit of the lane that gets open writes without `data`.
    """

    def __init__(
        self, spool: Spool | None = None, *, limit: int = 2**20, data_follows: int = 0
    ) -> None:
        self.spool = Spool() if spool is None else spool
        self.budget = MemoryBudget(limit)
        self.accounting = IntakeAccounting()
        self.written: list[Span] = []
        self.open_spans = OpenSpans(
            self.write,
            self.budget,
            self.accounting,
            self.spool,
            hold_s=HOLD_S,
            ttl_s=TTL_S,
            data_follows=data_follows,
        )

    def write(self, span: Span, _: Span | None, __: int) -> None:
        """The lanes that a write is for take it."""
        self.written.append(span)
        for ___ in range(lanes(span)):
            self.budget.hold(span)

    def settle(self, *spans: Span) -> None:
        """The lanes are done with the writes."""
        for span in spans:
            for _ in range(lanes(span)):
                self.budget.release(span)
            if span.stored is not None:
                span.stored.pending = 0

    def room(self, size: int) -> None:
        """Leave exactly `size` bytes free."""
        self.budget.limit = self.budget.used + size

    def start(self, id_: str = "s", at: float = 0.0, **fields: Any) -> Span:
        """A START arrives."""
        span = make_span(id_, complete=False, accepted_at=at, **{"input": INPUT, **fields})
        self.open_spans.take(span)
        return span

    def end(self, id_: str = "s", at: float = 1.0, **fields: Any) -> Span:
        """An END arrives, which omits its input unless it is given."""
        thin = {"input": b"", "output": OUTPUT}
        span = make_span(id_, accepted_at=at, **{**thin, **fields})
        self.open_spans.take(span)
        return span

    def tick(self, now: float) -> None:
        """It is `now`."""
        self.open_spans.tick(now)

    def state_of(self, id_: str) -> str | None:
        """The state of the only open span with this id, None if there is none."""
        found = self.open_spans.about(1, id_)
        assert len(found) <= 1
        return found[0].state.value if found and found[0].state else None

    def states(self) -> tuple[str | None, list[str], tuple[int, int, int]]:
        """The span's state, the kinds of the writes, and the events joined, held and written."""
        assert self.accounting.imbalance == 0
        counts = self.accounting
        kinds = ["supplement" if each.is_supplement else each.kind for each in self.written]
        state = self.state_of("s")
        return state, kinds, (counts.joined, counts.held, counts.written)

    def assert_ended(self) -> None:
        """The span is ended: its START is gone, and another START is joined."""
        assert self.open_spans.started(KEY) is None
        written, joined = len(self.written), self.accounting.joined
        self.start(at=500.0)
        assert (len(self.written), self.accounting.joined) == (written, joined + 1)
        assert self.state_of("s") is None


def lanes(span: Span) -> int:
    """How many lanes a write is for."""
    return (span.addressed_to & BOTH).bit_count()


def kept(bench: Bench, *, settled: bool = True, **fields: Any) -> Span:
    """A START whose `hold_s` is over."""
    start = bench.start(**fields)
    bench.tick(HOLD_S)
    if settled:
        bench.settle(start)
    return start


def payloads(span: Span) -> tuple[bytes, bytes]:
    """Its input and output."""
    return span.input, span.output


def adds(supplement: Span) -> dict[str, bytes]:
    """The payloads that a supplement adds, which goes to Agentex only."""
    assert supplement.is_supplement
    assert (supplement.end_time, supplement.addressed_to) == (None, AGENTEX)
    payloads = {name: getattr(supplement, name) for name in ALL}
    return {name: payload for name, payload in payloads.items() if payload}

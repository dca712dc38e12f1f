"""Open spans without an event loop: writes go to a list, and the test plays clock and lanes."""

from typing import Any

from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.open_spans import OpenSpans, State
from sidecar.spans.span import Span, Stored, copy_payloads
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import IntakeAccounting
from tests.support.spans import make_span

HOLD_S, TTL_S = 2.0, 30.0
BOTH = 0b11
INPUT, OUTPUT = b'{"from":"start"}', b'{"from":"end"}'
HELD, KEPT = State.HELD.value, State.KEPT.value
KEY = ("t1", "s")  # of the span that is meant where no id is given


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
        if not self.degraded:
            self.rows.append(make_span(span.id, complete=False))
            copy_payloads(self.rows[-1], span, 0b111)
            self.starts.append(start)
            span.stored = Stored(len(self.rows), BOTH)

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
    """Open spans that write to a list; each write is held by two lanes until `settle`."""

    def __init__(self, spool: Spool | None = None, *, limit: int = 2**20) -> None:
        self.spool = Spool() if spool is None else spool
        self.budget = MemoryBudget(limit)
        self.accounting = IntakeAccounting()
        self.written: list[Span] = []
        self.open_spans = OpenSpans(
            self.write, self.budget, self.accounting, self.spool, hold_s=HOLD_S, ttl_s=TTL_S
        )

    def write(self, span: Span) -> None:
        """Two lanes take a write."""
        self.written.append(span)
        for _ in range(2):
            self.budget.hold(span)

    def settle(self, *spans: Span) -> None:
        """Both lanes are done with the writes."""
        for span in spans:
            for _ in range(2):
                self.budget.release(span)
            if span.stored is not None:
                span.stored.pending = 0

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

    def states(self) -> tuple[str | None, list[str], tuple[int, int, int]]:
        """The span's state, the kinds of the writes, and the events joined, held and written."""
        assert self.accounting.imbalance == 0
        counts = self.accounting
        kinds = [span.kind for span in self.written]
        state = self.open_spans.state_of("s")
        return state, kinds, (counts.joined, counts.held, counts.written)

    def assert_ended(self) -> None:
        """The span is ended: its START is gone, and another START is joined."""
        assert self.open_spans.started(KEY) is None
        written, joined = len(self.written), self.accounting.joined
        self.start(at=500.0)
        assert (len(self.written), self.accounting.joined) == (written, joined + 1)
        assert self.open_spans.state_of("s") is None


def kept(bench: Bench, *, settled: bool = True) -> Span:
    """A START whose `hold_s` is over."""
    start = bench.start()
    bench.tick(HOLD_S)
    if settled:
        bench.settle(start)
    return start


def payloads(span: Span) -> tuple[bytes, bytes]:
    """Its input and output."""
    return span.input, span.output

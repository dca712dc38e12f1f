"""A stateful test of open spans, queue, drain and throttle with upstreams that respond arbitrarily.

Virtual time, no sockets: hypothesis chooses what agents post, how upstreams respond and when time
passes. After every step the accounting balances (D15) and the order of writes is right: an open
write is never stored after the complete one, and a span is never in flight twice.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.drain.failures import RetryPolicy
from sidecar.drain.throttle import Backoff, Throttle
from sidecar.drain.workers import Drain
from sidecar.queue.admission import Admission, QueueFull
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.span_queue import SpanQueue
from sidecar.sinks import Misdirected, Refused, SinkError, TooLarge, Unauthorized, Unavailable
from sidecar.spans.span import Span
from sidecar.telemetry.accounting import IntakeAccounting, LaneAccounting
from sidecar.telemetry.metrics import LaneMetrics
from tests.support.world import VirtualTimeLoop, make_span

OUTCOMES: dict[str, SinkError | None] = {
    "ok": None,
    "unavailable": Unavailable("HTTP 503", 503),
    "throttled": Unavailable("HTTP 429", 429, retry_after=3.0),
    "internal error": Unavailable("HTTP 500", 500, suspect=True),
    "down": Unavailable("refused", outage=True),
    "refused": Refused("HTTP 422", 422),
    "too large": TooLarge("HTTP 413", 413),
    "unauthorized": Unauthorized("HTTP 401", 401),
    "misdirected": Misdirected("HTTP 404", 404),
}


@dataclass
class Pending:
    """A request without a response yet."""

    batch: list[Span]
    response: asyncio.Future[None]


@dataclass
class Upstream:
    """A sink whose responses the test chooses one by one; `rows` is what it has stored."""

    name: str
    max_batch: int
    max_batch_bytes: int = 2**20
    pending: list[Pending] = field(default_factory=list)
    rows: dict[str, str] = field(default_factory=dict)
    always_ok: bool = False

    def skips(self, span: Span) -> str | None:
        """Nothing is skipped."""
        del span
        return None

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> None:
        """Wait until the test responds."""
        del suspicion
        ids = [span.id for span in batch]
        assert ids, "an empty batch was sent"
        assert len(ids) == len(set(ids)), "a span twice in one batch"
        in_flight = {span.id for request in self.pending for span in request.batch}
        assert not in_flight.intersection(ids), "a span twice in flight"
        request = Pending(list(batch), asyncio.get_running_loop().create_future())
        if self.always_ok:
            self.apply(request)
            return
        self.pending.append(request)
        try:
            await request.response
        finally:
            self.pending.remove(request)

    def apply(self, request: Pending) -> None:
        """Store a batch, and check the order of its writes."""
        for span in request.batch:
            assert not (span.kind == "open" and self.rows.get(span.id) == "complete")
            self.rows[span.id] = span.kind

    async def close(self) -> None:
        """Nothing to close."""


class DeliveryMachine(RuleBasedStateMachine):
    """Two lanes, one of which sends batches."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.now = 0
        self.started: set[int] = set()
        self.ended: set[int] = set()
        self.dead: dict[str, set[str]] = {"one": set(), "many": set()}
        self.loop.run_until_complete(self._build())

    async def _build(self) -> None:
        self.budget = MemoryBudget(60_000)
        self.upstreams = [Upstream("one", 1), Upstream("many", 4)]
        self.accounting = IntakeAccounting()
        self.lanes = []
        for number, upstream in enumerate(self.upstreams):
            accounting = LaneAccounting()
            metrics = LaneMetrics(upstream.name, accounting)
            backoff = Backoff(0.5, 30.0)
            queue = SpanQueue(self.budget, accounting, 1 << number)
            metrics.depth = lambda queue=queue: queue.depth  # type: ignore[misc]
            drain = Drain(
                upstream,
                queue,
                Throttle(backoff, 4, lambda: 0.5),
                RetryPolicy(backoff, 1e9, 4, lambda: 0.5),
                metrics,
                linger_s=0.1 if number else 0.0,
                dead_letter=self._note_dead(upstream.name),
            )
            self.lanes.append((queue, drain, metrics))
        drains = [drain for _, drain, _ in self.lanes]
        self.intake = Admission(drains, self.budget, self.accounting, hold_s=2.0, ttl_s=30.0)
        self.runs = [self.loop.create_task(drain.run()) for drain in drains]

    def _note_dead(self, name: str) -> Callable[[Span, str, SinkError], None]:
        def note(span: Span, reason: str, error: SinkError) -> None:
            del reason, error
            self.dead[name].add(span.id)

        return note

    def run_ready(self) -> None:
        """Run the event loop until only the passing of time could change anything."""
        self.loop.run_until_complete(asyncio.sleep(0))
        for _ in range(20):
            self.loop.run_until_complete(asyncio.sleep(0))
        for run in self.runs:
            if run.done():
                run.result()

    def post(self, span: Span) -> bool:
        """Pass an event on as the listener does; whether it was accepted."""
        span.accepted_at = self.loop.time()
        try:
            self.intake.take([span])
        except QueueFull:
            return False
        return True

    @rule(number=st.integers(0, 30), size=st.sampled_from([10, 3000]))
    def start(self, number: int, size: int) -> None:
        """A START arrives, possibly repeated, possibly late."""
        span = make_span(str(number), complete=False, input=b'{"p":"%b"}' % (b"x" * size))
        if self.post(span):
            self.started.add(number)
        self.run_ready()

    @rule(number=st.integers(0, 30), thin=st.booleans())
    def end(self, number: int, thin: bool) -> None:
        """An END arrives, thin or whole, possibly repeated, possibly without its START."""
        span = make_span(str(number), input=b"" if thin else b'{"p":1}', output=b'{"o":1}')
        if self.post(span):
            self.ended.add(number)
        self.run_ready()

    @rule(seconds=st.sampled_from([0.05, 0.5, 2.5, 40.0]))
    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.run_ready()

    @precondition(lambda self: any(upstream.pending for upstream in self.upstreams))
    @rule(data=st.data(), outcome=st.sampled_from(sorted(OUTCOMES)), applied=st.booleans())
    def respond(self, data: st.DataObject, outcome: str, applied: bool) -> None:
        """An upstream responds; after a failure it may have stored the batch all the same."""
        upstream = data.draw(st.sampled_from([up for up in self.upstreams if up.pending]))
        request = data.draw(st.sampled_from(upstream.pending))
        error = OUTCOMES[outcome]
        if error is None:
            upstream.apply(request)
            request.response.set_result(None)
        else:
            if applied and outcome in {"unavailable", "internal error"}:
                upstream.apply(request)
            request.response.set_exception(error)
        self.run_ready()

    @invariant()
    def balanced(self) -> None:
        """Every event and write is accounted for; memory use is bounded."""
        assert self.accounting.imbalance == 0
        for _, _, metrics in self.lanes:
            assert metrics.imbalance == 0
        assert 0 <= self.budget.used <= 2 * self.budget.limit

    def teardown(self) -> None:
        """Once the upstreams have recovered, every accepted event is stored or a dead letter."""
        try:
            self.intake.release_held()
            for upstream in self.upstreams:
                upstream.always_ok = True
                for request in upstream.pending:
                    upstream.apply(request)
                    request.response.set_result(None)
            for _, drain, _ in self.lanes:
                drain.close()
            self.loop.run_until_complete(asyncio.wait_for(asyncio.gather(*self.runs), 10_000))
            self.balanced()
            for (queue, _, metrics), upstream in zip(self.lanes, self.upstreams, strict=True):
                assert queue.depth == 0
                assert metrics.accounting.lost.total() == 0
                ended = {str(number) for number in self.ended}
                complete = {id_ for id_, kind in upstream.rows.items() if kind == "complete"}
                assert ended <= complete | self.dead[upstream.name]
                known = {str(number) for number in self.started | self.ended}
                assert known <= set(upstream.rows) | self.dead[upstream.name]
        finally:
            for run in self.runs:
                run.cancel()
            self.loop.run_until_complete(asyncio.gather(*self.runs, return_exceptions=True))
            self.loop.close()


TestDelivery: Any = DeliveryMachine.TestCase

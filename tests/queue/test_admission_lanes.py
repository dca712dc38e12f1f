"""An upstream that is away for ever takes nothing from the other one (D22)."""

import sys
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from sidecar.queue.open_span import following
from sidecar.spans.span import PAYLOADS, Span
from tests.drain.test_delivery import ModelMachine, examples
from tests.support.delivery import HOLD_S, Process, process_in
from tests.support.spans import make_span

AWAY = ["unauthorized", "unavailable", "down", "hanging"]


class AwayMachine(ModelMachine):
    """One upstream is away until the end, and the other one accepts everything at once."""

    @initialize(away=st.integers(0, 1), how=st.sampled_from(AWAY))
    def choose(self, away: int, how: str) -> None:
        """Choose which one is away, and what it looks like."""
        self.away, self.there = self.upstreams[away], self.upstreams[1 - away]
        self.bit = 2 >> away  # of the lane that works
        self.hangs = how == "hanging"
        if not self.hangs:
            self.away.whims.closed_until = sys.float_info.max
            self.away.whims.when_closed = how
        self.there.always_ok = True

    def respond(self) -> None:
        """The one that is away fails everything, unless it hangs."""
        if not self.hangs:
            for request in list(self.away.pending):
                self.away.respond(request, "ok", applied=False)
        self.process.run_ready()

    def fits(self, span: Span) -> bool:
        """Whether the lane that works has room for an event within its own share."""
        lane = next(lane for lane in self.process.lanes if lane.bit == self.bit)
        admission, spool = self.process.admission, self.process.spool
        known = admission.open_spans.known(span.join_key)
        if spool.is_configured and not spool.degraded:
            stored = None if known is None else known.start.stored
            needed = spool.cost(span) + (0 if stored is None else stored.bytes)
            # A START stays in memory, without its payloads, until its open write is settled.
            loaded = 0 if stored is None else stored.dropped_bytes
            in_memory = span.size + loaded <= self.process.budget.available
            return in_memory and spool.lane_bytes(self.bit) + needed <= spool.lane_limit
        size = span.size
        if span.end_time is None:
            size += following(span) if self.there.data_follows else 0
        elif known is not None:
            missing = [name for name in PAYLOADS if not getattr(span, name)]
            size += sum(len(getattr(known.start, name)) for name in missing)
        return lane.room.used + size <= admission.rooms.limit

    def post(self, span: Span, accepted: Any) -> bool:  # noqa: ANN401
        """Post an event: it has to be taken for the upstream that works."""
        fits, taken = self.fits(span), list[int]()

        def noted(lanes: int) -> None:
            taken.append(lanes)
            accepted(lanes)

        posted = super().post(span, noted)
        if fits:
            assert posted, "an event was refused although a lane has room"
            if self.directory is not None:
                self.process.pass_time(0.1)  # an END may need its START from the disk first
            assert taken, "an event was not acknowledged although the disk works"
            assert taken[0] & self.bit, "an event was not taken for a lane that has room"
        self.respond()
        return posted

    @rule(number=st.integers(0, 40), much=st.booleans())
    def start(self, number: int, much: bool) -> None:
        """A START."""
        self.post_start(number, much)

    @rule(number=st.integers(0, 40), thin=st.booleans(), much=st.booleans())
    def end(self, number: int, thin: bool, much: bool) -> None:
        """An END."""
        self.post_end(number, thin, much)

    @rule(first=st.integers(0, 40), kinds=st.lists(st.booleans(), min_size=5, max_size=10))
    def burst(self, first: int, kinds: list[bool]) -> None:
        """Many large events, which fill a lane that does not send them."""
        for number, complete in enumerate(kinds, first):
            self.post_end(number, False, True) if complete else self.post_start(number, True)

    @rule(seconds=st.sampled_from([0.2, HOLD_S, 40.0]))
    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.clock += seconds
        self.process.pass_time(seconds)
        self.respond()

    def teardown(self) -> None:
        """The one that was away is back, and gets what was taken for it."""
        for upstream in self.upstreams:
            upstream.whims.closed_until = 0.0
        super().teardown()


class SpooledAwayMachine(AwayMachine):
    """With a spool, whose process is killed now and then."""

    spooled: ClassVar[bool] = True
    tight: ClassVar[bool] = True
    spool_bytes: ClassVar[int] = 2**20

    @rule()
    def kill(self) -> None:
        """Kill the process, and start it again."""
        self.process.kill(disk_call_done=True)
        self.new_process()


TestAway: Any = AwayMachine.TestCase
TestAway.settings = examples(0.5)
TestSpooledAway: Any = SpooledAwayMachine.TestCase
TestSpooledAway.settings = examples(0.2)


# Examples of what the machines found. A lane is full, because its upstream does not respond.

ONE, MANY = 1, 2
INPUT = b'{"i":1}'


def thin_end(id_: str = "s") -> Span:
    """An END that leaves out what its START said."""
    return make_span(id_, input=b"", output=b'{"o":1}')


def post(process: Process, span: Span) -> int:
    """Post an event; returns the bits of the lanes that take it."""
    taken = list[int]()
    process.post(span, taken.append)
    process.run_ready()
    return taken[0] & (ONE | MANY)


def fill(process: Process, full: int) -> None:
    """Fill one lane, and not the other one."""
    process.upstreams[MANY - full].recover()
    number = 0
    for size in (4000, 1):
        while post(process, make_span(f"f{number}", output=b"x" * size)) & full:
            number += 1


def not_taken(process: Process) -> list[int]:
    """Writes that each lane counted as not taken, since it was filled."""
    process.check()
    return [lane.accounting.not_taken.total() for lane in process.lanes]


def stored(process: Process, id_: str = "s") -> list[tuple[str, bytes] | None]:
    """What each upstream has of a span."""
    return [upstream.rows.get(id_) for upstream in process.upstreams]


def make_room(process: Process) -> None:
    """The upstream that did not respond accepts everything from now on."""
    process.upstreams[1].recover()
    process.pass_time(1.0)


def test_an_end_sent_again_reaches_the_lane_that_had_no_room() -> None:
    """Although it repeats the first one, which was filled in from a START that is gone."""
    with process_in(None) as process:
        fill(process, MANY)
        assert post(process, make_span("s", complete=False, input=INPUT)) == ONE
        assert post(process, thin_end()) == ONE
        make_room(process)
        assert stored(process) == [("complete", INPUT), None]
        before = not_taken(process)
        assert post(process, thin_end()) == ONE | MANY
        process.pass_time(1.0)
        assert stored(process) == [("complete", INPUT), ("complete", b"")]
        assert post(process, thin_end()) == ONE | MANY  # joined
        assert not_taken(process) == before
        process.finish()


def test_a_start_stays_for_the_lane_that_has_no_room_for_its_end() -> None:
    """It is written there as open, and nothing is counted where the END was taken."""
    with process_in(None) as process:
        assert post(process, make_span("s", complete=False, input=b"x" * 3000)) == ONE | MANY
        fill(process, MANY)
        counted = not_taken(process)
        large = make_span("s", input=b"", output=b"x" * 12_000)
        assert post(process, large) == ONE
        assert not_taken(process) == [counted[0], counted[1] + 1]
        process.pass_time(HOLD_S + 1)
        assert not_taken(process) == [counted[0], counted[1] + 1]
        make_room(process)
        assert [row and row[0] for row in stored(process)] == ["complete", "open"]
        assert post(process, thin_end()) == ONE | MANY
        process.pass_time(1.0)
        assert stored(process) == [("complete", b"x" * 3000)] * 2
        process.finish()


def test_a_repeated_start_does_not_reopen_a_span() -> None:
    """Its END was taken where there was room, and the START still waits for the other lane."""
    with process_in(None) as process:
        assert post(process, make_span("s", complete=False, input=INPUT)) == ONE | MANY
        fill(process, MANY)
        assert post(process, make_span("s", input=b"", output=b"x" * 12_000)) == ONE
        assert post(process, make_span("s", complete=False, input=INPUT)) & ONE
        process.pass_time(HOLD_S + 1)
        assert stored(process)[0] == ("complete", INPUT)
        process.finish()


def test_a_late_start_adds_nothing_to_a_span_that_was_not_taken() -> None:
    """An upstream that has no END gets no supplement for it."""
    with process_in(None) as process:
        fill(process, ONE)
        assert post(process, thin_end()) == MANY
        process.upstreams[0].recover()
        process.pass_time(1.0)
        assert post(process, make_span("s", complete=False, data=b'{"d":1}')) == ONE | MANY
        process.finish()
        assert process.upstreams[0].orphans == 0


def test_a_larger_repeat_takes_no_room_in_a_full_lane() -> None:
    """The START that it has stays as it is; the END brings what has changed."""
    with process_in(None) as process:
        assert post(process, make_span("s", complete=False, input=INPUT)) == ONE | MANY
        fill(process, MANY)
        used = process.lanes[1].room.used
        assert post(process, make_span("s", complete=False, input=b"x" * 9000)) == ONE
        assert process.lanes[1].room.used == used
        make_room(process)
        process.pass_time(HOLD_S + 1)
        assert stored(process) == [("open", INPUT)] * 2
        process.finish()

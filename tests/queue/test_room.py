"""The room of each lane in memory: what fits, what may use the spare room, and what never fits."""

from typing import NamedTuple

import pytest

from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.open_span import HELD, KEPT, OpenSpan, State, following
from sidecar.queue.room import SPARE, Room, Rooms
from sidecar.spans.span import Key, SdkFields, Span
from sidecar.spool.spool import Spool
from tests.support.spans import make_span

ONE, TWO = 1, 2
LIMIT = 100_000
SHARE = 45_000  # of each of two lanes


class Bench(NamedTuple):
    """Two lanes whose use the test sets."""

    rooms: Rooms
    used: dict[int, int]
    opened: dict[Key, OpenSpan]
    replaceable: dict[int, int]

    def taking(self, *spans: Span) -> int:
        """The bits of the lanes that take a request, of those that there are."""
        lanes = self.rooms.taking(spans)
        return lanes & (ONE | TWO)


def bench(one: int = 0, two: int = 0) -> Bench:
    """Rooms of lanes that have so many bytes in their queues; the first gets `data` later."""
    used, replaceable = {ONE: one, TWO: two}, dict[int, int]()
    opened: dict[Key, OpenSpan] = {}
    budget = MemoryBudget(LIMIT)
    budget.used = max(one, two)

    def room(bit: int) -> Room:
        return Room(bit, lambda: used[bit], lambda _: replaceable.get(bit), bit == ONE)

    rooms = [room(ONE), room(TWO)]
    return Bench(Rooms(rooms, budget, Spool(), opened.get), used, opened, replaceable)


def end(size: int) -> Span:
    """An END of exactly `size` bytes."""
    small = make_span("s", input=b"", output=b"")
    return make_span("s", input=b"", output=b"x" * (size - small.size))


def start(size: int, data: bytes = b"") -> Span:
    """A START of exactly `size` bytes."""
    small = make_span("s", complete=False, input=b"", data=data)
    return make_span("s", complete=False, input=b"x" * (size - small.size), data=data)


def opened(it: Bench, span: Span, state: State, promised_to: int = 0) -> OpenSpan:
    """`span` is the START of what comes."""
    it.opened[span.join_key] = known = OpenSpan(span, 0.0, state)
    if promised_to:
        known.promised, known.promised_to = span.size, promised_to
        for room in it.rooms._rooms:
            room.promises = {room.bit: room.promised + room.promised_to(known)}
    return known


def test_the_shares_leave_a_tenth() -> None:
    """It is nobody's."""
    assert bench().rooms.limit == SHARE
    assert pytest.approx(0.1) == SPARE


@pytest.mark.parametrize("used", [0, 10_000, 40_000])
@pytest.mark.parametrize("span", [start, end])
@pytest.mark.parametrize("more", [0, 1])
def test_an_event_fits_up_to_the_share(used: int, span: object, more: int) -> None:
    """To the byte, whatever the other lane has."""
    size = SHARE - used + more
    event = start(size) if span is start else end(size)
    expected = 0 if more else ONE
    assert bench(used, SHARE).taking(event) == expected
    assert bench(SHARE, used).taking(event) == 2 * expected
    assert bench(used, used).taking(event) == 3 * expected


def test_a_lane_takes_all_of_a_request_or_none() -> None:
    """Events that would fit one by one do not, if they don't together."""
    it = bench(one=SHARE - 5000)
    assert it.taking(end(3000)) == ONE | TWO
    assert it.taking(end(3000), end(3000)) == TWO


def test_data_that_follows_needs_room_of_its_own() -> None:
    """In the lane that gets it later: its open write may still be waiting by then."""
    span = start(6000, data=b"x" * 1000)
    more = following(span)
    assert more > 1000
    assert bench(SHARE - 6000 - more, SHARE - 6000).taking(span) == ONE | TWO
    assert bench(SHARE - 6000 - more + 1, SHARE - 6000).taking(span) == TWO


@pytest.mark.parametrize("bit", [ONE, TWO])
def test_an_end_takes_the_place_of_its_start(bit: int) -> None:
    """Its START is held, or waits in the queue: a full lane takes it, as far as the spare goes."""
    spare = int(LIMIT * SPARE)
    for queued in (False, True):
        for more in (0, 1):
            it = bench(SHARE, SHARE)
            it.used[bit] -= 2000
            if queued:
                opened(it, start(2000), KEPT)
                it.replaceable[bit] = 2000
                it.used[bit] += 2000
            else:
                opened(it, start(2000), HELD, promised_to=bit).start.lanes = bit
            payload = len(it.opened["t1", "s"].start.input)
            assert it.taking(end(2000 + spare - payload + more)) == (0 if more else bit)


def test_an_end_whose_start_has_left_the_lane_needs_room() -> None:
    """It may not use the spare room: the upstream does have its START, but so it has of all."""
    it = bench(SHARE, SHARE)
    opened(it, start(2000), KEPT)
    assert it.taking(end(1000)) == 0


def test_an_end_needs_room_for_what_its_start_fills_in() -> None:
    """Not only for what it says itself."""
    known = start(20_000)
    it = bench(one=SHARE - 10_000)
    opened(it, known, KEPT)
    assert it.taking(end(5000)) == TWO
    whole = make_span("s", input=b"x", output=b"")
    assert it.taking(whole) == ONE | TWO


def test_the_spare_room_is_given_once() -> None:
    """Of two full lanes, one takes the END, since what is left is not enough for both."""
    it = bench(SHARE - 2000, SHARE - 2000)
    opened(it, start(2000), HELD, promised_to=ONE | TWO)
    assert it.taking(end(2000 + 6000)) == ONE
    assert it.taking(end(2000 + 3000)) == ONE | TWO


def test_a_lane_over_its_share_does_not_hold_up_the_other() -> None:
    """Even if it has more than all that is nobody's."""
    it = bench(one=SHARE + 30_000)
    assert it.taking(end(40_000)) == TWO
    assert it.taking(start(40_000)) == TWO


def test_what_takes_less_room_than_it_replaces_always_fits() -> None:
    """In a lane that is over its share, too."""
    it = bench(SHARE + 9000, SHARE + 9000)
    opened(it, start(5000), KEPT)
    it.replaceable.update({ONE: 5000, TWO: 5000})
    assert it.taking(make_span("s", input=b"x", output=b"x")) == ONE | TWO


def test_a_full_lane_is_not_asked_for_what_is_for_the_other() -> None:
    """SDKs' spans are for one lane."""
    it = bench(one=SHARE)
    for bit, expected in ((ONE, 0), (TWO, TWO)):
        span = make_span("s", sdk=SdkFields(bit))
        assert it.taking(span) & bit == expected


def test_all_lanes_are_always_told_in_the_same_way() -> None:
    """Whether the rooms were asked or not: lanes that don't exist need no START."""
    for it in (bench(), bench(30_000, 30_000)):
        assert it.rooms.taking([end(1000)]) == -1


@pytest.mark.parametrize(("size", "too_large"), [(SHARE, False), (SHARE + 1, True)])
def test_what_no_empty_lane_could_take(size: int, too_large: bool) -> None:
    """It is too large, not just unlucky."""
    assert bench(SHARE, SHARE).rooms.is_too_large([end(size)]) is too_large

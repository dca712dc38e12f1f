"""The client's buffer against a model: order, limit and byte counts hold after every step."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from trace_sidecar_client import buffer as module
from trace_sidecar_client.buffer import Buffer

from tests.support.client import DEADLINE_S
from tests.support.interrupts import interrupted

FOLDER = str(Path(module.__file__).parent)

MAX_BYTES, BATCH_BYTES, OVERHEAD = 2000, 500, 128


def size(events: list[bytes]) -> int:
    """The bytes that `events` count for in a buffer."""
    return sum(len(event) + OVERHEAD for event in events)


class BufferMachine(RuleBasedStateMachine):
    """Offers, takes and settles like an agent and a sender, beside a model of two lists."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = Buffer(MAX_BYTES, BATCH_BYTES)
        self.queued: list[bytes] = []
        self.in_flight: list[bytes] = []

    @rule(event=st.binary(max_size=700))
    def offer(self, event: bytes) -> None:
        """An event is accepted if it fits beside everything held; otherwise nothing changes."""
        fits = size([*self.queued, event]) <= MAX_BYTES
        assert self.buffer.offer(event) == fits
        if fits:
            self.queued.append(event)

    @precondition(lambda self: self.queued)
    @rule(limit=st.integers(1, 5))
    def take(self, limit: int) -> None:
        """A batch is the oldest events, as many as its limits allow and at least one."""
        batch = self.buffer.take(limit, 0.0)
        assert batch == self.queued[: len(batch)]
        assert len(batch) == 1 or (len(batch) <= limit and size(batch) <= BATCH_BYTES)
        full = len(batch) == limit or len(batch) == len(self.queued)
        assert full or size(self.queued[: len(batch) + 1]) > BATCH_BYTES
        self.in_flight = batch

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """Settled events free their room."""
        count = data.draw(st.integers(1, len(self.in_flight)))
        self.buffer.settle(self.in_flight[:count])
        del self.in_flight[:count], self.queued[:count]

    @invariant()
    def byte_counts_match(self) -> None:
        """What is in flight is still held, and the limit is never exceeded."""
        held = (size(self.queued), len(self.queued))
        assert (self.buffer.held_bytes, self.buffer.depth) == held
        assert self.buffer.held_bytes <= MAX_BYTES
        assert self.buffer.flush(0.0) == (not self.queued)


TestBuffer = BufferMachine.TestCase


def test_an_interrupt_anywhere_leaves_the_buffer_consistent() -> None:
    """Wherever Ctrl-C hits an agent's thread, nothing stays locked or counted for ever."""
    buffer = Buffer(MAX_BYTES, BATCH_BYTES)

    def use() -> None:
        buffer.offer(b"a")
        buffer.flush(0.0)
        batch = buffer.take(1, 0.0)
        buffer.offer(b"b")
        buffer.settle(batch)

    def make_call() -> Callable[[], None]:
        nonlocal buffer
        buffer = Buffer(MAX_BYTES, BATCH_BYTES)
        return use

    interrupts = 0
    for _ in interrupted(make_call, FOLDER):
        interrupts += 1
        with ThreadPoolExecutor(1) as other:
            assert other.submit(buffer.offer, b"c").result(DEADLINE_S)
        assert buffer.held_bytes >= size([b"c"])
        buffer.settle(buffer.peek(5))
        assert (buffer.held_bytes, buffer.depth) == (0, 0)
        assert buffer.flush(DEADLINE_S)
        assert not buffer._waiters
    assert interrupts > 20


def test_a_signal_handler_may_offer_in_the_middle_of_an_offer() -> None:
    """Events of both arrive, and sizes are right once they have left."""
    buffer = Buffer(MAX_BYTES, BATCH_BYTES)

    class Tracing(bytes):
        def __len__(self) -> int:
            if not buffer.depth:
                buffer.offer(b"handler")
            return super().__len__()

    assert buffer.offer(Tracing(b"agent"))
    batch = buffer.peek(5)
    assert batch == [b"handler", b"agent"]
    buffer.settle(batch)
    assert (buffer.held_bytes, buffer.depth) == (0, 0)


def test_later_events_do_not_prolong_a_flush() -> None:
    """A flush ends with the events of its moment, however many others add meanwhile."""
    buffer = Buffer(MAX_BYTES, BATCH_BYTES)
    buffer.offer(b"before")
    with ThreadPoolExecutor(1) as other:
        flushed = other.submit(buffer.flush, DEADLINE_S)
        assert buffer.take(1, DEADLINE_S) == [b"before"], "the flush ends the linger"
        buffer.offer(b"after")
        buffer.settle([bytes(bytearray(b"before"))])
        assert not flushed.done(), "another event, if an equal one"
        buffer.settle(buffer.peek(1))
        assert flushed.result(DEADLINE_S)
    assert buffer.peek(5) == [b"after"]

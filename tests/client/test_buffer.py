"""The client's buffer against a model: order, limit and byte counts hold after every step."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from trace_sidecar_client.buffer import Buffer

MAX_BYTES, BATCH_BYTES, OVERHEAD = 2000, 500, 64


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
        fits = size([*self.queued, *self.in_flight, event]) <= MAX_BYTES
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
        del self.queued[: len(batch)]
        self.in_flight += batch

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """Settled events free their room."""
        count = data.draw(st.integers(1, len(self.in_flight)))
        self.buffer.settle(self.in_flight[:count])
        del self.in_flight[:count]

    @invariant()
    def byte_counts_match(self) -> None:
        """Queued and in-flight events add up to what is held, which never exceeds the limit."""
        held = [*self.queued, *self.in_flight]
        assert (self.buffer.held_bytes, self.buffer.depth) == (size(held), len(held))
        assert self.buffer.held_bytes <= MAX_BYTES
        assert self.buffer.flush(0.0) == (not held)


TestBuffer = BufferMachine.TestCase

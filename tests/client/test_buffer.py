"""The client's buffer against a model: order, bound and books hold after every step."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from trace_sidecar_client.buffer import Buffer

MAX_BYTES, BATCH_BYTES, OVERHEAD = 2000, 500, 64


def size(events: list[bytes]) -> int:
    """What they count for."""
    return sum(len(event) + OVERHEAD for event in events)


class BufferMachine(RuleBasedStateMachine):
    """Offers, takes and settles as an agent and a sender do, beside two plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = Buffer(MAX_BYTES, BATCH_BYTES)
        self.waiting: list[bytes] = []
        self.in_hand: list[bytes] = []

    @rule(event=st.binary(max_size=700))
    def offer(self, event: bytes) -> None:
        """Taken exactly if it fits beside all that is held; else nothing changes."""
        fits = size([*self.waiting, *self.in_hand, event]) <= MAX_BYTES
        assert self.buffer.offer(event) == fits
        if fits:
            self.waiting.append(event)

    @precondition(lambda self: self.waiting)
    @rule(limit=st.integers(1, 5))
    def take(self, limit: int) -> None:
        """The oldest come first: as many as a batch may have, and one at least."""
        batch = self.buffer.take(limit, 0.0)
        assert batch == self.waiting[: len(batch)]
        assert len(batch) == 1 or (len(batch) <= limit and size(batch) <= BATCH_BYTES)
        full = len(batch) == limit or len(batch) == len(self.waiting)
        assert full or size(self.waiting[: len(batch) + 1]) > BATCH_BYTES
        del self.waiting[: len(batch)]
        self.in_hand += batch

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """Part of what is in hand gives its room back."""
        count = data.draw(st.integers(1, len(self.in_hand)))
        self.buffer.settle(self.in_hand[:count])
        del self.in_hand[:count]

    @invariant()
    def accounting(self) -> None:
        """Held is what waits and what is in hand, and never above the bound."""
        held = [*self.waiting, *self.in_hand]
        assert (self.buffer.held_bytes, self.buffer.depth) == (size(held), len(held))
        assert self.buffer.held_bytes <= MAX_BYTES
        assert self.buffer.flush(0.0) == (not held)


TestBuffer = BufferMachine.TestCase

"""The row numbers of writes that wait on disk, against a list."""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sidecar.queue.disk_fifo import OnDiskFifo

SEQS = st.lists(st.integers(1, 2**62), max_size=20)


class TailMachine(RuleBasedStateMachine):
    """The tail against a list."""

    def __init__(self) -> None:
        super().__init__()
        self.tail = OnDiskFifo()
        self.tail.COMPACT = 8  # so that it happens here
        self.model: list[int] = []

    @rule(seqs=SEQS)
    def extend(self, seqs: list[int]) -> None:
        """Numbers come behind all others."""
        self.tail.extend(iter(seqs))
        self.model += seqs

    @rule(most=st.integers(0, 50))
    def first(self, most: int) -> None:
        """The first ones are shown and stay."""
        assert self.model[:most] == self.tail.first(most)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """The first ones go."""
        count = data.draw(st.integers(0, len(self.model)))
        self.tail.drop(count)
        del self.model[:count]

    @invariant()
    def same(self) -> None:
        """All that waits is there, in order."""
        assert len(self.tail) == len(self.model)
        assert bool(self.tail) == bool(self.model)
        assert self.tail.first(len(self.model) + 1) == self.model


TestTailMachine: Any = TailMachine.TestCase


def test_a_million_numbers_take_eight_bytes_each() -> None:
    """A long backlog costs little memory, also while it is worked off."""
    tail = OnDiskFifo()
    tail.extend(range(1_000_000))
    for _ in range(900):
        tail.drop(len(tail.first(1000)))
    assert list(range(900_000, 900_003)) == tail.first(3)
    assert len(tail._seqs) < 100_000 + 2 * OnDiskFifo.COMPACT

"""The FIFO of row numbers on disk, against a list."""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sidecar.queue.disk_fifo import OnDiskFifo

SEQS = st.lists(st.integers(1, 2**62), max_size=20)


class FifoMachine(RuleBasedStateMachine):
    """The FIFO against a list."""

    def __init__(self) -> None:
        super().__init__()
        self.fifo = OnDiskFifo()
        self.fifo.COMPACT = 8  # small, so that it compacts here
        self.model: list[int] = []

    @rule(seqs=SEQS)
    def extend(self, seqs: list[int]) -> None:
        """Numbers are appended."""
        self.fifo.extend(iter(seqs))
        self.model += seqs

    @rule(max_count=st.integers(0, 50))
    def first(self, max_count: int) -> None:
        """The first ones are returned, not removed."""
        assert self.model[:max_count] == self.fifo.first(max_count)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """The first ones are removed."""
        count = data.draw(st.integers(0, len(self.model)))
        self.fifo.drop(count)
        del self.model[:count]

    @invariant()
    def same(self) -> None:
        """The FIFO has the same numbers as the model, in order."""
        assert self.fifo.count == len(self.model)
        assert self.fifo.first(len(self.model) + 1) == self.model


TestFifoMachine: Any = FifoMachine.TestCase


def test_a_million_numbers_take_eight_bytes_each() -> None:
    """A long backlog takes little memory, also while it is being consumed."""
    fifo = OnDiskFifo()
    fifo.extend(range(1_000_000))
    for _ in range(900):
        fifo.drop(len(fifo.first(1000)))
    assert list(range(900_000, 900_003)) == fifo.first(3)
    assert len(fifo._seqs) < 100_000 + 2 * OnDiskFifo.COMPACT

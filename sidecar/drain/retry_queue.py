"""Batches of one lane: sent together and, after a failure, kept until they may be sent again.

A failed batch does not go back into the span queue. Its spans stay in flight, so that no later
write of the same span overtakes it (docs/architecture.md, Queue).
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from sidecar.spans.span import Span

_order = count()


@dataclass(slots=True)
class Batch:
    """Writes that are sent together.

    `attempts`: failed attempts. `suspicion`: the failures that count against the batch itself.
    `successes_seen` belongs to the poison detector (evidence.py). `not_before`: loop time in
    seconds. `order`: age; halves of a batch keep the order of the whole.
    """

    spans: list[Span]
    attempts: int = 0
    suspicion: int = 0
    successes_seen: int = 0
    not_before: float = 0.0
    order: int = field(default_factory=_order.__next__)

    def __lt__(self, other: "Batch") -> bool:
        """Order by `not_before`, then by age, then the smaller part of a split batch first.

        This isolates a bad write within a few requests, before other batches are halved.
        """
        mine = (self.not_before, self.order, len(self.spans))
        return mine < (other.not_before, other.order, len(other.spans))

    def split(self, at: int) -> tuple["Batch", "Batch"]:
        """Return the first `at` writes and the rest as two batches."""
        first, rest = self.spans[:at], self.spans[at:]
        return replace(self, spans=first), replace(self, spans=rest)


class RetryQueue:
    """Batches waiting for their `not_before`; other modules only read `heap`."""

    def __init__(self) -> None:
        self.heap: list[Batch] = []

    def __len__(self) -> int:
        return len(self.heap)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate in no particular order."""
        return iter(self.heap)

    @property
    def next_due(self) -> float | None:
        """Loop time at which the first batch may be sent; None if the queue is empty."""
        return self.heap[0].not_before if self.heap else None

    def add(self, *batches: Batch) -> None:
        for batch in batches:
            heapq.heappush(self.heap, batch)

    def pop(self) -> Batch:
        """Remove and return the batch that may be sent first."""
        return heapq.heappop(self.heap)

    def bring_forward(self, when: float, *, suspects: bool) -> None:
        """Allow batches to be sent from `when` on; suspected ones only if `suspects`."""
        for batch in self.heap if suspects else self._unsuspected():
            batch.not_before = min(batch.not_before, when)
        heapq.heapify(self.heap)

    def _unsuspected(self) -> Iterable[Batch]:
        return (batch for batch in self.heap if not batch.suspicion)

"""Batches of one lane: sent together and, after a failure, kept until they may be sent again.

A failed batch does not go back into the span queue. Its spans stay in flight, so that no later
write of the same span overtakes it (docs/architecture.md, Queue).
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from sidecar.spans.span import Span

_order = count()


@dataclass(slots=True)
class Batch:
    """Writes that are sent together.

    `attempts`: failed attempts, also as part of a larger batch. `failures`: those of exactly these
    writes. `suspicion`: those that count against a write sent alone. `is_part`: of a batch that was
    split because it failed. `successes_seen` belongs to the poison detector (evidence.py).
    `not_before`: loop time in seconds. `order`: age; parts of a batch keep the order of the whole.
    """

    spans: list[Span]
    attempts: int = 0
    failures: int = 0
    suspicion: int = 0
    is_part: bool = False
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

    def halves(self) -> tuple["Batch", "Batch"]:
        """Return the two halves of a batch that failed: what failed is one of them, or its size."""
        half = replace(self, failures=0, suspicion=0, is_part=True)
        return half.split(len(self.spans) // 2)

    @property
    def mergeable(self) -> bool:
        """Whether it may be sent together with others: nothing suggests that it is the cause."""
        return not (self.is_part or self.suspicion)

    def merge(self, other: "Batch") -> None:
        """Add the writes of `other`."""
        self.spans += other.spans
        self.attempts = max(self.attempts, other.attempts)
        self.failures = max(self.failures, other.failures)
        self.successes_seen = max(self.successes_seen, other.successes_seen)


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
        for batch in self.heap:
            if suspects or not batch.suspicion:
                batch.not_before = min(batch.not_before, when)
        heapq.heapify(self.heap)

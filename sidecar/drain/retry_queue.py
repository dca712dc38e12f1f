"""Batches in a lane's hand: sent together, and kept until they may be sent again.

A batch that failed is not put back into the queue: its spans stay in flight, so that nothing of
theirs overtakes it (docs/architecture.md, Queue).
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

    `attempts` counts its failures, `suspicion` those that speak against it (verdicts.py),
    `not_before` is loop time in seconds.
    """

    spans: list[Span]
    attempts: int = 0
    suspicion: int = 0
    successes_seen: int = 0
    not_before: float = 0.0
    order: int = field(default_factory=_order.__next__)

    def __lt__(self, other: "Batch") -> bool:
        """By the time it may be sent, then by age; of halves the smaller first, down to the end.

        A bad write is then alone after a few requests, and not after all batches were halved.
        """
        mine = (self.not_before, self.order, len(self.spans))
        return mine < (other.not_before, other.order, len(other.spans))

    def split(self, at: int) -> tuple["Batch", "Batch"]:
        """The first `at` writes and the rest."""
        first, rest = self.spans[:at], self.spans[at:]
        return replace(self, spans=first), replace(self, spans=rest)


class RetryQueue:
    """Batches that wait for their time; `heap` is for looking at only."""

    def __init__(self) -> None:
        self.heap: list[Batch] = []

    def __len__(self) -> int:
        """How many batches wait."""
        return len(self.heap)

    def __iter__(self) -> Iterator[Batch]:
        """The batches, in no promised order."""
        return iter(self.heap)

    @property
    def next_due(self) -> float | None:
        """Loop time at which the first may be sent."""
        return self.heap[0].not_before if self.heap else None

    def add(self, *batches: Batch) -> None:
        """Keep batches until their `not_before`."""
        for batch in batches:
            heapq.heappush(self.heap, batch)

    def pop(self) -> Batch:
        """The first."""
        return heapq.heappop(self.heap)

    def bring_forward(self, when: float, *, suspects: bool) -> None:
        """Let batches be sent at `when`; those under suspicion only if `suspects`."""
        for batch in self._unsuspected() if not suspects else self.heap:
            batch.not_before = min(batch.not_before, when)
        heapq.heapify(self.heap)

    def _unsuspected(self) -> Iterable[Batch]:
        return (batch for batch in self.heap if not batch.suspicion)

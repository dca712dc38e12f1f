"""What a mark covers when rows on disk were replaced; test_span_queue.py has the rest."""

from sidecar.queue.disk_fifo import OnDiskFifo
from sidecar.queue.mark import Mark
from sidecar.spans.span import Key, Span
from sidecar.spool.spool import Gone
from tests.support.spans import make_span


class Disk:
    """A queue of which everything is on disk, and its mark."""

    def __init__(self, rows: int) -> None:
        self.waiting: dict[Key, Span] = {}
        self.on_disk = OnDiskFifo()
        self.on_disk.extend(range(rows))
        self.mark = Mark(self.waiting, {}, {}, self.on_disk)
        self.done = 0
        self.mark.set(self._done)

    def _done(self) -> None:
        self.done += 1

    def load(self, *outcomes: Span | Gone) -> None:
        """Load the first rows, as `SpanQueue.refill` does."""
        self.on_disk.drop(len(outcomes))
        self.waiting |= {each.key: each for each in outcomes if isinstance(each, Span)}
        self.mark.loaded(outcomes)

    def settle(self, *spans: Span) -> None:
        """Settle the writes of these spans."""
        for span in spans:
            del self.waiting[span.key]
            self.mark.settled(span.key, replaced=False)


def test_a_row_that_was_replaced_marks_what_is_behind_it_once() -> None:
    """A flush waits for the END of its START, and not for what is replaced after that."""
    a, b, c = (make_span(id_) for id_ in "abc")
    disk = Disk(3)
    disk.load(a, Gone.SUPERSEDED)
    disk.on_disk.extend(range(2))  # one of them has replaced the second row
    disk.load(Gone.UNREADABLE)
    assert len(disk.mark) == 3
    disk.settle(a)
    disk.on_disk.extend(range(5))
    disk.load(Gone.SUPERSEDED, b)
    assert (len(disk.mark), disk.done) == (1, 0)
    disk.load(c)
    disk.settle(c, b)
    assert (len(disk.mark), disk.done, disk.mark.is_set) == (0, 1, False)


def test_rows_that_are_lost_are_settled() -> None:
    """A mark of nothing but rows that can't be read ends."""
    disk = Disk(2)
    disk.load(Gone.UNREADABLE)
    assert (len(disk.mark), disk.done) == (1, 0)
    disk.load(Gone.UNREADABLE)
    assert (len(disk.mark), disk.done) == (0, 1)


def test_what_replaced_a_row_may_be_settled_already() -> None:
    """If nothing is unsettled when the last marked row was loaded, the mark ends."""
    disk = Disk(1)
    disk.load(Gone.SUPERSEDED)
    assert disk.done == 1

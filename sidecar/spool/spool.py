"""What the stages need from a spool, and what they get without one: nothing is ever on disk.

`disk_spool.DiskSpool` is the real one. Nobody else asks whether there is a spool.
"""

import sys
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

from sidecar.process.blocking import BlockingThread
from sidecar.spans.heads import Wanted
from sidecar.spans.span import Span, Stored
from sidecar.spool.rows import Backlog, FoundRow


class Gone(Enum):
    """Why a row can't be loaded."""

    SUPERSEDED = "a newer write of its span replaces it"
    UNREADABLE = "it is damaged, or not there"


class SpoolStatus(NamedTuple):
    """A spool at one moment, as operators see it; zeros without one.

    `bytes` is the size of the files, `limit_bytes` is `spool.max_bytes`, `writes` counts rows.
    `used_ratio`: share of the room in use, which unlike `bytes` falls when writes are settled.
    `errors` counts disk failures, `stalls` those that were no answer in time. `moved_aside` counts
    files that were renamed: unreadable ones, and those that replaced a file in use.
    """

    degraded: bool = False
    bytes: int = 0
    limit_bytes: int = 0
    used_ratio: float = 0.0
    writes: int = 0
    errors: int = 0
    moved_aside: int = 0
    stalls: int = 0


class Spool:
    """No spool: the answers of a process without one. `DiskSpool` overrides every method."""

    is_configured = False
    degraded = False  # whether new writes are in memory only because the disk fails
    # Loop time since when all that is accepted gets on disk, as far as it is not settled.
    trusted_since = float("inf")
    adding = 0  # bytes in memory that are waiting to be written
    max_row_bytes = sys.maxsize  # of a write; a larger one would not fit in the log
    room_limit = sys.maxsize  # `lane_limit` while the disk works
    spare = 0  # bytes that are in no lane's `lane_limit`
    threads: Sequence[BlockingThread] = ()  # those that make its calls

    async def open(
        self, on_backlog: Callable[[Backlog], None], on_durable: Callable[[], None]
    ) -> None:
        """Pass the rows of an earlier process to `on_backlog`: now, or once the disk works.

        `on_durable` is called when `may_send` has changed. Raises `SpoolInUse` if another sidecar
        uses the directory.
        """

    async def run(self) -> None:
        """Write changes to disk until cancelled."""

    def tick(self) -> None:
        """Have the writer look after the file; call it about every second.

        It notices files that were removed, and returns free pages to the file system if the file is
        large and little of it is used.
        """

    def end_at(self, when: float) -> None:
        """From loop time `when` on, do not wait for the disk any more."""

    async def close(self) -> None:
        """Write pending changes and close the file. If degraded, try the disk once more."""

    def status(self) -> SpoolStatus:
        """What operators see."""
        return SpoolStatus()

    def is_roomy(self, size: int) -> bool:  # noqa: ARG002
        """Whether spans of `size` bytes in memory certainly fit, in every lane."""
        return False

    def fits(self, spans: Sequence[Span], size: int) -> bool:  # noqa: ARG002
        """Whether `spans`, of `size` bytes in memory, stay within `spool.max_bytes`."""
        return True

    @property
    def is_tight(self) -> bool:
        """Whether less than a tenth of the file is free."""
        return False

    @property
    def lane_limit(self) -> int:
        """Bytes on disk that belong to each lane (D22)."""
        return sys.maxsize

    def lane_bytes(self, lane: int) -> int:  # noqa: ARG002
        """Bytes on disk of the rows that the lane with this bit has not settled."""
        return 0

    def cost(self, span: Span, start: Span | None = None) -> int:  # noqa: ARG002
        """About how many bytes `add` would charge each lane that takes the write."""
        return 0

    def name_account(self, number: int, id_: str) -> None:
        """Remember the id of an account: it is on disk as soon as rows that have its number."""

    def add(self, span: Span, start: Span | None = None) -> None:
        """Add a write, which gets a row unless the disk fails.

        `start` is the open write that it completes: payloads equal to its own are not stored twice.
        """

    async def commit(self) -> None:
        """Return when everything added so far is on disk, or the spool is degraded."""

    def replace(self, start: Span) -> None:
        """Delete the row of an open write, because a newer event of the span replaces it."""

    def retire(self, start: Span) -> None:
        """No longer expect an END: the row is deleted once every lane has settled it."""

    def release(self, stored: Stored, lanes: int) -> None:
        """The lanes with these bits no longer need an open write, unlike others: they have its END.

        Call it right after `add` of the END: one transaction has both.
        """

    def settled(self, stored: Stored, lane: int) -> None:
        """Record that the lane with this bit has settled the write."""

    def may_send(self, stored: Stored) -> bool:  # noqa: ARG002
        """Whether the write may be sent: whether it is on disk, unless the disk fails.

        If an END were sent before that, a kill could lose the END but keep its START, which the
        next process would then write after it.
        """
        return True

    def has_row(self, row: int) -> bool:  # noqa: ARG002
        """Whether a row can be loaded; not if it was in a file that was moved aside."""
        return False

    def is_written(self, row: int) -> bool:  # noqa: ARG002
        """Whether a row is on disk, rather than kept in memory after a failed write."""
        return False

    def left_over(
        self,
        rows: Sequence[int],  # noqa: ARG002
        lane: int,  # noqa: ARG002
    ) -> tuple[list[int], list[Span], int]:
        """What becomes of rows that a lane has put off, at the end of the process.

        Those that are on disk; the writes of others, as far as they are in memory; and how many of
        these the lane does not need any more.
        """
        return [], [], 0

    def put_off(self, span: Span, stored: Stored, lane: int) -> None:
        """The lane with this bit keeps only the row's number, and will `load` it once."""

    async def find(self, wanted: Wanted) -> list[FoundRow]:  # noqa: ARG002
        """The rows of the spans that are wanted, newest first; at most about `MAX_FOUND`.

        They may be settled. Raises `OSError`.
        """
        return []

    async def load(
        self,
        rows: Sequence[int],
        max_bytes: int,  # noqa: ARG002
        lane: int = 0,  # noqa: ARG002
    ) -> list[Span | Gone]:
        """What became of the first of `rows`: at least one, up to about `max_bytes` of writes.

        `lane` is the bit of the lane that put them off. If the disk fails, waits until it works
        again.
        """
        return [Gone.UNREADABLE for _ in rows]

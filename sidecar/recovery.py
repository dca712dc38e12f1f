"""Recovers what an earlier process left in the spool: at startup, or once its disk works again.

Complete writes go to the lanes as row numbers, and STARTs go to the open spans without their
payloads, so that a large spool is never entirely in memory.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING

import structlog

from sidecar.config import SpoolConfig
from sidecar.credentials import Accounts
from sidecar.drain.lane import Lane
from sidecar.queue.admission import Admission
from sidecar.queue.span_queue import MAX_ROWS_PER_LOAD
from sidecar.spans.span import Span
from sidecar.spool.spool import Gone, Spool
from sidecar.telemetry.accounting import IntakeAccounting

if TYPE_CHECKING:
    from sidecar.spool.rows import Backlog

# Open rows are loaded in batches of about this many bytes.
RECOVERED_BYTES = 2**20
# How long the ports stay closed for what is in the spool.
MAX_START_S = 10.0
EVERY_S = 1.0

log = structlog.get_logger()


def new_spool(section: SpoolConfig, lane_bits: int, account_id: str) -> Spool:
    """The configured spool; none without a path, or without lanes: then what is in it stays there.

    `lane_bits` has those of all lanes. `account_id`: the configured account, if there is one.
    """
    if not (section.path and lane_bits):
        return Spool()
    # Only here, because they load sqlite3: 1 MiB.
    from sidecar.spool.disk_spool import DiskSpool  # noqa: PLC0415
    from sidecar.spool.schema import CONFIGURED  # noqa: PLC0415
    from sidecar.spool.sqlite_file import SpoolFile  # noqa: PLC0415

    file = SpoolFile(section.path, section.max_bytes, sync_full=section.sync == "full")
    if account_id:
        file.accounts[CONFIGURED] = account_id
    return DiskSpool(file, lane_bits)


class SpoolRecovery:
    """Hands a spool's backlog to `lanes` and `admission`; `lane_bits` has those of all lanes."""

    def __init__(
        self,
        spool: Spool,
        lanes: Sequence[Lane],
        admission: Admission,
        accounting: IntakeAccounting,
        accounts: Accounts,
        lane_bits: int,
    ) -> None:
        self._spool = spool
        self._lanes = lanes
        self._admission = admission
        self._accounting = accounting
        self._accounts = accounts
        self._lane_bits = lane_bits
        self._loop = asyncio.get_running_loop()
        # Found but not yet recovered. A disk that was failing at startup may yield another later.
        self._backlogs: list[Backlog] = []
        # Rows of STARTs that are still to be loaded: (lanes that have not settled it, account).
        self._open_rows: dict[int, tuple[int, int]] = {}
        # How many rows were found and are not recovered, by the bits of their lanes.
        self._unread = Counter[int]()
        self._recovered = asyncio.Event()
        self._has_found = False  # the disk may have failed until now

    async def start(self) -> None:
        """Open the spool and recover its backlog; raises `SpoolInUse`.

        If the disk takes too long, the rest is recovered later: agents must not wait for it.
        """
        await self._spool.open(self._found, self._wake_lanes)
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_START_S):
                await self.recover()

    def _found(self, backlog: "Backlog") -> None:
        self._has_found = True
        self._backlogs.append(backlog)
        rows = chain(backlog.complete_rows, backlog.open_rows)
        self._unread.update(lanes for _, lanes, _ in rows)
        self._recovered.clear()

    async def recovered(self) -> None:
        """Return once all that was found on disk is with the lanes or the open spans."""
        await self._recovered.wait()

    @property
    def is_complete(self) -> bool:
        """Whether the lanes and the open spans know of all that is on disk."""
        return self._has_found and self._recovered.is_set()

    def unread_for(self, lane: int) -> int:
        """How many writes the lane with this bit will get once they are recovered."""
        return sum(count for lanes, count in self._unread.items() if lanes & lane)

    def _wake_lanes(self) -> None:
        for lane in self._lanes:
            lane.wake()

    async def run(self) -> None:
        """Recover what the disk yields later, until cancelled."""
        while True:
            await self.recover()
            await asyncio.sleep(EVERY_S)

    async def recover(self) -> None:
        """Recover the backlog found since the last call, and what is left of an earlier one."""
        while self._backlogs:
            backlog = self._backlogs.pop()
            self._accounts.restore(backlog.accounts)
            for lane in self._lanes:
                lane.recover(backlog.complete_rows)
            self._unread.subtract(lanes for _, lanes, _ in backlog.complete_rows)
            self._accounting.replayed += len(backlog.complete_rows)
            self._accounting.written += len(backlog.complete_rows)
            self._open_rows |= {row: (lanes, account) for row, lanes, account in backlog.open_rows}
            writes, open_spans = self._spool.status().writes, len(backlog.open_rows)
            log.info("spool_recovered", writes=writes, open_spans=open_spans)
        while self._open_rows:
            rows = list(islice(self._open_rows, MAX_ROWS_PER_LOAD))
            outcomes = await self._spool.load(rows, RECOVERED_BYTES)
            for row, outcome in zip(rows, outcomes, strict=False):
                lanes, account = self._open_rows.pop(row)
                self._unread[lanes] -= 1
                self._recover_start(row, lanes & self._lane_bits, account, outcome)
        if not self._backlogs:
            self._recovered.set()

    def _recover_start(self, row: int, pending: int, account: int, outcome: Span | Gone) -> None:
        if isinstance(outcome, Span) and outcome.stored is not None:
            outcome.stored.pending = pending
            outcome.accepted_at = self._loop.time()
            self._admission.recover(outcome)
            return
        for lane in self._lanes:  # it is not readable: each lane will see that and count it
            lane.recover([(row, pending, account)])

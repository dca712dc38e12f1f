"""Recovers what an earlier process left in the spool: at startup, or once its disk works again.

Complete writes go to the lanes as row numbers, and STARTs go to the open spans without their
payloads, so that a large spool is never entirely in memory.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

import structlog

from sidecar.lanes import Lane
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


class SpoolRecovery:
    """Hands a spool's backlog to `lanes` and `admission`; `lane_bits` has those of all lanes."""

    def __init__(
        self,
        spool: Spool,
        lanes: Sequence[Lane],
        admission: Admission,
        accounting: IntakeAccounting,
        lane_bits: int,
    ) -> None:
        self._spool = spool
        self._lanes = lanes
        self._admission = admission
        self._accounting = accounting
        self._lane_bits = lane_bits
        self._loop = asyncio.get_running_loop()
        # Found but not yet recovered. A disk that was failing at startup may yield another later.
        self._backlogs: list[Backlog] = []
        # Rows of STARTs that are still to be loaded, and the lanes that have not settled them.
        self._open_rows: dict[int, int] = {}

    async def start(self) -> None:
        """Open the spool and recover its backlog; raises `SpoolInUse`.

        If the disk takes too long, the rest is recovered later: agents must not wait for it.
        """
        await self._spool.open(self._backlogs.append, self._wake_lanes)
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_START_S):
                await self.recover()

    def _wake_lanes(self) -> None:
        for lane in self._lanes:
            lane.drain.wake()

    async def run(self) -> None:
        """Recover what the disk yields later, until cancelled."""
        while True:
            await self.recover()
            await asyncio.sleep(EVERY_S)

    async def recover(self) -> None:
        """Recover the backlog found since the last call, and what is left of an earlier one."""
        while self._backlogs:
            backlog = self._backlogs.pop()
            for lane in self._lanes:
                bit = lane.queue.bit
                lane.queue.recover(row for row, lanes in backlog.complete_rows if lanes & bit)
                lane.drain.wake()
            self._accounting.replayed += len(backlog.complete_rows)
            self._accounting.written += len(backlog.complete_rows)
            self._open_rows |= backlog.open_rows
            writes, open_spans = self._spool.status().writes, len(backlog.open_rows)
            log.info("spool_recovered", writes=writes, open_spans=open_spans)
        while self._open_rows:
            rows = list(islice(self._open_rows, MAX_ROWS_PER_LOAD))
            outcomes = await self._spool.load(rows, RECOVERED_BYTES)
            for row, outcome in zip(rows, outcomes, strict=False):
                self._recover_start(row, self._open_rows.pop(row) & self._lane_bits, outcome)

    def _recover_start(self, row: int, pending: int, outcome: Span | Gone) -> None:
        if isinstance(outcome, Span) and outcome.stored is not None:
            outcome.stored.pending = pending
            outcome.accepted_at = self._loop.time()
            self._admission.recover(outcome)
            return
        for lane in self._lanes:  # it is not readable: each lane will see that and count it
            if pending & lane.queue.bit:
                lane.queue.recover([row])

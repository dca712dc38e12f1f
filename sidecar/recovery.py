"""Recovers what an earlier process left in the spool: at startup, or once its disk works again.

Complete writes go to the lanes as row numbers, and STARTs go to the open spans without their
payloads, so that a large spool is never entirely in memory.
"""

import asyncio
from collections.abc import Sequence

import structlog

from sidecar.lanes import Lane
from sidecar.queue.admission import Admission
from sidecar.queue.span_queue import MAX_ROWS_PER_LOAD
from sidecar.spans.span import Span
from sidecar.spool.rows import Backlog
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import IntakeAccounting

# Open rows are loaded in batches of about this many bytes.
RECOVERED_BYTES = 2**20

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

    async def start(self) -> None:
        """Open the spool and recover its backlog; raises `SpoolInUse`."""
        await self._spool.open(self._backlogs.append, self._wake_lanes)
        await self.recover()

    async def recover(self) -> None:
        """Recover the backlog found since the last call; call it periodically."""
        while self._backlogs:
            await self._recover(self._backlogs.pop())

    def _wake_lanes(self) -> None:
        for lane in self._lanes:
            lane.drain.wake()

    async def _recover(self, backlog: Backlog) -> None:
        for lane in self._lanes:
            bit = lane.queue.bit
            lane.queue.recover(seq for seq, lanes in backlog.complete_rows if lanes & bit)
            lane.drain.wake()
        self._accounting.replayed += len(backlog.complete_rows)
        self._accounting.written += len(backlog.complete_rows)
        lanes_of = dict(backlog.open_rows)
        rows = list(lanes_of)
        while rows:
            outcomes = await self._spool.load(rows[:MAX_ROWS_PER_LOAD], RECOVERED_BYTES)
            for row, outcome in zip(rows, outcomes, strict=False):
                pending = lanes_of[row] & self._lane_bits
                if isinstance(outcome, Span) and outcome.stored is not None:
                    outcome.stored.pending = pending
                    outcome.accepted_at = self._loop.time()
                    self._admission.recover(outcome)
                    continue
                for lane in self._lanes:  # it is not readable: each lane will see that and count it
                    if pending & lane.queue.bit:
                        lane.queue.recover([row])
            del rows[: len(outcomes)]
        writes = self._spool.status().writes
        log.info("spool_recovered", writes=writes, open_spans=len(lanes_of))

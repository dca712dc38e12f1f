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
from sidecar.spool.rows import Backlog
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import IntakeAccounting

# Open rows are loaded in batches of about this many bytes.
RECOVERED_BYTES = 2**20

log = structlog.get_logger()


class SpoolRecovery:
    """Hands a spool's backlog to `lanes` and `admission`; `lane_bits` has the bits of all lanes."""

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
        self._spool.on_backlog = self._backlogs.append
        await self._spool.open()
        await self.recover()
        self._spool.on_durable = self._wake_lanes

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
        seqs = list(lanes_of)
        while seqs:
            read, spans = await self._spool.load(seqs[:MAX_ROWS_PER_LOAD], RECOVERED_BYTES)
            del seqs[:read]
            for span in spans:
                span.lanes = lanes_of[span.seq] & self._lane_bits
                span.accepted_at = self._loop.time()
            self._admission.recover(spans)
        log.info("spool_recovered", writes=self._spool.rows, open_spans=len(lanes_of))

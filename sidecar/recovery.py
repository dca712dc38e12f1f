"""Takes over what an earlier process left in the spool, at the start or when its disk comes back.

Complete writes go to the lanes as row numbers, STARTs to the open spans without their payloads: a
large spool must not be in memory at once.
"""

import asyncio
from collections.abc import Sequence

import structlog

from sidecar.lanes import Lane
from sidecar.queue.admission import Admission
from sidecar.queue.span_queue import LOADED_AT_ONCE
from sidecar.spool.spool import Spool
from sidecar.spool.sqlite_file import Backlog
from sidecar.telemetry.accounting import IntakeAccounting

# Open rows come back in pieces of about this size.
RECOVERED_BYTES = 2**20

log = structlog.get_logger()


class SpoolRecovery:
    """Hands a spool's backlog to `lanes` and `admission`; `lane_bits` are those of all lanes."""

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
        # What a disk that was not there at the start held, once it is.
        self._late: list[Backlog] = []

    async def begin(self) -> None:
        """Open the spool and take over; raises `SpoolInUse`."""
        self._spool.on_backlog = self._late.append
        await self._spool.open()
        await self.go_on()
        self._spool.on_durable = self._wake_lanes

    async def go_on(self) -> None:
        """Take over what came to light since; called now and then."""
        while self._late:
            await self._take_over(self._late.pop())

    def _wake_lanes(self) -> None:
        for lane in self._lanes:
            lane.drain.wake()

    async def _take_over(self, backlog: Backlog) -> None:
        for lane in self._lanes:
            bit = lane.queue.bit
            lane.queue.recover(seq for seq, lanes in backlog.complete_rows if lanes & bit)
            lane.drain.wake()
        self._accounting.replayed += len(backlog.complete_rows)
        self._accounting.written += len(backlog.complete_rows)
        lanes_of = dict(backlog.open_rows)
        seqs = list(lanes_of)
        while seqs:
            looked, spans = await self._spool.load(seqs[:LOADED_AT_ONCE], RECOVERED_BYTES)
            del seqs[:looked]
            for span in spans:
                span.lanes = lanes_of[span.seq] & self._lane_bits
                span.accepted_at = self._loop.time()
            self._admission.recover(spans)
        log.info("spool_recovered", writes=self._spool.rows, open_spans=len(lanes_of))

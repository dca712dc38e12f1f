"""The end of the process: what is left is written, counted and said, in the time that there is.

The process ends within `grace_s` plus 1 s, whatever hangs (D28). Each step has a limit, and leaves
time to the steps after it. If the event loop itself hangs, the watchdog's thread calls `overdue`
instead.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from math import inf

import structlog

from sidecar.drain.lane import Lane
from sidecar.process.blocking import BlockingThread
from sidecar.process.exit_report import ExitReport
from sidecar.process.watchdog import calls
from sidecar.sinks.dead_letters import LetterWriter
from sidecar.spool.spool import Spool

# The limits of the steps: pending responses and connections; what is left to the dead letters, all
# lanes together; the exit report.
CLOSE_S, KEEP_S, REPORT_S = 1.0, 0.5, 1.0
# After the grace period: how long all steps may take, and what the earlier ones leave to the later.
END_S = 0.6
AFTER_RESPONSES_S, AFTER_SPOOL_S, AFTER_LETTERS_S = 0.5, 0.3, 0.1
MIN_STEP_S = 0.05
# When the watchdog takes over. What is left of the second is for the log.
OVERDUE_S = 0.7

log = structlog.get_logger()


class Shutdown:
    """Ends the parts in order and in time.

    `release_held` writes the STARTs that are still held. `events` returns the accounting of events.
    """

    def __init__(
        self,
        spool: Spool,
        lanes: Sequence[Lane],
        letters: LetterWriter,
        report: ExitReport,
        release_held: Callable[[], None],
        events: Callable[[], dict[str, int]],
    ) -> None:
        self._spool = spool
        self._lanes = lanes
        self._letters = letters
        self._report = report
        self._release_held = release_held
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._reporting = BlockingThread("exit report")
        files = [each.thread for lane in lanes for each in lane.files]
        self._disks = [*spool.threads, letters.thread, self._reporting, *files]
        self._grace: asyncio.Timeout | None = None
        self._end_by = inf  # loop time
        # Whoever acquires it does the books: the loop, or the watchdog's thread if that is late.
        self._books = threading.Lock()
        self._said = threading.Event()
        self._lost = 0

    def stalls(self) -> Counter[str]:
        """How many calls did not return in time, by what they were for."""
        disk = sum(each.stalls for each in self._disks)
        return Counter(disk=disk, dns=sum(each.stalls for each in self._resolvers()))

    def _resolvers(self) -> list[BlockingThread]:
        return [lane.dialer.resolver.thread for lane in self._lanes]

    async def read_report(self) -> None:
        """Read what the previous process has left for this one."""
        with suppress(OSError):
            await self._reporting.call(self._report.read, limit_s=REPORT_S)

    @asynccontextmanager
    async def grace(self) -> AsyncIterator[None]:
        """What is inside ends with a `TimeoutError` when the grace period does."""
        when = None if self._end_by == inf else self._end_by - END_S
        try:
            async with asyncio.timeout_at(when) as self._grace:
                yield
        finally:
            self._grace = None

    def limit_to(self, grace_s: float) -> None:
        """Let the grace period end in `grace_s`, if that is earlier than it would otherwise."""
        until = self._loop.time() + grace_s
        if until + END_S >= self._end_by:
            return
        self._end_by = until + END_S
        self._spool.end_at(self._end_by - AFTER_SPOOL_S)
        if self._grace is not None and not self._grace.expired():
            self._grace.reschedule(until)

    def seconds(self, limit_s: float, leave_s: float) -> float:
        """How long a step may take that leaves `leave_s` to those after it."""
        left_s = self._end_by - leave_s - self._loop.time()
        return max(MIN_STEP_S, min(limit_s, left_s))

    async def finish(self) -> bool:
        """Take the last steps, after the ports are closed; returns whether nothing was lost."""
        self._release_held()  # the grace period may have ended before that
        await self._spool.close()
        if not self._books.acquire(blocking=False):
            await self._loop.create_future()  # the watchdog does the books, and ends the process
        until = self._loop.time() + self.seconds(KEEP_S, AFTER_LETTERS_S)
        for lane in self._lanes:
            left, rows = lane.abandon()
            kept = await self._letters.keep(lane.name, left, until - self._loop.time())
            lane.ended(len(left) + rows, kept)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.seconds(CLOSE_S, 0.0)):
                for lane in self._lanes:
                    await lane.close_connections()
        lost = self._say(self._hanging())
        with suppress(OSError):
            limit_s = self.seconds(REPORT_S, 0.0)
            await self._reporting.call(self._report.write, lost, limit_s=limit_s)
        return not lost

    def overdue(self) -> bool:
        """The event loop hangs: do the books on another thread. Returns as `finish` does."""
        hanging = [*self._hanging(), f"event loop: {calls(self._loop_thread)[0]}"]
        if self._books.acquire(blocking=False):
            with suppress(Exception):  # it is made for the loop's thread
                self._release_held()
            for lane in self._lanes:
                left, rows = lane.abandon()
                lane.ended(len(left) + rows, [])
            self._say(hanging)
        elif not self._said.wait(MIN_STEP_S):  # the loop may only be slow
            self._say(hanging)
        writing = threading.Thread(target=self._report.write, args=(self._lost,), daemon=True)
        writing.start()
        writing.join(MIN_STEP_S)
        return not self._lost

    def _hanging(self) -> list[str]:
        threads = (*self._disks, *self._resolvers())
        return list(dict.fromkeys(each.name for each in threads if each.is_hanging))

    def _say(self, hanging: list[str]) -> int:
        """Write the last line of the log, once. Returns how many writes are lost.

        If the books are not finished, that is all that is neither settled nor known to be on disk.
        """
        if self._said.is_set():
            return self._lost
        totals = {lane.name: lane.totals() for lane in self._lanes}
        lost = sum(total["lost"] for total in totals.values())
        for lane in self._lanes:
            unsettled = lane.accounting.imbalance(lane.on_disk)
            lost += max(0, unsettled)
        self._lost = lost
        self._said.set()
        events = self._events()
        not_kept = sum(lane.accounting.lost["partial_success"] for lane in self._lanes)
        text = _sentence(lost, not_kept, events["received"], totals)
        fields = {"lost": lost, "events": events, "writes": totals, "text": text}
        if hanging:
            log.error("stopped", **fields, hanging=hanging)
        else:
            log.info("stopped", **fields)
        return lost


# What became of writes, besides those that were forwarded, in words.
_ENDS = {
    "not_taken": "not taken for want of room",
    "dead_lettered": "dead-lettered",
    "depth": "waiting on disk",
    "lost": "lost",
}
_AGAINST_LOSS = "raise shutdown.grace_s, or set spool.path or dead_letters.path"


def _sentence(
    lost: int, not_kept: int, received: int, totals: Mapping[str, Mapping[str, int]]
) -> str:
    """The accounting in words. `not_kept`: lost because an upstream did not keep them."""
    lanes = [
        f"{name}: {_counted(total['forwarded'], 'write')} forwarded"
        + "".join(f", {total[end]:,} {words}" for end, words in _ENDS.items() if total[end])
        for name, total in totals.items()
    ]
    were = "was" if lost == 1 else "were"
    why = [f"an upstream did not keep {not_kept:,}"] if not_kept else []
    if lost > not_kept:
        why.append(_AGAINST_LOSS)
    what = (
        f"{_counted(lost, 'write')} {were} lost ({'; '.join(why)})" if lost else "nothing was lost"
    )
    return "; ".join([f"stopped: {what}", f"{_counted(received, 'event')} received", *lanes])


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


async def until_quiet(last_event: Callable[[], float], quiet_s: float, at_most_s: float) -> None:
    """Return after `quiet_s` without an event: agents send their last ENDs after SIGTERM.

    `last_event` returns the loop time of the last one. It takes `at_most_s`, because agents that
    never stop must leave time for what they have sent.
    """
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    until = started_at + at_most_s
    while True:
        last = max(last_event(), started_at)
        left = min(last + quiet_s, until) - loop.time()
        if left <= 0:
            return
        await asyncio.sleep(left)

"""What the daemon knows about a span or a trace: the answer of `/explain`.

Combines the recent decisions, what is in memory, the spool and the dead letters. Never shows
content. What is in memory is looked up as of one moment; the disk is searched beside the event
loop, within `DISK_S`. One id at a time is explained: an answer may take a million numbers of rows.
"""

import asyncio
from asyncio import gather
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from time import monotonic
from typing import Any

from sidecar.credentials import Accounts
from sidecar.drain.lane import Lane
from sidecar.operate.decision_search import DecisionSearch
from sidecar.operate.known import Known, Spans, described, unknown
from sidecar.operate.letter_search import FoundLetter, search
from sidecar.operate.timeline import Clock, kind
from sidecar.operate.turns import Turns
from sidecar.process.blocking import BlockingThread
from sidecar.queue.admission import Admission
from sidecar.spans.heads import Wanted
from sidecar.spans.span import Key, account_of
from sidecar.spool.rows import FoundRow
from sidecar.spool.spool import Spool
from sidecar.telemetry.decisions import Decisions

# How long the spool, and the dead letters, may take, and how long others may be explained before:
# longer, because after one call that hangs, the others are not made. A client waits 10 s.
DISK_S, WAIT_S = 4.0, 5.0
ROWS_AT_ONCE = 8_192
_TRACE, _SPAN = 0, 1  # which part of a key an id is


class Explainer:
    """Explains the spans of one running sidecar; `clock` is loop time in seconds.

    `dead_letters` is the path of their file, "" for none. `recovered` tells whether lanes and open
    spans know of all that an earlier process left in the spool.
    """

    def __init__(
        self,
        decisions: Decisions,
        admission: Admission,
        lanes: Sequence[Lane],
        accounts: Accounts,
        spool: Spool,
        *,
        dead_letters: str,
        recovered: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._decisions = decisions
        self._open_spans = admission.open_spans
        self._lanes = lanes
        self._accounts = accounts
        self._spool = spool
        self._dead_letters = dead_letters
        self._recovered = recovered
        self._turn = asyncio.Lock()
        self._letters_disk = BlockingThread("search of the dead letters")
        self._clock = clock

    async def about(self, id_: str) -> dict[str, Any]:
        """What is known about the span, or about the spans of the trace, with this id.

        `{"id", "found_by", "text", "remembered", "searched", "spans", "left_off"}`, as docs/api.md
        says. Raises `TimeoutError` if others take all the time.
        """
        async with asyncio.timeout(WAIT_S):
            await self._turn.acquire()
        try:
            return await self._explained(id_)
        finally:
            self._turn.release()

    async def _explained(self, id_: str) -> dict[str, Any]:
        turns = Turns()
        search, other = (
            DecisionSearch(self._decisions, id_, self._accounts.id_of, trace=trace)
            for trace in (False, True)
        )
        await search.run(turns)
        if not search.spans:
            await other.run(turns)
        # From here to the search of the disk, all is as of one moment.
        clock = Clock(self._clock(), datetime.now(UTC))
        self._add_memory(search, _SPAN, id_)
        by_span = bool(search.spans)
        if not by_span:
            search = other
            self._add_memory(search, _TRACE, id_)
        since = search.since or self._decisions.since
        remembered = {
            "decisions": self._decisions.capacity,
            "since": clock.utc(since),
            "span_s": clock.ago(since),
            "all": self._decisions.is_complete and search.since is None,
        }
        rows = {lane.name: lane.rows_on_disk() for lane in self._lanes}
        wanted = Wanted(id_, not by_span)
        return await self._answer(wanted, search.spans, rows, remembered, clock)

    def latest(self, count: int) -> list[dict[str, Any]]:
        """The last `count` decisions about any spans, newest first."""
        clock = Clock(self._clock(), datetime.now(UTC))
        return [
            {
                "at": clock.utc(each.at),
                "id": each.id,
                "account": self._accounts.id_of(each.account) or None,
                "sink": each.sink,
                "what": each.what,
                "kind": kind(each),
                "detail": each.detail,
            }
            for each in self._decisions.latest(count)
        ]

    async def _answer(
        self,
        wanted: Wanted,
        spans: Spans,
        rows: Mapping[str, Sequence[Sequence[int]]],
        remembered: dict[str, Any],
        clock: Clock,
    ) -> dict[str, Any]:
        found, letters = await gather(self._on_disk(wanted, rows), self._letters(wanted))
        searched = {
            "memory": True,
            "spool": None if not self._spool.is_configured else found is not None,
            "dead_letters": letters[1] if self._dead_letters else None,
        }
        by_span = not wanted.or_trace
        ids = [each.id for each in found or ()] + [each.id for each in letters[0]]
        if not by_span and wanted.id in ids:
            # The id of a span is the more exact answer, even if there is a trace with it.
            by_span, spans = True, Spans()
        for row, sinks in (found or {}).items():
            if row.id == wanted.id or not by_span:
                account = self._accounts.id_of(row.account)
                spans.named(row.trace_id, row.id, account).on_disk = sinks
        for letter in letters[0]:
            if letter.id == wanted.id or not by_span:
                known = spans.named(letter.trace_id, letter.id, letter.head.account)
                told = described(letter.head, letter.kind, replayed=letter.replayed)
                known.letters.append(told)
        newest, left_off = spans.newest()
        has_spool = found is not None and self._spool.is_configured
        shown, turns = [], Turns()
        for each in newest:
            shown.append(self._shown(each, clock, has_spool=has_spool))
            await turns.next()
        return {
            "id": wanted.id,
            "found_by": None if not newest else "span" if by_span else "trace",
            "text": "" if newest else unknown(remembered, searched),
            "remembered": remembered,
            "searched": searched,
            "spans": shown,
            "left_off": left_off,
        }

    def _shown(self, known: Known, clock: Clock, *, has_spool: bool) -> dict[str, Any]:
        known.lanes = dict.fromkeys((lane.name for lane in self._lanes), None) | known.lanes
        return known.shown(clock, has_spool=has_spool)

    async def _on_disk(
        self, wanted: Wanted, rows: Mapping[str, Sequence[Sequence[int]]]
    ) -> dict[FoundRow, list[str]] | None:
        """The rows of wanted spans that only wait on disk, and for which sinks; None: unknown."""
        if not self._recovered():
            return None
        if not any(map(len, chain.from_iterable(rows.values()))):
            return {}
        try:
            async with asyncio.timeout(DISK_S):
                found = {row.seq: row for row in await self._spool.find(wanted)}
                sinks: dict[FoundRow, list[str]] = {}
                for name, parts in rows.items():
                    for seq in await _among(found, parts):
                        sinks.setdefault(found[seq], []).append(name)
                return sinks
        except OSError:  # also if there is no answer in time
            return None

    async def _letters(self, wanted: Wanted) -> tuple[list[FoundLetter], bool]:
        """The dead letters about wanted spans, and whether all of them could be read."""
        if not self._dead_letters:
            return [], True
        try:
            async with asyncio.timeout(DISK_S):
                arguments = self._dead_letters, wanted, monotonic() + DISK_S
                return await self._letters_disk.call(search, *arguments, limit_s=DISK_S)
        except OSError:  # also if there is no answer in time
            return [], False

    def _add_memory(self, search: DecisionSearch, part: int, id_: str) -> None:
        """Add the latest decisions, and what is in memory of the spans whose keys have this id."""
        search.finish()
        spans = search.spans
        keys = set[Key]().union(*(lane.about(part, id_) for lane in self._lanes))
        starts = {each.start.key: each for each in self._open_spans.about(part, id_)}
        in_memory: dict[int, Key] = {}
        for key in keys | starts.keys():
            known = spans.named(key[_TRACE], key[_SPAN], self._accounts.id_of(account_of(key)))
            in_memory[id(known)] = key
        for known in spans.newest()[0]:
            key = in_memory.get(id(known), ())
            open_span = starts.get(key)
            if open_span is not None and open_span.state is not None:
                known.start = open_span.state.value
            known.lanes = {lane.name: lane.waits_for(key) for lane in self._lanes}


async def _among(wanted: Iterable[int], rows: Sequence[Sequence[int]]) -> set[int]:
    """Those of `wanted` that are in `rows`, which may be a million."""
    wanted, found, turns = frozenset(wanted), set[int](), Turns()
    for part in rows if wanted else ():
        for at in range(0, len(part), ROWS_AT_ONCE):
            found |= wanted.intersection(part[at : at + ROWS_AT_ONCE])
            await turns.next()
    return found

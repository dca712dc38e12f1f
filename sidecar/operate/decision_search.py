"""Looks for the recent decisions about a span or a trace, in turns with the agents."""

from collections.abc import Callable

from sidecar.operate.known import Spans
from sidecar.operate.turns import Turns
from sidecar.telemetry.decisions import Decision, Decisions

# How many decisions one answer has: the newest. A span may have failed for days. And how many are
# looked at: those about spans that are left off as well.
MAX_DECISIONS, MAX_LOOKED_AT = 5_000, 50_000


class DecisionSearch:
    """The spans with decisions about the id, or the trace, `id_`; `account_id` as for lanes.

    `since` is loop time from which on all of these decisions are known; None: as far back as
    decisions go.
    """

    def __init__(
        self, decisions: Decisions, id_: str, account_id: Callable[[int], str], *, trace: bool
    ) -> None:
        self.spans = Spans()
        self.since: float | None = None
        self._decisions, self._id, self._account_id = decisions, id_, account_id
        self._trace = trace
        self._mark = decisions.recorded

    async def run(self, turns: Turns) -> None:
        """Look for those that were recorded before this began."""
        found = looked_at = 0
        last: Decision | None = None
        for piece in self._decisions.about(self._id, trace=self._trace):
            for each in piece:
                if last is not None and (found == MAX_DECISIONS or looked_at == MAX_LOOKED_AT):
                    self.since = last.at
                    return
                last, looked_at = each, looked_at + 1
                found += self.spans.decided_before(
                    each, self._account_id(each.account), self._whole
                )
            await turns.next()

    def finish(self) -> None:
        """Look for those that were recorded since: few, so this takes no turns."""
        pieces = self._decisions.about(self._id, trace=self._trace, after=self._mark)
        newer = [each for piece in pieces for each in piece]
        for each in reversed(newer):
            self.spans.decided(each, self._account_id(each.account), self._whole)

    @property
    def _whole(self) -> str:
        """The id of the spans, "" if each has its own."""
        return "" if self._trace else self._id

"""A lane: everything that serves one upstream.

Each account has a branch of its own: a queue, a drain and a credential. So a batch never has spans
of two accounts, and an upstream that refuses one account's key holds up that account only (D25).
Most lanes have one branch, because most pods have one account.

In: writes. Out: what the branches' drains do with them. The room, the metrics and the accounting
are the lane's, whatever the account.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any

from sidecar.drain.branch import Branch
from sidecar.network.dialer import Dialer
from sidecar.queue.room import Room
from sidecar.sinks.credential_file import CredentialFile
from sidecar.spans.span import Key, Span
from sidecar.telemetry.metrics import LaneMetrics
from sidecar.telemetry.outcomes import SinkState

_STATES = list(SinkState)


class Lane:
    """The lane of one upstream, which `dialer` reaches.

    `build` makes the branch of an account, given its number.
    `share` is the lane's share of memory if there is a spool: each branch gets an equal part of it.
    `one_branch`: the upstream has no accounts, so one branch serves the spans of all of them.
    """

    def __init__(
        self,
        bit: int,
        metrics: LaneMetrics,
        share: int,
        build: Callable[[int], Branch],
        *,
        credential_file: CredentialFile,
        dialer: Dialer,
        one_branch: bool = False,
    ) -> None:
        self.bit = bit
        self._share = share
        self._one_branch = one_branch
        self.has_accounts = not one_branch
        self.metrics = metrics
        self.accounting = metrics.accounting
        self._build = build
        self.credential_file = credential_file
        self.dialer = dialer
        self.files = credential_file, dialer.certificates  # read again when they change
        self._loop = asyncio.get_running_loop()
        self._running: asyncio.TaskGroup | None = None
        self._closing = False
        first = build(0)
        first.queue.share = share
        self.branches = {0: first}
        self.sink = first.sink
        self.name = first.sink.name
        self.data_follows = first.sink.data_follows
        self.room = Room(bit, self._queued, self._replaceable, self.data_follows)
        # With one branch, nothing is in between (DECISIONS.md 32); `branch` changes `ready`.
        self.put: Callable[[Span], None] = first.drain.put if one_branch else self._put
        self.ready: Sized = first.queue.ready

    def branch(self, account: int) -> Branch:
        """The branch of an account, which is made when its first request or write comes."""
        if self._one_branch:
            return self.branches[0]
        found = self.branches.get(account)
        if found is None:
            found = self.branches[account] = self._build(account)
            for each in self.branches.values():
                each.queue.share = self._share // len(self.branches)
            self.ready = _Ready(self.branches)
            if self._closing:
                found.drain.close()
            if self._running is not None:
                self._running.create_task(found.drain.run())
        return found

    def recover(self, rows: Iterable[tuple[int, int, int]]) -> None:
        """Add writes that an earlier process left on disk: (row number, lanes, account).

        `rows` is iterated over more than once.
        """
        accounts = {0} if self._one_branch else {account for _, _, account in rows}
        for account in sorted(accounts):
            self.branch(account).queue.recover(
                row
                for row, lanes, of in rows
                if lanes & self.bit and (self._one_branch or of == account)
            )

    def _put(self, span: Span) -> None:
        branch = self.branches.get(span.account) or self.branch(span.account)
        branch.drain.put(span)

    def not_taken(self, span: Span, start: Span | None) -> None:
        """Count a write that the lane has no room for. `start` is the START of an END, if known."""
        shown = start is not None and start.lanes & self.bit and self.sink.skips(start) is None
        self.metrics.not_taken(span, "end_of_open" if shown else "no_room", self._loop.time())

    def _queued(self) -> int:
        return sum([branch.queue.bytes for branch in self.branches.values()])

    def _replaceable(self, span: Span) -> int | None:
        branch = self.branches.get(0 if self._one_branch else span.account)
        return None if branch is None else branch.queue.replaceable(span)

    # Its life.
    async def run(self) -> None:
        """Forward until `close` is called and no write is left; raises only on a bug (D13)."""
        try:
            async with asyncio.TaskGroup() as self._running:
                for branch in self.branches.values():
                    self._running.create_task(branch.drain.run())
        finally:
            self._running = None  # what a slow disk yields now stays there

    @property
    def relayed(self) -> tuple[bytes, ...]:
        """The headers that an agent's request may have for this upstream, in lower case."""
        return self.branches[0].credentials.relayed

    def name_account(self, id_: str) -> None:
        """The first account has this id."""
        self.branches[0].credentials.name_account(id_)
        self.branches[0].drain.probe()

    def offer(self, headers: Mapping[bytes, bytes], account: int | None) -> None:
        """Use the credentials that came with an accepted request, if none are configured.

        `account` is the number of the request's account; None if its spans are for none.
        """
        number = 0 if self._one_branch else account
        if number is None:
            return
        branch = self.branch(number)  # its first write may still be held
        if branch.credentials.offer(headers):
            branch.drain.probe()

    def waits_for_key(self, account: int | None) -> bool:
        """Whether writes of an account, as for `offer`, wait for a key, or for a better one."""
        number = 0 if self._one_branch else account
        branch = None if number is None else self.branches.get(number)
        if branch is None or not branch.queue.depth or not branch.credentials.relayed:
            return False
        refused = branch.throttle.state is SinkState.UNAUTHORIZED
        return refused or branch.credentials.headers() is None

    async def refresh(self) -> None:
        """Read files with keys and certificates again if they have changed; call it periodically.

        The first time, it raises `CertificateError` if the certificates can't be used.
        """
        await self.credential_file.refresh()
        renewed = await self.dialer.refresh()
        for branch in self.branches.values():
            if branch.credentials.refresh() or renewed:
                branch.drain.probe()

    def wake(self) -> None:
        """Look for work: what is on disk may be sent now, or there is more of it."""
        for branch in self.branches.values():
            branch.drain.wake()

    def stopping(self) -> None:
        """No END will follow the open writes that are sent from now on."""
        for branch in self.branches.values():
            branch.sink.stopping()

    def close(self) -> None:
        """No more writes will come: forward those left without lingering, then end `run`."""
        self._closing = True
        for branch in self.branches.values():
            branch.drain.close()

    def abandon(self) -> tuple[list[Span], int]:
        """The process ends: drop what is left from memory, and return it (`SpanQueue.abandon`)."""
        spans, rows = list[Span](), 0
        for branch in self.branches.values():
            left, left_rows = branch.drain.abandon()
            spans += left
            rows += left_rows
        return spans, rows

    def ended(self, left: int, kept: Sequence[Span]) -> None:
        """Of `left` writes, those in `kept` are dead letters now, and the others lost (D29)."""
        self.metrics.kept(kept, "shutdown", self._loop.time())
        self.metrics.lost(left - len(kept), "shutdown")

    async def close_connections(self) -> None:
        """Close all connections to the upstream."""
        for branch in self.branches.values():
            await branch.sink.close()
        self.dialer.close()

    # What operators see.

    @property
    def backlog(self) -> int:
        """Writes that are waiting although the upstream is up."""
        # A list, because this runs for every request, and a generator is slower.
        return sum([branch.drain.backlog for branch in self.branches.values()])

    @property
    def depth(self) -> int:
        """Unsettled writes: waiting in memory, waiting on disk, or in flight."""
        return sum(branch.queue.depth for branch in self.branches.values())

    @property
    def in_flight(self) -> int:
        """Writes that were taken and are not settled."""
        return sum(branch.queue.in_flight for branch in self.branches.values())

    @property
    def sending(self) -> int:
        """Requests in flight."""
        return sum(branch.drain.sending for branch in self.branches.values())

    @property
    def on_disk(self) -> int:
        """Writes that wait on disk only."""
        return sum(branch.queue.on_disk for branch in self.branches.values())

    @property
    def concurrency_limit(self) -> int:
        """Requests that may be in flight."""
        return sum(branch.throttle.limit for branch in self.branches.values())

    @property
    def worst(self) -> Branch:
        """The branch in the worst state; of several, the first."""
        return max(self.branches.values(), key=lambda each: _STATES.index(each.throttle.state))

    @property
    def state(self) -> SinkState:
        """The state of the upstream, as far as its worst account sees it."""
        return self.worst.throttle.state

    @property
    def has_credential(self) -> bool:
        """Whether the credentials of all accounts are known."""
        known = (branch.credentials.headers() for branch in self.branches.values())
        return all(headers is not None for headers in known)

    def oldest(self) -> float | None:
        """Loop time at which the oldest write in memory was accepted, or None."""
        ages = (branch.queue.oldest() for branch in self.branches.values())
        return min((age for age in ages if age is not None), default=None)

    def about(self, index: int, text: str) -> set[Key]:
        """The spans with a write in memory whose key has `text` at `index`."""
        found = (branch.queue.contents.about(index, text) for branch in self.branches.values())
        return set().union(*found)

    def waits_for(self, key: Key) -> dict[str, Any] | None:
        """What the write of a span is waiting for; None if no such write is in memory."""
        waits = (branch.drain.waits_for(key) for branch in self.branches.values())
        return next((each for each in waits if each is not None), None)

    def rows_on_disk(self) -> list[Sequence[int]]:
        """The numbers of the rows that wait on disk only, those of each branch."""
        return [branch.queue.contents.rows() for branch in self.branches.values()]

    @property
    def imbalance(self) -> int:
        """Writes unaccounted for; a nonzero value is a bug."""
        return self.accounting.offer_imbalance or self.accounting.imbalance(self.depth)

    def totals(self) -> dict[str, int]:
        """The lane's accounting (D15), as `/status` and the last log line show it."""
        return self.accounting.totals(self.depth)


class _Ready(Sized):
    """The writes of all branches that a batch could take now."""

    def __init__(self, branches: Mapping[int, Branch]) -> None:
        self._branches = branches

    def __len__(self) -> int:
        """How many there are."""
        return sum(len(branch.queue.ready) for branch in self._branches.values())

"""`sidecar replay`: list dead letters, or send them again.

With `--to`, it posts each letter to a running sidecar, on the route by which it first arrived. An
event of `/v1/spans` therefore goes to every upstream again, which is safe because writes are
idempotent. Without `--to`, it builds its own lanes and sends each letter only to the upstream that
it was for. A letter from which something was hidden is sent only so: through a sidecar, it would
replace the whole span at the other upstreams.

An open write is not sent again where it might replace a finished row, because its END may have
been delivered since (docs/upstreams.md S3). It is sent only when replaying directly to Agentex,
which never replaces a row on a POST. The same is true of a supplement, which has no route.

No letter is sent under another account than its own (D25). Directly, `sgp.account_id` must be that
account, or empty; a running sidecar is told which one it must be. A letter without an account goes
where `sgp.account_id` says, or to the sidecar's only account.

What needs no further replay is marked beside the file (sinks/replayed.py), so that a sidecar which
has these dead letters no longer warns of them.

What became of the letters is counted. Sent: `accepted` by the sidecar, `forwarded` to the upstream.
Not sent on purpose: `skipped`. Anything else makes the exit code 1: `rejected` by the sidecar,
`dead_lettered` again, `left` when the time was over or the sidecar did not respond,
`other_account`, `hidden` (not sent through a sidecar), `off` (the upstream is not enabled) and
`unreadable`.
"""

import asyncio
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path

import aiohttp
import msgspec
import structlog

from sidecar.config import Config
from sidecar.credentials import Accounts
from sidecar.drain.lane import Lane
from sidecar.lanes import UPSTREAM, build_lanes
from sidecar.operate import letters
from sidecar.operate.letters import Letter
from sidecar.process.terminal import complain
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.sinks import SinkError
from sidecar.sinks.dead_letters import DeadLetters, LetterWriter
from sidecar.sinks.replayed import Place, mark
from sidecar.sinks.sgp import batch_as_sent
from sidecar.spans.decode import NOT_DECODED
from sidecar.spans.span import Lanes, Payload, Span, to_json
from sidecar.spool.spool import Spool
from sidecar.telemetry.decisions import Decisions

PER_REQUEST, MAX_BYTES = 50, 2**20
DEADLINE_S = 300.0
_BUSY = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}

log = structlog.get_logger()


class _Reply(msgspec.Struct):
    accepted: int | None = None
    detail: list[msgspec.Raw] | str = ""


_REPLY = msgspec.json.Decoder(_Reply)


async def through(path: str, sink: str | None, to: str) -> Counter[str]:
    """Send the letters through the sidecar whose listener is at `to`; count the outcomes."""
    done: Counter[str] = Counter()
    groups: defaultdict[tuple[int, str], list[Letter]] = defaultdict(list)
    settled: list[Place] = []
    for letter in letters.read(path, sink, done):
        span = letter.span
        if span.end_time is None:
            done["skipped"] += 1
            settled.append(letter.place)
        elif letter.head.hidden:
            done["hidden"] += 1
        else:
            route = 0 if span.sdk is None else span.sdk.api
            groups[route, letter.head.account].append(letter)
            done["left"] += 1
    refused: Counter[int] = Counter()
    try:
        # No proxy: the sidecar is in the same pod, at a Service, or behind a port forward.
        async with aiohttp.ClientSession(trust_env=False) as session:
            for (route, account), found in groups.items():
                for batch in _batches(found, 1 if route == Lanes.AGENTEX else PER_REQUEST):
                    spans = [letter.span for letter in batch]
                    async with asyncio.timeout(DEADLINE_S):
                        status, accepted = await _post(session, to, route, account, spans)
                    if accepted == len(batch):  # or else it is not known which were
                        settled += [letter.place for letter in batch]
                    outcome = "other_account" if status == HTTPStatus.CONFLICT else "rejected"
                    done["left"] -= len(batch)
                    done["accepted"] += accepted
                    done[outcome] += len(batch) - accepted
                    refused[status] += len(batch) - accepted
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        complain(f"{to}: {str(error) or type(error).__name__}")
    for status, count in sorted((+refused).items()):
        complain(f"{to}: HTTP {status} for {count} letters")
    _mark(path, settled)
    return done


def _mark(path: str, settled: Sequence[Place]) -> None:
    """Mark letters that need no further replay."""
    try:
        if settled:
            mark(Path(path), settled)
    except OSError as error:
        complain(f"{path}: what was replayed can't be marked: {error.strerror}")


def _batches(found: Sequence[Letter], max_spans: int) -> Iterator[list[Letter]]:
    """Split `found` into requests of at most `max_spans`, and `MAX_BYTES` unless one is larger."""
    batch: list[Letter] = []
    size = 0
    for letter in found:
        if batch and (len(batch) == max_spans or size + letter.span.size > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(letter)
        size += letter.span.size
    if batch:
        yield batch


def _request(route: int, spans: Sequence[Span]) -> tuple[str, str, bytes]:
    """Return method, path and body for the route that `spans` arrived on."""
    if route == Lanes.AGENTEX:
        return "POST", "/spans", to_json(spans[0])
    if route == Lanes.SGP:
        return "PUT", "/v5/spans/batch", batch_as_sent(spans)
    events = (b'{"event_type":"end","span":%b}' % to_json(span) for span in spans)
    return "POST", "/v1/spans", b"[%b]" % b",".join(events)


async def _post(
    session: aiohttp.ClientSession, to: str, route: int, account: str, spans: Sequence[Span]
) -> tuple[int, int]:
    """Send `spans` to their route at `to`; returns the status, and how many were accepted."""
    method, path, body = _request(route, spans)
    url = to.rstrip("/") + path
    headers = {"Content-Type": "application/json"}
    if account:
        # Use this account, and refuse the request if the spans would go out under another one.
        headers |= {"x-selected-account-id": account, "x-trace-sidecar-account": account}
    while True:
        async with session.request(method, url, data=body, headers=headers) as response:
            status = response.status
            if status in _BUSY:
                await asyncio.sleep(float(response.headers.get("Retry-After", "1")))
                continue
            try:
                reply = _REPLY.decode(await response.read())
            except NOT_DECODED:
                raise ValueError(f"HTTP {status} without JSON") from None
        if status == HTTPStatus.OK:
            return status, len(spans)
        # At SGP's route, `detail` lists the items that are bad.
        good = len(spans) - len(reply.detail) if isinstance(reply.detail, list) else 0
        return status, good if reply.accepted is None else reply.accepted


async def directly(
    path: str, sink: str | None, config: Config, environ: Mapping[str, str]
) -> Counter[str]:
    """Send each letter to the upstream that it was for, and count the outcomes.

    A letter that is refused again becomes a new dead letter, as `config.dead_letters` says.
    """
    done: Counter[str] = Counter()
    configured = config.sgp.account_id
    accounts = Accounts(configured, by_request=config.sgp.relay)
    found = list(letters.read(path, sink, done, accounts.number_of))
    again = DeadLetters.configured(config, accounts.id_of)
    budget = MemoryBudget(sys.maxsize)  # all letters are in memory anyway
    writer = _Again(again, {id(letter.span): letter.head.hidden for letter in found})
    built = build_lanes(config, environ, budget, writer, Spool(), Decisions(), accounts)
    lanes = {lane.name: lane for lane in built}
    for each in built:
        await each.refresh()
        each.stopping()  # no END follows a START: what it says is in its letter
    now = asyncio.get_running_loop().time()
    places: dict[int, Place] = {}  # by the identity of the span
    for head, span, place in found:
        lane = lanes.get(head.sink)
        if lane is None:
            done["off"] += 1
        elif UPSTREAM[head.sink].by_account and not _is_ours(head.account, configured):
            done["other_account"] += 1
        elif span.end_time is None and not UPSTREAM[head.sink].keeps_rows:
            done["skipped"] += 1
            places[id(span)] = place
        else:
            span.accepted_at = now
            places[id(span)] = place
            lane.put(span)
    await _drain(built)
    # What was refused again is a new letter, if that could be written.
    again_too = [] if again.written == len(writer.refused) else writer.refused
    for lane in built:
        totals = lane.totals()
        left, _ = lane.abandon()
        for span in left:
            places.pop(id(span), None)
        done["dead_lettered"] += totals["dead_lettered"]
        done["forwarded"] += totals["forwarded"] + totals["superseded"]
        done["skipped"] += totals["skipped"]
        done["left"] += totals["depth"]
        await lane.close_connections()
    for span in again_too:
        places.pop(id(span), None)
    _mark(path, list(places.values()))
    return done


class _Again(LetterWriter):
    """Remembers what was refused again.

    `hidden`: the payloads that are not in a letter, by the identity of its span.
    """

    def __init__(self, letters: DeadLetters, hidden: Mapping[int, Sequence[Payload]]) -> None:
        super().__init__(letters)
        self.refused: list[Span] = []
        self._hidden = hidden

    def lacks(self, span: Span) -> Sequence[Payload]:
        """What its letter lacked."""
        return self._hidden[id(span)]

    async def add(self, sink: str, span: Span, reason: str, error: SinkError) -> None:
        """`LetterWriter.add`."""
        self.refused.append(span)
        await super().add(sink, span, reason, error)


def _is_ours(account: str, configured: str) -> bool:
    """Whether a letter may be sent; if no account is configured, only under its own."""
    return account in {"", configured} if configured else bool(account)


async def _drain(lanes: Sequence[Lane]) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            for lane in lanes:
                tasks.create_task(lane.run())
                lane.close()
    except TimeoutError:
        log.warning("replay_gave_up", after_s=DEADLINE_S)

"""`sidecar replay`: list dead letters, or send them again.

With `--to`, it posts each letter to a running sidecar, on the route by which it first arrived. An
event of `/v1/spans` therefore goes to every upstream again, which is safe because writes are
idempotent. Without `--to`, it builds its own lanes and sends each letter only to the upstream that
refused it.

An open write is not sent again where it might replace a finished row, because its END may have
been delivered since (docs/upstreams.md S3). It is sent only when replaying directly to Agentex,
which never replaces a row on a POST.
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

from sidecar.config import Config, ConfigError
from sidecar.lanes import Lane, build_lanes
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.sinks.dead_letters import DeadLetter, DeadLetters
from sidecar.sinks.sgp import batch_as_sent
from sidecar.spans.span import Lanes, Span, from_row, to_json
from sidecar.spool.spool import Spool
from sidecar.telemetry.recent import Recent

PER_REQUEST, MAX_BYTES = 50, 2**20
DEADLINE_S = 300.0
_BUSY = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}

log = structlog.get_logger()


class _Id(msgspec.Struct):
    id: str


class _Event(msgspec.Struct):
    event_type: str
    span: msgspec.Raw


_LETTER = msgspec.json.Decoder(DeadLetter)
_EVENT = msgspec.json.Decoder(_Event)
_ID = msgspec.json.Decoder(_Id)


def _letters(path: str, sink: str | None) -> Iterator[DeadLetter]:
    """Yield the letters of one sink or of all; raises ConfigError when the file can't be used."""
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    letter = _LETTER.decode(line)
                except msgspec.MsgspecError:
                    raise ConfigError(f"{path}:{number}: not a dead letter") from None
                if sink in {None, letter.sink}:
                    yield letter
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def listing(path: str, sink: str | None) -> Iterator[str]:
    """Yield one line per letter, oldest first: what, where and why, never the content.

    `sink` selects the letters of one sink. Raises ConfigError when the file can't be used.
    """
    for letter in _letters(path, sink):
        event = _EVENT.decode(letter.event)
        yield (
            f"{letter.time}  {letter.sink:8} {letter.reason:10} {letter.status or '-':>4}  "
            f"{event.event_type:5}  {_ID.decode(event.span).id}"
        )


async def through(path: str, sink: str | None, to: str) -> Counter[str]:
    """Send the letters through the sidecar whose listener is at `to`; count the outcomes."""
    done: Counter[str] = Counter()
    by_route: defaultdict[int, list[Span]] = defaultdict(list)
    for letter in _letters(path, sink):
        span = _span(letter)
        if span is None or span.end_time is None:
            done["rejected" if span is None else "skipped"] += 1
        else:
            by_route[0 if span.sdk is None else span.sdk.lane].append(span)
    async with aiohttp.ClientSession(to.rstrip("/")) as session:
        for route, spans in by_route.items():
            for batch in _batches(spans, 1 if route == Lanes.AGENTEX else PER_REQUEST):
                async with asyncio.timeout(DEADLINE_S):
                    accepted = await _post(session, route, batch)
                done["accepted"] += accepted
                done["rejected"] += len(batch) - accepted
    return done


def _batches(spans: Sequence[Span], max_spans: int) -> Iterator[list[Span]]:
    """Split `spans` into requests of at most `max_spans`, and `MAX_BYTES` unless one is larger."""
    batch: list[Span] = []
    size = 0
    for span in spans:
        if batch and (len(batch) == max_spans or size + span.size > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(span)
        size += span.size
    if batch:
        yield batch


def _span(letter: DeadLetter) -> Span | None:
    """Return the write of a letter; None when it can't be decoded."""
    try:
        return from_row(bytes(_EVENT.decode(letter.event).span), 0.0)
    except msgspec.MsgspecError:
        return None


def _request(route: int, spans: Sequence[Span]) -> tuple[str, str, bytes]:
    """Return method, path and body for the route that `spans` arrived on."""
    if route == Lanes.AGENTEX:
        return "POST", "/spans", to_json(spans[0])
    if route == Lanes.SGP:
        return "PUT", "/v5/spans/batch", batch_as_sent(spans)
    events = (b'{"event_type":"end","span":%b}' % to_json(span) for span in spans)
    return "POST", "/v1/spans", b"[%b]" % b",".join(events)


async def _post(session: aiohttp.ClientSession, route: int, spans: Sequence[Span]) -> int:
    """Send `spans` to their route, and return how many were accepted."""
    method, path, body = _request(route, spans)
    headers = {"Content-Type": "application/json"}
    while True:
        try:
            async with session.request(method, path, data=body, headers=headers) as response:
                if response.status in _BUSY:
                    await asyncio.sleep(float(response.headers.get("Retry-After", "1")))
                    continue
                result = await response.json()
                if response.status == HTTPStatus.OK:
                    return len(spans)
                if "accepted" in result:
                    return int(result["accepted"])
                if response.status == HTTPStatus.UNPROCESSABLE_ENTITY:
                    return len(spans) - len(result.get("detail", spans))
                raise ConfigError(f"{path}: HTTP {response.status}")
        except aiohttp.ClientError as error:
            raise ConfigError(f"{path}: {type(error).__name__}") from None


async def directly(
    path: str, sink: str | None, config: Config, environ: Mapping[str, str]
) -> Counter[str]:
    """Send each letter to the upstream that refused it, and count the outcomes.

    A letter that is refused again becomes a new dead letter, as `config.dead_letters` says.
    """
    letters = list(_letters(path, sink))
    again = DeadLetters(config.dead_letters.path, config.dead_letters.max_bytes)
    budget = MemoryBudget(sys.maxsize)  # all letters are in memory anyway
    built = build_lanes(config, environ, budget, again, Spool(), Recent())
    lanes = {lane.sink.name: lane for lane in built}
    for each in built:
        each.sink.stopping()  # no END follows a START: what it says is in its letter
    now = asyncio.get_running_loop().time()
    done: Counter[str] = Counter()
    for letter in letters:
        span = _span(letter)
        lane = lanes.get(letter.sink)
        if lane is None or span is None:
            done["off" if lane is None else "rejected"] += 1
        elif span.end_time is None and letter.sink != "agentex":
            done["skipped"] += 1
        else:
            span.accepted_at = now
            lane.drain.put(span)
    await _drain(built)
    for lane in built:
        totals = lane.totals()
        done["dead_lettered"] += totals["dead_lettered"]
        done["forwarded"] += totals["forwarded"] + totals["superseded"] + totals["skipped"]
        done["left"] += lane.drain.abandon()
        await lane.sink.close()
    return done


async def _drain(lanes: Sequence[Lane]) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            for lane in lanes:
                tasks.create_task(lane.drain.run())
                lane.drain.close()
    except TimeoutError:
        log.warning("replay_gave_up", after_s=DEADLINE_S)

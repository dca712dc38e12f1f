"""Dead letters again: list them, or send them once more.

Sent through a running sidecar (`to`: its listener's URL; every upstream gets them, and writes are
idempotent), or by a sidecar of its own for the time it takes, where each letter goes to the
upstream that refused it and nowhere else.

An open write is not sent again where it might replace a finished row, because its END may have got
through since (contracts/sgp.md 3): only Agentex, which never replaces on a POST, gets those.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import aiohttp
import msgspec
import structlog

from sidecar.budget import ByteBudget
from sidecar.config import Config, ConfigError
from sidecar.dead_letters import DeadLetters, Head, Letter
from sidecar.events import decode
from sidecar.lane import Lane, build_lanes

PER_REQUEST = 50
DEADLINE_S = 300.0

log = structlog.get_logger()


class _Id(msgspec.Struct):
    id: str


class _Event(msgspec.Struct):
    event_type: str
    span: _Id


class _LetterId(msgspec.Struct):
    event: _Event


_HEAD = msgspec.json.Decoder(Head)
_LETTER = msgspec.json.Decoder(Letter)
_IDS = msgspec.json.Decoder(_LetterId)


def _lines(path: str) -> Iterator[bytes]:
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    _HEAD.decode(line)
                except msgspec.MsgspecError:
                    raise ConfigError(f"{path}:{number}: not a dead letter") from None
                yield line
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def listing(path: str, sink: str | None) -> Iterator[str]:
    """A line for each letter, oldest first: what, where, why; never the content."""
    for line in _lines(path):
        head, event = _HEAD.decode(line), _IDS.decode(line).event
        if sink in {None, head.sink}:
            yield (
                f"{head.time}  {head.sink:8} {head.reason:10} {head.status or '-':>4}  "
                f"{event.event_type:5}  {event.span.id}"
            )


async def through(path: str, sink: str | None, to: str) -> Counter[str]:
    """Send the letters through the running sidecar at `to`; what became of them."""
    done: Counter[str] = Counter()
    events = []
    for line in _chosen(path, sink):
        if _is_open(line):
            done["skipped"] += 1
        else:
            events.append(bytes(_LETTER.decode(line).event))
    async with aiohttp.ClientSession() as session:
        for start in range(0, len(events), PER_REQUEST):
            some = events[start : start + PER_REQUEST]
            body = b"\n".join(some)
            async with asyncio.timeout(DEADLINE_S):
                accepted = await _post(session, f"{to.rstrip('/')}/v1/spans", body)
            done["accepted"] += accepted
            done["rejected"] += len(some) - accepted
    return done


async def _post(session: aiohttp.ClientSession, url: str, body: bytes) -> int:
    headers = {"Content-Type": "application/x-ndjson"}
    while True:
        try:
            async with session.post(url, data=body, headers=headers) as response:
                if response.status in {202, 400}:
                    return int((await response.json())["accepted"])
                if response.status not in {429, 503}:
                    raise ConfigError(f"{url}: HTTP {response.status}")
                await asyncio.sleep(float(response.headers.get("Retry-After", "1")))
        except aiohttp.ClientError as error:
            raise ConfigError(f"{url}: {type(error).__name__}") from None


def _chosen(path: str, sink: str | None) -> list[bytes]:
    return [line for line in _lines(path) if sink in {None, _HEAD.decode(line).sink}]


async def directly(
    path: str, sink: str | None, config: Config, environ: Mapping[str, str]
) -> Counter[str]:
    """Send each letter to the upstream that refused it; what became of them.

    What is refused again is kept as `config.dead_letters` says.
    """
    lines = _chosen(path, sink)
    size = sum(map(len, lines))
    letters = DeadLetters(config.dead_letters.path, config.dead_letters.max_bytes)
    lanes = {
        lane.sink.name: lane for lane in build_lanes(config, environ, ByteBudget(2 * size), letters)
    }
    now = asyncio.get_running_loop().time()
    done: Counter[str] = Counter()
    for line in lines:
        letter = _LETTER.decode(line)
        spans = decode(bytes(letter.event), now).spans
        lane = lanes.get(letter.sink)
        if lane is None or not spans:
            done["off" if lane is None else "rejected"] += 1
        elif _is_open(line) and letter.sink != "agentex":
            done["skipped"] += 1
        else:
            for span in spans:
                lane.drain.put(span)
    await _drain(list(lanes.values()))
    for lane in lanes.values():
        totals = lane.totals()
        done["dead_lettered"] += totals["dead_lettered"]
        done["forwarded"] += totals["forwarded"] + totals["superseded"] + totals["skipped"]
        done["left"] += lane.drain.abandon()
        await lane.sink.close()
    return done


def _is_open(line: bytes) -> bool:
    return _IDS.decode(line).event.event_type == "start"


async def _drain(lanes: Sequence[Lane]) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            for lane in lanes:
                tasks.create_task(lane.drain.run())
                lane.drain.close()
    except TimeoutError:
        log.warning("replay_gave_up", after_s=DEADLINE_S)

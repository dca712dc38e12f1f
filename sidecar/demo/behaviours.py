"""The scripted behaviors of a stand-in, its record of a request, and how it responds."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Never, TypeAlias

from aiohttp import web

JSON = "application/json"
_RST_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """Respond with this, without applying the request. `closes`: then close without warning."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    closes: bool = False


@dataclass(frozen=True, slots=True)
class ApplyThen:
    """Apply the request, but respond with this."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Hang:
    """Never respond, and don't apply the request."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Reset the connection without a response, before or after applying the request."""

    after_apply: bool = False


@dataclass(frozen=True, slots=True)
class ResetMidBody:
    """Apply the request, begin the response, and close the connection inside its body."""


@dataclass(frozen=True, slots=True)
class Raw:
    """Apply the request, send these bytes as the response, and close, or with `hangs` don't."""

    data: bytes
    hangs: bool = False


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait, then do `then`, or respond normally."""

    seconds: float
    then: "Scripted" = None


@dataclass(frozen=True, slots=True)
class Gate:
    """Wait for the event, then do `then`, or respond normally."""

    event: asyncio.Event
    then: "Scripted" = None


Behaviour: TypeAlias = Answer | ApplyThen | Hang | Reset | ResetMidBody | Raw | Delay | Gate
# What a script or a rule can hold: a number is short for Answer(number); with None, the request
# gets its normal response.
Scripted: TypeAlias = Behaviour | int | None


@dataclass(slots=True)
class Recorded:
    """A complete request. `path` is as sent: percent-encoded, without the query."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]  # case-insensitive
    body: bytes
    at: float  # loop time
    status: int | None = None  # of the response; None until it is sent
    ended: float | None = None  # loop time: responded, reset, or the client gave up


Rule: TypeAlias = Callable[[Recorded], Scripted]


class Refusal(Exception):
    """Ends `reply` early, with this response."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Outcome(NamedTuple):
    """How a request ends: with `raw`, an answer, or a reset. `cut`: close inside the body."""

    answer: Answer | None
    cut: bool = False
    raw: Raw | None = None


def behaviour_of(scripted: Scripted) -> Behaviour | None:
    """Expand a number to the Answer it is short for."""
    return Answer(scripted) if isinstance(scripted, int) else scripted


async def forever() -> Never:
    """Wait until cancelled."""
    while True:
        await asyncio.get_running_loop().create_future()


async def send(
    request: web.BaseRequest, recorded: Recorded, outcome: Outcome
) -> web.StreamResponse:
    """Send the outcome; aiohttp finishes the response that is returned."""
    answer, transport = outcome.answer, request.transport
    if outcome.raw is not None and transport is not None:
        transport.write(outcome.raw.data)
        if not outcome.raw.hangs:
            transport.close()
        await forever()
    if answer is None:
        reset(transport)
        await forever()  # aiohttp cancels this handler when the connection is lost
    recorded.status = answer.status
    headers = {"Content-Type": JSON, **answer.headers}
    if not (answer.closes or outcome.cut):
        return web.Response(status=answer.status, body=answer.body, headers=headers)
    response = web.StreamResponse(status=answer.status, headers=headers)
    response.content_length = len(answer.body)
    await response.prepare(request)
    await response.write(answer.body[: len(answer.body) // 2] if outcome.cut else answer.body)
    if not outcome.cut:
        await response.write_eof()
    if transport is not None:
        transport.close()
    if outcome.cut:
        await forever()
    return response


def reset(transport: asyncio.Transport | None) -> None:
    """Close the connection with an RST, as a killed server does."""
    if transport is not None and not transport.is_closing():
        with contextlib.suppress(OSError):
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE
            )
        transport.abort()

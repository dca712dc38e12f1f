"""The requests that bring spans: our own, and those that the SDKs make anyway.

A route knows how one kind of request is read and answered (docs/api.md); reading the body,
room, the spool and the books are the same for all, in the listener and behind it.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple, Protocol

import msgspec

from sidecar.listener.body import Refusal
from sidecar.spans.decode import Decoded, MalformedBody
from sidecar.spans.raw_json import is_utf8, replace_lone_surrogates

RETRY_AFTER_S = "1"


class Request(NamedTuple):
    """What the head of a request says.

    `path` is as it came, percent-encoded, without a query; `media_type` without its parameters.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    media_type: str


class Answer(NamedTuple):
    """A status and a body."""

    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"


class Route(Protocol):
    """One kind of request."""

    def check(self, request: Request) -> None:
        """Raise `Refusal` for what its head says already."""
        ...

    def decode(self, request: Request, body: bytes, now: float) -> Decoded:
        """The spans of `body`; raises `MalformedBody`. `now` is loop time in seconds."""
        ...

    def answer(self, request: Request, decoded: Decoded) -> Answer:
        """What is said once the spans are taken."""
        ...

    def refused(self, refusal: Refusal) -> bytes:
        """The body of the answer to a request that was not taken."""
        ...


def retry_after(status: HTTPStatus) -> dict[str, str]:
    """The header of an answer that asks to come again (docs/api.md)."""
    later = status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
    return {"Retry-After": RETRY_AFTER_S} if later else {}


def sound(body: bytes) -> bytes:
    """The body of an SDK as it can be forwarded: UTF-8, and no lone surrogate (D18)."""
    if not is_utf8(body):
        msg = "the body is not valid UTF-8"
        raise MalformedBody(msg)
    return replace_lone_surrogates(body)


def detail(refusal: Refusal) -> bytes:
    """An error as both upstreams' servers say one (docs/upstreams.md A1, S1.5)."""
    return msgspec.json.encode({"detail": str(refusal)})

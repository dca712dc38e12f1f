"""The routes that take spans: the sidecar's own, and those of the SDKs.

A route decodes one kind of request and formats its responses (docs/api.md). Everything
else is the same for every route: reading the body, admission, the spool and the accounting.
"""

from http import HTTPStatus
from typing import Protocol

import msgspec

from sidecar.http.messages import Fields, Request, Response
from sidecar.listener.refusals import Refusal
from sidecar.spans.decode import Decoded, MalformedBody
from sidecar.spans.raw_json import is_utf8, replace_lone_surrogates

JSON = "application/json"
_RETRY_AFTER: Fields = (("Retry-After", "1"),)


class Route(Protocol):
    """One kind of request."""

    def check(self, request: Request) -> None:
        """Raise `Refusal` if the head alone rules the request out."""
        ...

    def decode(self, request: Request, body: bytes, now: float) -> Decoded:
        """The spans of `body`; raises `MalformedBody`. `now` is loop time in seconds."""
        ...

    def respond(self, request: Request, decoded: Decoded) -> Response:
        """The response once the valid spans are accepted."""
        ...

    def refusal_body(self, refusal: Refusal) -> bytes:
        """The body of the response to a request that was refused."""
        ...


def retry_after(status: HTTPStatus) -> Fields:
    """The `Retry-After` header, for a status that asks the client to retry (docs/api.md)."""
    retry = status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
    return _RETRY_AFTER if retry else ()


def forwardable(body: bytes) -> bytes:
    """An SDK's body in a form that can be forwarded: UTF-8 without lone surrogates (D18).

    Raises `MalformedBody` if it is not UTF-8.
    """
    if not is_utf8(body):
        msg = "the body is not valid UTF-8"
        raise MalformedBody(msg)
    return replace_lone_surrogates(body)


def detail(refusal: Refusal) -> bytes:
    """An error body in the format of both upstreams' servers (docs/upstreams.md A1, S1.5)."""
    return msgspec.json.encode({"detail": str(refusal)})

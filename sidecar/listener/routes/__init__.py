"""The routes that take spans: the sidecar's own, and those of the SDKs.

A route decodes one kind of request and formats its responses (docs/api.md). Everything
else is the same for every route: reading the body, admission, the spool and the accounting.
"""

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import ClassVar, Protocol, TypeVar

import msgspec

from sidecar.http.messages import Fields, Request, Response
from sidecar.listener.refusals import Refusal, media_type, no_upstream, unsupported_type
from sidecar.spans.decode import NOT_DECODED, Decoded, MalformedBody, Rejection, located
from sidecar.spans.raw_json import is_utf8, replace_lone_surrogates
from sidecar.spans.validation import FieldError

T = TypeVar("T")

NOBODY: Mapping[str, int] = MappingProxyType({})

JSON = "application/json"
RETRY_AFTER: Fields = (("Retry-After", "1"),)
# The SDKs' HTTP clients would send the request twice more; settings change with a restart only.
NO_RETRY: Fields = (("X-Should-Retry", "false"),)


class Route(Protocol):
    """One kind of request. A refusal's text is in its response's body, under `error_key`."""

    error_key: str

    @property
    def has_accounts(self) -> bool:
        """Whether the spans belong to the account that the request names (D25)."""
        ...

    def check(self, request: Request) -> None:
        """Raise `Refusal` if the head alone rules the request out."""
        ...

    def decode(self, request: Request, body: bytes, now: float, account: int = 0) -> Decoded:
        """The spans of `body`; raises `MalformedBody`.

        `now` is loop time in seconds, `account` the number of the account that they belong to.
        """
        ...

    def respond(
        self, request: Request, decoded: Decoded, not_taken_for: Mapping[str, int] = NOBODY
    ) -> Response:
        """The response once the valid spans are accepted.

        `not_taken_for`: how many of them each lane that is full did not take, by its name.
        """
        ...


class SdkRoute:
    """What the routes of both SDKs share. `missing`: what their upstream needs to be enabled."""

    has_accounts: ClassVar[bool]
    error_key = "detail"  # as both upstreams' servers have it (docs/upstreams.md A1, S1.5)

    def __init__(self, missing: str = "") -> None:
        self._missing = missing

    def check(self, request: Request) -> None:
        """Refuse any media type but JSON, and every request if the upstream is not enabled."""
        if self._missing:
            raise no_upstream(self._missing)
        if media_type(request) != JSON:
            raise unsupported_type(request, JSON)


def decoded_body(decoder: msgspec.json.Decoder[T], body: bytes, shape: str = "") -> T:
    """An SDK's body, decoded; lone surrogates are replaced (D18).

    Raises `MalformedBody`. `shape` is its text if the body is JSON, but not of the right form.
    """
    if not is_utf8(body):
        raise MalformedBody("the body is not valid UTF-8")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        problem, path = located(error)
        raise MalformedBody(shape or f"{f'body.{path}' if path else 'body'}: {problem}") from None
    except NOT_DECODED:
        repaired = replace_lone_surrogates(body)
        if repaired == body:
            what = "not JSON, or nested too deeply" if body.strip() else "empty"
            raise MalformedBody(f"the body is {what}") from None
    return decoded_body(decoder, repaired, shape)


def rejection(position: int, id_: str | None, error: FieldError) -> Rejection:
    """The rejection of an SDK's span with an invalid field."""
    return Rejection(position, id_, error.problem, "invalid", error.field, error.identity)


def refused(refusal: Refusal, error_key: str) -> Response:
    """The response to a refused request; its headers say whether to retry (docs/api.md)."""
    body = msgspec.json.encode({error_key: str(refusal)})
    headers: Fields = ()
    if refusal.reason == "no_upstream":
        headers = NO_RETRY
    elif refusal.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        headers = RETRY_AFTER
    return Response(refusal.status, body, JSON, headers)

"""Limits on request bodies, and the refusals that every kind of request can receive.

Bytes count against the memory budget as they arrive, so even a large number of slow requests can't
hold more than `queue.max_bytes`. Each route formats a `Refusal` as a response body in its own way.
"""

from http import HTTPStatus
from typing import NamedTuple

from sidecar.credentials import (
    ONLY_ACCOUNT_HEADER,
    AccountRefused,
    AnotherAccount,
    TooManyAccounts,
)
from sidecar.http.messages import Request
from sidecar.queue.memory_budget import MemoryBudget


class Refusal(Exception):
    """The response has `status` and an error text, and none of the events are accepted.

    `reason` is one of `telemetry.outcomes.REJECT_REASONS`, and is counted; or `not_ours` (no events
    were in the request) or `upstream` (a request that was passed through), which are not.
    """

    def __init__(self, status: HTTPStatus, error: str, reason: str) -> None:
        super().__init__(error)
        self.status = status
        self.reason = reason


class Limits(NamedTuple):
    """The port's limits.

    The memory budget, the maximum size of a decompressed body, the seconds in which it must arrive,
    and the number of connections.
    """

    budget: MemoryBudget
    max_body: int
    timeout_s: float
    connections: int


def media_type(request: Request) -> str:
    """The content type without parameters, in lower case."""
    return request.header(b"content-type").partition(";")[0].strip().lower()


def unsupported_type(request: Request, allowed: str) -> Refusal:
    """The body is of a type that the route does not read; `allowed` names those that it does."""
    sent = "is another one" if request.header(b"content-type") else "is missing"
    error = (
        f"Content-Type must be {allowed}, and it {sent}: send the header "
        '"Content-Type: application/json" (with curl: -H)'
    )
    return Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error, "unsupported")


def too_large(max_body: int) -> Refusal:
    """The decompressed body is larger than `max_body`."""
    error = (
        f"the body, decompressed, is larger than listener.max_body ({max_body}): "
        "send fewer events per request"
    )
    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error, "too_large")


def ended_early() -> Refusal:
    """The connection ended before the body was complete."""
    error = "the connection ended before the body was complete: send the request again"
    return Refusal(HTTPStatus.BAD_REQUEST, error, "malformed")


def of_account(error: AccountRefused) -> Refusal:
    """The spans can't go out under the account of the request (D25)."""
    text = f"{error}; nothing was accepted"
    status = HTTPStatus.BAD_REQUEST
    if isinstance(error, AnotherAccount):
        status = HTTPStatus.CONFLICT
        text = f"{ONLY_ACCOUNT_HEADER}: {text}: send the spans to a sidecar of that account"
    elif isinstance(error, TooManyAccounts):
        status = HTTPStatus.SERVICE_UNAVAILABLE
    return Refusal(status, text, "account")


def no_room() -> Refusal:
    """No upstream has room for the request right now; the agent can retry."""
    error = (
        "no room in memory (queue.max_bytes) or in the spool (spool.max_bytes, or its disk fails) "
        "for any upstream; none of this request's events were accepted: try again later"
    )
    return Refusal(HTTPStatus.TOO_MANY_REQUESTS, error, "no_room")


def no_upstream(missing: str) -> Refusal:
    """No upstream that is enabled takes these events; `missing`: what to set (D12)."""
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE, f"nothing was accepted: {missing}", "no_upstream"
    )


def stopping() -> Refusal:
    """The process is stopping and accepts no new events."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the sidecar is stopping", "stopping")

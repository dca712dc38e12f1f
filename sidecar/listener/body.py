"""What bodies of requests may take, and what is said when one can't be taken.

Bytes count against the memory budget while they arrive, so that many slow requests can't take more
than `queue.max_bytes` either. What can't be taken is a `Refusal`; each route says it its own way.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

from sidecar.queue.memory_budget import MemoryBudget


class Refusal(Exception):
    """The request gets `status` and an error text, and nothing of it is taken."""

    def __init__(self, status: HTTPStatus, error: str, reason: str) -> None:
        super().__init__(error)
        self.status = status
        self.reason = reason


class Limits(NamedTuple):
    """What bodies may take: room in the budget, bytes each (decompressed), seconds to arrive."""

    budget: MemoryBudget
    max_body: int
    timeout_s: float


def require_json(media_type_: str) -> None:
    """Refuse what does not say that it is JSON."""
    if media_type_ != "application/json":
        error = "Content-Type must be application/json"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error, "unsupported")


def media_type(headers: Mapping[str, str]) -> str:
    """The content type without its parameters, in lower case."""
    content_type = headers.get("Content-Type", "")
    if content_type == "application/json":
        return content_type
    return content_type.partition(";")[0].strip().lower()


def too_large(max_body: int) -> Refusal:
    """A body of more bytes than are taken at once."""
    error = f"the body is larger than listener.max_body ({max_body})"
    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error, "too_large")


def too_slow(timeout_s: float) -> Refusal:
    """A body that did not come to its end in time."""
    error = f"the body did not arrive within {timeout_s:g} s"
    return Refusal(HTTPStatus.REQUEST_TIMEOUT, error, "malformed")


def ended_early() -> Refusal:
    """A body that never comes to its end."""
    return Refusal(HTTPStatus.BAD_REQUEST, "the body ended early", "malformed")


def no_room() -> Refusal:
    """The whole request is not taken: later."""
    error = "the queue is full (queue.max_bytes); nothing of this request was taken"
    return Refusal(HTTPStatus.TOO_MANY_REQUESTS, error, "no_room")


def stopping() -> Refusal:
    """The process ends; what comes now is not taken."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the sidecar is stopping", "stopping")

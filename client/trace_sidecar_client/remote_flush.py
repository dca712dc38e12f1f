"""Waits until the sidecar has delivered what it accepted: `POST /v1/flush` (docs/api.md).

One request at a time, however many threads wait: it covers all who began to wait before it was
sent. Those who come later take turns, and so at most one more request is needed for all of them.
"""

import itertools
import threading
import time
from _thread import RLock
from http import HTTPStatus

from .notices import Notices
from .responses import Response, error_text
from .transport import Transport, Unreachable

_PATH = "/v1/flush"
_MAX_WAIT_S = 30.0
_PAUSE_S = 0.1
_MAX_MARGIN_S = 1.0


class RemoteFlush:
    """Asks one sidecar. `options` is the rest of the query, such as `&until=disk`."""

    def __init__(self, transport: Transport, notices: Notices, options: str = "") -> None:
        self._transport = transport
        self._notices = notices
        self._options = options
        self._tickets = itertools.count(1)
        self._latest = 0
        self._flushed = 0  # all tickets up to this one
        # Re-entrant, because a signal handler may flush; also, only its owner can release it.
        self._turn = RLock()

    def wait(self, deadline: float) -> bool:
        """Whether the sidecar delivered, before `deadline`, all it had accepted at the call."""
        ticket = self._latest = next(self._tickets)
        timeout_s = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        try:
            if not self._turn.acquire(timeout=timeout_s):
                return False
            return ticket <= self._flushed or self._ask(ticket, deadline)
        finally:
            # No call before `release`: each one is a chance for an interrupt.
            try:  # noqa: SIM105
                self._turn.release()
            except RuntimeError:
                pass  # never acquired

    def _ask(self, ticket: int, deadline: float) -> bool:
        while (remaining_s := deadline - time.monotonic()) > 0:
            covered = max(ticket, self._latest)
            response = self._post(remaining_s)
            if response is not None and response.status == HTTPStatus.OK:
                self._flushed = covered
                return True
            if response is not None and _is_final(response.status):
                self._explain(response)
                return False
            pause_s = max(_PAUSE_S, response.retry_after_s if response else 0.0)
            time.sleep(max(min(pause_s, deadline - time.monotonic()), 0.0))
        return False

    def _post(self, remaining_s: float) -> Response | None:
        timeout_s = min(remaining_s, _MAX_WAIT_S + _MAX_MARGIN_S)
        wait_s = timeout_s - min(timeout_s / 10, _MAX_MARGIN_S)
        try:
            return self._transport.post_apart(
                f"{_PATH}?wait_s={wait_s:.3f}{self._options}", timeout_s
            )
        except Unreachable:
            return None

    def _explain(self, response: Response) -> None:
        if response.status == HTTPStatus.NOT_FOUND:
            text = "has no /v1/flush: update it, or flush with until='accepted'"
        else:
            text = f"answers a flush with HTTP {response.status}: {error_text(response.members)}"
        self._notices.explain(f"flush {response.status}", text)


def _is_final(status: int) -> bool:
    """Whether asking again would not help: not 202 (not yet), 408, 429, nor 5xx."""
    return HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.INTERNAL_SERVER_ERROR and (
        status not in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
    )

"""Sends batches until each event is accepted or dropped: the retries, and what answers mean.

One thread at a time delivers: the sender's own, or, where there is none, one that flushes.
"""

import math
import random
import threading
import time
from _thread import RLock
from http import HTTPStatus

from .buffer import Buffer
from .interrupts import is_interrupt
from .notices import Notices
from .responses import Response, error_text, not_taken_for, rejections
from .settings import DISABLED_VARIABLE, URL_VARIABLE
from .transport import Credentials, Transport, Unreachable

BATCH_EVENTS = 256
INITIAL_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0
_MAX_EXPONENT = 10
_TURN_S = 0.05

_RETRYABLE = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
_SPLITTABLE = {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}
_NDJSON = {"Content-Type": "application/x-ndjson"}

# Not the module's generator, which an agent may have seeded to get reproducible numbers.
_jitter = random.Random()  # noqa: S311 - jitter need not be secret


class Delivery:
    """Delivers what is in `buffer` over `transport`.

    Attributes:
        sent: Events that the sidecar accepted.
        reached: Whether the sidecar has ever answered.
        thread: The thread that delivers for ever, if one does.
    """

    def __init__(
        self,
        buffer: Buffer,
        transport: Transport,
        credentials: Credentials,
        notices: Notices,
        *,
        reached: bool,
    ) -> None:
        self.sent = 0
        self.reached = reached
        self.thread: threading.Thread | None = None
        self._buffer = buffer
        self._transport = transport
        self._credentials = credentials
        self._notices = notices
        # Re-entrant, because a signal handler may flush; also, only its owner can release it.
        self._turn = RLock()

    def run(self, linger_s: float) -> None:
        """Deliver for ever. A second thread, started because of an interrupt, only waits."""
        with self._turn:
            self.thread = threading.current_thread()
            while True:
                batch: list[bytes] = []
                try:
                    batch = self._buffer.take(BATCH_EVENTS, linger_s)
                    self._deliver(batch)
                except BaseException as bug:  # noqa: BLE001 - or nothing more would be sent
                    self._drop_unsendable(batch, bug)

    def deliver_all(self, deadline: float, *, last_try: bool) -> None:
        """Deliver all events of this moment, until `deadline`, on the calling thread.

        With `last_try`, give up when the sidecar can't be reached and never was.
        """
        left = self._buffer.depth
        try:
            while not self._turn.acquire(timeout=_TURN_S):
                if self.thread is not None or time.monotonic() >= deadline:
                    return  # the thread delivers
            while left > 0 and (batch := self._buffer.peek(BATCH_EVENTS)):
                try:
                    if not self._deliver(batch, deadline, last_try=last_try):
                        return
                except Exception as bug:
                    if is_interrupt(bug):
                        raise
                    self._drop_unsendable(batch, bug)
                left -= len(batch)
        finally:
            # No call before `release`: each one is a chance for an interrupt.
            try:  # noqa: SIM105
                self._turn.release()
            except RuntimeError:
                pass  # never acquired

    def _deliver(
        self, batch: list[bytes], deadline: float = math.inf, *, last_try: bool = False
    ) -> bool:
        """Send a batch, in halves if it is too large, until every event is accepted or dropped.

        Returns False if it gave up before.
        """
        parts = [batch]
        failures = 0
        while parts:
            events = parts[-1]
            giving_up = self._buffer.on_last_try()
            response = self._post(events, deadline - time.monotonic())
            if response is None or _is_retryable(response.status):
                if not self.reached:
                    for waiter in giving_up:
                        waiter.end()
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0 or (last_try and not self.reached):
                    return False
                backoff_s = min(MAX_BACKOFF_S, INITIAL_BACKOFF_S * 2.0**failures)
                backoff_s *= _jitter.uniform(0.5, 1)
                failures = min(failures + 1, _MAX_EXPONENT)
                wait_s = max(backoff_s, response.retry_after_s if response else 0.0)
                self._buffer.back_off(min(wait_s, remaining_s))
                continue
            failures = 0
            members = response.members
            rejected = rejections(members)[: len(events)]
            if response.status in _SPLITTABLE and len(events) > 1 and not rejected:
                middle = len(events) // 2
                parts[-1:] = [events[middle:], events[:middle]]
                continue
            self._count_outcome(len(events), response, rejected)
            self._buffer.settle(parts.pop())
        return True

    def _post(self, events: list[bytes], timeout_s: float) -> Response | None:
        if timeout_s <= 0:
            return None
        headers = _NDJSON | self._credentials.headers()
        try:
            response = self._transport.post(b"\n".join(events), headers, timeout_s)
        except Unreachable as error:
            if not self.reached:
                self._notices.explain(
                    "unreachable", _unreachable_text(error, self._buffer.max_bytes)
                )
            return None
        except MemoryError:
            return None
        self.reached = True
        return response

    def _count_outcome(self, events: int, response: Response, rejected: list[str]) -> None:
        for error in rejected:
            self._notices.drop(f"rejected: {error}", 1)
        lost = max(events - len(rejected), 0)
        if response.status == HTTPStatus.ACCEPTED:
            self.sent += lost
            for upstream, count in not_taken_for(response.members).items():
                self._notices.not_taken(upstream, count)
        elif lost:
            self._notices.drop(f"HTTP {response.status}", lost)
            text = error_text(response.members) or "not what a sidecar answers; is its URL right?"
            self._notices.explain(
                f"HTTP {response.status}", f"answers HTTP {response.status}: {text}"
            )

    def _drop_unsendable(self, batch: list[bytes], bug: BaseException) -> None:
        self._notices.report(bug)
        self._notices.drop("internal error", len(batch))
        self._buffer.settle(batch)


def _is_retryable(status: int) -> bool:
    return status in _RETRYABLE or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _unreachable_text(error: Unreachable, max_bytes: int) -> str:
    return (
        f"can't be reached ({error}): spans wait in memory, up to {max_bytes >> 20} MiB; "
        f"set {URL_VARIABLE}, or {DISABLED_VARIABLE}=1"
    )

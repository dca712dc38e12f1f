"""Delivers events to the sidecar from a background thread, in batches and with retries.

In: encoded events from any thread, event loop or Temporal activity. Out: `POST /v1/spans`.

It uses a thread with blocking sockets, because that works the same under any event loop, under a
busy one, and without one. While the sidecar is unreachable, events are kept and retried. Once
`max_bytes` are held, new events are dropped, counted, and logged in at most one line a minute.
"""

import atexit
import json
import logging
import os
import random
import threading
import time
import weakref
from collections import Counter
from http import HTTPStatus
from typing import Any

from .buffer import Buffer
from .transport import DEFAULT_URL, URL_VARIABLE, Credentials, Response, Transport, Unreachable

LOG = logging.getLogger("trace_sidecar_client")

MAX_BYTES = 64 * 1024 * 1024
BATCH_BYTES = 1024 * 1024
BATCH_EVENTS = 256
LINGER_S = 0.05
REQUEST_TIMEOUT_S = 10.0
FLUSH_TIMEOUT_S = 5.0
INITIAL_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0
LOG_INTERVAL_S = 60.0
_MAX_EXPONENT = 10

_RETRYABLE = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
_SPLITTABLE = {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}
_NDJSON = {"Content-Type": "application/x-ndjson"}
_MAX_ERROR_CHARS = 200


# Not the module's generator, which an agent may have seeded to get reproducible numbers.
_jitter = random.Random()  # noqa: S311 - jitter need not be secret


class Sender:
    """Buffers events and delivers them to one sidecar. `shared_sender` returns a shared one.

    Args:
        url: The sidecar's URL. Defaults to `TRACE_SIDECAR_URL`, then `http://127.0.0.1:8318`.
        max_bytes: Limit on events queued and in flight.
        credentials: Sent with each request for the sidecar to relay. Empty ones are read from the
            environment at each request.
        linger_s: How long an event may wait for its batch to fill.
        timeout_s: Timeout of each connect, send and receive.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        credentials: Credentials | None = None,
        linger_s: float = LINGER_S,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self._url = sidecar_url(url)
        self._max_bytes = max_bytes
        self._credentials = credentials or Credentials()
        self._linger_s = linger_s
        self._timeout_s = timeout_s
        self._reset()
        _SENDERS.add(self)

    def _reset(self) -> None:
        self._transport = Transport(self._url, self._timeout_s)
        self._buffer = Buffer(self._max_bytes, BATCH_BYTES)
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()
        self._dropped: Counter[str] = Counter()
        self._unlogged: Counter[str] = Counter()
        self._logged_at = -LOG_INTERVAL_S
        self._sent = 0

    def after_fork(self) -> None:
        """Start empty in a forked child: the parent still delivers what it holds."""
        self._transport.abandon()
        _ABANDONED.append(self._transport)
        self._reset()

    @property
    def sent(self) -> int:
        """Events that the sidecar accepted."""
        return self._sent

    @property
    def dropped(self) -> dict[str, int]:
        """Events that will never be delivered, by reason."""
        return dict(self._dropped)

    @property
    def waiting_bytes(self) -> int:
        """Bytes queued and in flight."""
        return self._buffer.held_bytes

    def send(self, event: bytes) -> None:
        """Queue one event; never blocks and never raises."""
        if self._thread is None:
            self._start()
        if not self._buffer.offer(event):
            self.drop("buffer full")

    def drop(self, reason: str, count: int = 1) -> None:
        """Count events that will never be delivered; logs at most one line a minute."""
        with self._lock:
            self._dropped[reason] += count
            self._unlogged[reason] += count
            now = time.monotonic()
            if now - self._logged_at < LOG_INTERVAL_S:
                return
            self._logged_at = now
            unlogged, self._unlogged = self._unlogged, Counter()
        LOG.warning("span events dropped: %s", _format_counts(unlogged))

    def flush(self, timeout_s: float = FLUSH_TIMEOUT_S) -> bool:
        """Wait up to `timeout_s` for the buffer to empty; return whether it did."""
        return self._thread is None or self._buffer.flush(timeout_s)

    def log_undelivered(self) -> None:
        """Log, at exit, what was not delivered and what was dropped since the last line."""
        if self._buffer.depth:
            self._unlogged["not delivered at exit"] += self._buffer.depth
        if self._unlogged:
            LOG.warning("span events dropped: %s", _format_counts(self._unlogged))

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="trace-sidecar", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return  # the interpreter is shutting down; `log_undelivered` counts the event
            self._thread = thread

    def _run(self) -> None:
        while True:
            waiting = [self._buffer.take(BATCH_EVENTS, self._linger_s)]
            try:
                self._deliver(waiting)
            except Exception:
                # A bug must not end the thread, or nothing more would be sent.
                LOG.exception("unexpected error while sending span events")
                rest = [event for events in waiting for event in events]
                self.drop("internal error", len(rest))
                self._buffer.settle(rest)

    def _deliver(self, waiting: list[list[bytes]]) -> None:
        """Send a stack of batches, last one first, until every event is accepted or refused."""
        failures = 0
        while waiting:
            events = waiting[-1]
            response = self._post(events)
            if response is None or _is_retryable(response.status):
                backoff_s = min(MAX_BACKOFF_S, INITIAL_BACKOFF_S * 2.0**failures)
                backoff_s *= _jitter.uniform(0.5, 1)
                failures = min(failures + 1, _MAX_EXPONENT)
                self._buffer.back_off(max(backoff_s, response.retry_after_s if response else 0.0))
                continue
            failures = 0
            if response.status in _SPLITTABLE and len(events) > 1 and not _rejected(response):
                middle = len(events) // 2
                waiting[-1:] = [events[middle:], events[:middle]]
                continue
            self._count_outcome(len(events), response)
            self._buffer.settle(waiting.pop())

    def _post(self, events: list[bytes]) -> Response | None:
        headers = _NDJSON | self._credentials.headers()
        try:
            return self._transport.post(b"\n".join(events), headers)
        except Unreachable:
            return None

    def _count_outcome(self, events: int, response: Response) -> None:
        rejected = _rejected(response)
        for error in rejected:
            self.drop(f"rejected: {error}")
        if response.status == HTTPStatus.ACCEPTED:
            self._sent += max(events - len(rejected), 0)
        elif len(rejected) < events:
            self.drop(f"HTTP {response.status}", events - len(rejected))


def sidecar_url(url: str | None) -> str:
    """`url`, else `TRACE_SIDECAR_URL`, else the default; empty counts as unset."""
    return url or os.environ.get(URL_VARIABLE) or DEFAULT_URL


def _is_retryable(status: int) -> bool:
    return status in _RETRYABLE or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _rejected(response: Response) -> list[str]:
    """The reason for each event that the sidecar rejected; these texts contain no span content.

    What is not printable is escaped, because the agent logs them, perhaps to a terminal.
    """
    if response.status not in {HTTPStatus.ACCEPTED, HTTPStatus.BAD_REQUEST}:
        return []
    try:
        body: Any = json.loads(response.body)
        return [_visible(str(item["error"])) for item in body.get("rejected", ())]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def _visible(text: str) -> str:
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return shown[:_MAX_ERROR_CHARS]


def _format_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} ({reason})" for reason, count in counts.items())


_SENDERS: "weakref.WeakSet[Sender]" = weakref.WeakSet()
# Kept forever, so that no part of them is finalized: see `Transport.abandon`.
_ABANDONED: list[Transport] = []
_SHARED_SENDERS: dict[str, Sender] = {}


def shared_sender(url: str | None = None) -> Sender:
    """The process-wide sender to a sidecar, shared by all processors and `Spans`."""
    url = sidecar_url(url)
    return _SHARED_SENDERS.get(url) or _SHARED_SENDERS.setdefault(url, Sender(url))


def _after_fork() -> None:
    for sender in list(_SENDERS):
        sender.after_fork()


def _at_exit() -> None:
    deadline = time.monotonic() + FLUSH_TIMEOUT_S
    for sender in list(_SENDERS):
        sender.flush(max(deadline - time.monotonic(), 0.0))
        sender.log_undelivered()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)

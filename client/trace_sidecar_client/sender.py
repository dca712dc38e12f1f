"""Brings events to the sidecar from a thread of its own: small batches, retried within a bound.

In: encoded events, from any thread, any event loop, any Temporal activity. Out: `POST /v1/spans`.
A thread with blocking sockets, because it is the one thing that works alike under every loop, with
none, and while a loop is busy. While the sidecar is away it keeps what it has and tries again;
once `max_bytes` are held, the newest event is not taken, counted, and said once a minute.
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
from typing import Any

from .buffer import Buffer
from .transport import DEFAULT_URL, URL_VARIABLE, Answer, Credentials, Transport, Unreachable

LOG = logging.getLogger("trace_sidecar_client")

MAX_BYTES = 64 * 1024 * 1024
BATCH_BYTES = 1024 * 1024
BATCH_EVENTS = 256
LINGER_S = 0.05
TIMEOUT_S = 10.0
FLUSH_S = 5.0
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 5.0
LOG_EVERY_S = 60.0
_DOUBLINGS = 10

_TAKEN, _BAD, _TIMEOUT, _TOO_LARGE, _TOO_MANY, _BROKEN = 202, 400, 408, 413, 429, 500
_NDJSON = {"Content-Type": "application/x-ndjson"}
_MAX_ERROR = 200


# Our own: an agent that seeds the module's must get the numbers that it expects.
_chance = random.Random()  # noqa: S311 (no secret)


class Sender:
    """Takes events and delivers them; one for each sidecar and process is enough (`shared`).

    Args:
        url: The sidecar's address; else `TRACE_SIDECAR_URL`, else `http://127.0.0.1:8318`.
        max_bytes: The most that waits here while the sidecar is away.
        credentials: What the sidecar relays; else the environment's, read at each request.
        linger_s: How long an event may wait for others, in seconds.
        timeout_s: How long one wait for the sidecar may take, in seconds.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        credentials: Credentials | None = None,
        linger_s: float = LINGER_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._url = address(url)
        self._max_bytes = max_bytes
        self._credentials = credentials or Credentials()
        self._linger_s = linger_s
        self._timeout_s = timeout_s
        self._begin()
        _SENDERS.add(self)

    def _begin(self) -> None:
        self._transport = Transport(self._url, self._timeout_s)
        self._buffer = Buffer(self._max_bytes, BATCH_BYTES)
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()
        self._dropped: Counter[str] = Counter()
        self._unsaid: Counter[str] = Counter()
        self._said_at = -LOG_EVERY_S
        self._sent = 0

    def after_fork(self) -> None:
        """Begin anew in a child: what the parent holds is the parent's to send."""
        self._transport.abandon()
        _ABANDONED.append(self._transport)
        self._begin()

    @property
    def sent(self) -> int:
        """Events that the sidecar took."""
        return self._sent

    @property
    def dropped(self) -> dict[str, int]:
        """Events that will never arrive, by reason."""
        return dict(self._dropped)

    @property
    def waiting_bytes(self) -> int:
        """Bytes held now."""
        return self._buffer.held

    def send(self, event: bytes) -> None:
        """Take one event; never waits for the sidecar and never raises."""
        if self._thread is None:
            self._start()
        if not self._buffer.offer(event):
            self.drop("buffer full")

    def drop(self, reason: str, count: int = 1) -> None:
        """Count events that will not arrive; one log line a minute says so."""
        with self._starting:
            self._dropped[reason] += count
            self._unsaid[reason] += count
            now = time.monotonic()
            if now - self._said_at < LOG_EVERY_S:
                return
            self._said_at = now
            unsaid, self._unsaid = self._unsaid, Counter()
        LOG.warning("span events dropped: %s", _listed(unsaid))

    def flush(self, within_s: float = FLUSH_S) -> bool:
        """Wait until all is with the sidecar; whether it was, within `within_s` seconds."""
        return self._thread is None or self._buffer.hurry(within_s)

    def last_words(self) -> None:
        """Say at exit what was not delivered, and what was dropped since the last line."""
        if self._buffer.depth:
            self._unsaid["not delivered at exit"] += self._buffer.depth
        if self._unsaid:
            LOG.warning("span events dropped: %s", _listed(self._unsaid))

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="trace-sidecar", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return  # the interpreter ends: the event is counted by `last_words`
            self._thread = thread

    def _run(self) -> None:
        while True:
            waiting = [self._buffer.take(BATCH_EVENTS, self._linger_s)]
            try:
                self._deliver(waiting)
            except Exception:
                # The thread must outlive whatever this was: without it nothing is sent any more.
                LOG.exception("trace sidecar client: unexpected error")
                rest = [event for events in waiting for event in events]
                self.drop("internal error", len(rest))
                self._buffer.settle(rest)

    def _deliver(self, waiting: list[list[bytes]]) -> None:
        """Send what waits, the last first, until each event was taken or refused."""
        tries = 0
        while waiting:
            events = waiting[-1]
            answer = self._ask(events)
            if answer is None or answer.status in {_TIMEOUT, _TOO_MANY} or answer.status >= _BROKEN:
                pause = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0**tries) * _chance.uniform(0.5, 1)
                tries = min(tries + 1, _DOUBLINGS)
                self._buffer.pause(max(pause, answer.retry_after_s if answer else 0.0))
                continue
            tries = 0
            if answer.status in {_TOO_LARGE, _BAD} and len(events) > 1 and not _rejected(answer):
                middle = len(events) // 2
                waiting[-1:] = [events[middle:], events[:middle]]
                continue
            self._count(len(events), answer)
            self._buffer.settle(waiting.pop())

    def _ask(self, events: list[bytes]) -> Answer | None:
        headers = _NDJSON | self._credentials.headers()
        try:
            return self._transport.post(b"\n".join(events), headers)
        except Unreachable:
            return None

    def _count(self, events: int, answer: Answer) -> None:
        rejected = _rejected(answer)
        for error in rejected:
            self.drop(f"rejected, {error}")
        if answer.status == _TAKEN:
            self._sent += max(events - len(rejected), 0)
        elif len(rejected) < events:
            self.drop(f"HTTP {answer.status}", events - len(rejected))


def address(url: str | None) -> str:
    """Where the sidecar is: `url`, else the environment's, else the default; empty means unset."""
    return url or os.environ.get(URL_VARIABLE) or DEFAULT_URL


def _rejected(answer: Answer) -> list[str]:
    """Why single events were not taken: the sidecar's texts, which never hold their content."""
    if answer.status not in {_TAKEN, _BAD}:
        return []
    try:
        body: Any = json.loads(answer.body)
        return [str(item["error"])[:_MAX_ERROR] for item in body.get("rejected", ())]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} ({reason})" for reason, count in counts.items())


_SENDERS: "weakref.WeakSet[Sender]" = weakref.WeakSet()
# Kept, so that nothing of them is ever closed: see `Transport.abandon`.
_ABANDONED: list[Transport] = []
_SHARED: dict[str, Sender] = {}


def shared(url: str | None = None) -> Sender:
    """The process's own sender to a sidecar: one thread for all processors and `Spans`."""
    where = address(url)
    return _SHARED.get(where) or _SHARED.setdefault(where, Sender(where))


def _after_fork() -> None:
    for sender in list(_SENDERS):
        sender.after_fork()


def _at_exit() -> None:
    deadline = time.monotonic() + FLUSH_S
    for sender in list(_SENDERS):
        sender.flush(max(deadline - time.monotonic(), 0.0))
        sender.last_words()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)

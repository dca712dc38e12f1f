"""Delivers events to the sidecar from a background thread, in batches and with retries.

In: encoded events from any thread, event loop or Temporal activity. Out: `POST /v1/spans`.

It uses a thread with blocking sockets, because that works the same under any event loop, under a
busy one, and without one. While the sidecar is unreachable, events are kept and retried. Once
`max_bytes` are held, new events are dropped, counted, and logged in at most one line a minute.

Where no thread can be started, a flush delivers on the thread that called it, and so does an exit.
"""

import math
import threading
import time
from _thread import RLock
from collections.abc import Iterator
from functools import cache
from typing import Literal

from . import exits
from .buffer import Buffer
from .delivery import Delivery
from .interrupts import ErrorsHidden, is_interrupt
from .notices import Notices
from .remote_flush import RemoteFlush
from .settings import DEFAULT_URL, DISABLED_VARIABLE, is_on, sidecar_url
from .transport import Credentials, Transport

MAX_BYTES = 64 * 1024 * 1024
BATCH_BYTES = 1024 * 1024
LINGER_S = 0.05
REQUEST_TIMEOUT_S = 10.0
FLUSH_TIMEOUT_S = 5.0
_RETRY_START_S = 1.0
_LATE_S = 0.5

Until = Literal["delivered", "disk", "accepted"]


class Sender:
    """Buffers events and delivers them to one sidecar. `shared_sender` returns a shared one.

    Args:
        url: The sidecar's URL. Defaults to `TRACE_SIDECAR_URL`, then `http://127.0.0.1:8318`.
        max_bytes: Limit on events queued and in flight.
        credentials: Sent with each request for the sidecar to relay. Empty ones are read from the
            environment at each request.
        linger_s: How long an event may wait for its batch to fill.
        timeout_s: Timeout of each connect, send and receive.

    Attributes:
        disabled: `TRACE_SIDECAR_DISABLED` was on: nothing is sent, held or counted.
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
        self.disabled = is_on(DISABLED_VARIABLE)
        self._url = DEFAULT_URL if self.disabled else sidecar_url(url)
        self._max_bytes = max_bytes
        self._credentials = credentials or Credentials()
        self._linger_s = linger_s
        self._timeout_s = timeout_s
        self._notices = Notices(Transport(self._url, timeout_s).address)
        self._reset(reached=False)
        if not self.disabled:
            exits.flush_on_sigterm()

    def _reset(self, *, reached: bool) -> None:
        self._transport = Transport(self._url, self._timeout_s)
        self._buffer = Buffer(self._max_bytes, BATCH_BYTES)
        self._delivery = Delivery(
            self._buffer, self._transport, self._credentials, self._notices, reached=reached
        )
        self._thread: threading.Thread | None = None
        self._start_at = -math.inf
        self._starting = RLock()
        self._exit_deadline = math.inf  # of the flush at exit, once that has begun
        self._remote = {
            "delivered": RemoteFlush(self._transport, self._notices),
            "disk": RemoteFlush(self._transport, self._notices, "&until=disk"),
        }

    def after_fork(self) -> None:
        """Start empty in a forked child: the parent still delivers what it holds."""
        self._buffer.abandon()
        self._transport.abandon()
        _ABANDONED.append(self._transport)
        self._notices.clear()
        # Where the parent reached it, so can the child.
        self._reset(reached=self._delivery.reached)

    @property
    def url(self) -> str:
        """The sidecar's URL."""
        return self._url

    @property
    def sent(self) -> int:
        """Events that the sidecar accepted."""
        return self._delivery.sent

    @property
    def dropped(self) -> dict[str, int]:
        """Events that will never be delivered, by reason."""
        return self._notices.dropped

    @property
    def not_taken_for(self) -> dict[str, int]:
        """Events that the sidecar accepted, but not for this upstream."""
        return self._notices.not_taken_for

    @property
    def waiting_bytes(self) -> int:
        """Bytes queued and in flight."""
        return self._buffer.held_bytes

    def send(self, event: bytes, once: Iterator[bool] | None = None) -> None:
        """Queue one event; never blocks and never raises. For `once`, see `Buffer.offer`."""
        if self.disabled:
            return
        try:
            self._queue(event, once)
        except Exception as error:
            if is_interrupt(error):
                raise
            self.drop(f"not sent: {type(error).__name__}")

    def _queue(self, event: bytes, once: Iterator[bool] | None) -> None:
        if self._thread is None:
            exits.watch(self)
        if not self._buffer.offer(event, once):
            self.drop("buffer full")
        if self._thread is None:
            self._start()
        if self._exit_deadline < math.inf:
            # The flush at exit has begun, or is over, and nothing else waits for this one.
            self._finish_late(time.monotonic())

    def _finish_late(self, now: float) -> None:
        """Deliver what a late exit callback traces, for at most 5 s more, all of it together."""
        until = self._exit_deadline
        self.finish(max(until, min(now + _LATE_S, until + exits.EXIT_TIMEOUT_S)))
        self._exit_deadline = until

    def drop(self, reason: str, count: int = 1) -> None:
        """Count events that will never be delivered; logs at most one line a minute."""
        if not self.disabled:
            with ErrorsHidden():
                self._notices.drop(reason, count)

    def flush(self, timeout_s: float = FLUSH_TIMEOUT_S, until: Until = "delivered") -> bool:
        """Wait up to `timeout_s` for all events of this moment; return whether it was enough.

        `until` says what for: the upstreams have them ("delivered"), the sidecar has them on disk
        ("disk"), or the sidecar has them ("accepted"). Never raises.
        """
        try:
            deadline = time.monotonic() + timeout_s
            if not self._settle(deadline):
                return False
            if until == "accepted" or not self.sent:
                return True
            return self._remote["disk" if until == "disk" else "delivered"].wait(deadline)
        except Exception as error:
            if is_interrupt(error):
                raise
            return False

    def finish(self, deadline: float) -> None:
        """At exit: have the sidecar accept what is held until `deadline`, and say what was lost.

        If the sidecar was never reached, one last try is enough.
        """
        self._exit_deadline = deadline
        try:
            self._settle(deadline, last_try=True)
        finally:
            self.give_up()

    def give_up(self) -> None:
        """At exit: say what is held and will not be delivered, and what was dropped."""
        self._notices.at_exit(self._buffer.depth)

    def go_on(self) -> None:
        """The process did not end after all."""
        self._exit_deadline = math.inf

    def _settle(self, deadline: float, *, last_try: bool = False) -> bool:
        """Wait until all events of this moment were accepted or dropped; return whether they were.

        With `last_try`, give up when the sidecar can't be reached and never was.
        """
        if self._buffer.depth and self._thread is None:
            self._start()
            if self._thread is None:
                self._delivery.deliver_all(deadline, last_try=last_try)
        return self._buffer.flush(deadline - time.monotonic(), last_try=last_try)

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None or time.monotonic() < self._start_at:
                return
            if self._delivery.thread is not None:
                self._thread = self._delivery.thread  # an interrupt came after it had started
                return
            try:
                thread = threading.Thread(
                    target=self._delivery.run,
                    args=(self._linger_s,),
                    name="trace-sidecar",
                    daemon=True,
                )
                # A signal handler that traced meanwhile has started one; none starts another.
                if self._thread is None:
                    self._thread = thread
                    thread.start()
            except Exception as error:  # a RuntimeError, or what a sandbox raises
                self._thread = None
                if is_interrupt(error):
                    raise
                self._start_at = time.monotonic() + _RETRY_START_S
            except BaseException:
                self._thread = None
                raise

    def __deepcopy__(self, memo: object) -> "Sender":
        return self

    def __copy__(self) -> "Sender":
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled by address and limits: what it holds stays, and credentials are not written."""
        shared = _SHARED_SENDERS.get(self._url) is self
        if shared:
            return shared_sender, (self._url,)
        return _restored, (self._url, self._max_bytes, self._linger_s, self._timeout_s)


@cache
def _restored(url: str, max_bytes: int, linger_s: float, timeout_s: float) -> Sender:
    """One sender, with its thread, for all pickles of the same one."""
    return Sender(url, max_bytes=max_bytes, linger_s=linger_s, timeout_s=timeout_s)


# Kept forever, so that no part of them is finalized: see `Transport.abandon`.
_ABANDONED: list[Transport] = []
_SHARED_SENDERS: dict[str, Sender] = {}


def shared_sender(url: str | None = None) -> Sender:
    """The process-wide sender to a sidecar, shared by all processors and `Spans`."""
    url = sidecar_url(url)
    return _SHARED_SENDERS.get(url) or _SHARED_SENDERS.setdefault(url, Sender(url))

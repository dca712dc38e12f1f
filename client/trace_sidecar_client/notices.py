"""Counts the events that will not arrive, and says so in the log. Never any span content.

Each kind of line is logged at most once a minute, with what was counted since; each explanation
once. No logging handler's error reaches the agent.
"""

import logging
import time
from _thread import RLock
from collections import Counter

from .interrupts import ErrorsHidden

LOG = logging.getLogger("trace_sidecar_client")
LOG_INTERVAL_S = 60.0

# Reasons come from the sidecar's answers too: more of them than this are one, "other".
_MAX_REASONS = 20
_MAX_CHARS = 200


class Notices:
    """What is said about one sidecar. `address` is how a reader finds it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._dropped = _Line("span events dropped: %s")
        self._not_taken = _Line(
            "span events that upstreams will not get, because their lanes are full: %s"
        )
        self._undelivered = 0
        self._said: set[str] = set()

    def clear(self) -> None:
        """Count from zero, in a forked child. What was explained once is not explained again."""
        self._dropped.clear()
        self._not_taken.clear()
        self._undelivered = 0

    @property
    def dropped(self) -> dict[str, int]:
        """Events that were dropped, by reason."""
        return dict(self._dropped.counts)

    @property
    def not_taken_for(self) -> dict[str, int]:
        """Events that the sidecar took, but not for this upstream."""
        return dict(self._not_taken.counts)

    def drop(self, reason: str, count: int) -> None:
        """Count events that will never be delivered."""
        self._dropped.add(reason, count, self._address)

    def not_taken(self, upstream: str, count: int) -> None:
        """Count events that one upstream will not get."""
        self._not_taken.add(upstream, count, self._address)

    def explain(self, key: str, text: str) -> None:
        """Say what is wrong with this sidecar, once for each `key`."""
        if key not in self._said and len(self._said) < _MAX_REASONS:
            self._said.add(key)
            _warn("the sidecar at %s %s", self._address, text)

    def report(self, bug: BaseException) -> None:
        """Say where the client itself failed."""
        with ErrorsHidden():
            LOG.error("unexpected error while sending span events", exc_info=bug)

    def at_exit(self, undelivered: int) -> None:
        """Say what was not delivered, and what was dropped since the last line."""
        if undelivered > self._undelivered:
            self._dropped.unsaid["not delivered at exit"] += undelivered - self._undelivered
            self._undelivered = undelivered
        for line in (self._dropped, self._not_taken):
            line.say(self._address)


class _Line:
    """A line of the log, and the counts that it reports."""

    def __init__(self, text: str) -> None:
        self._text = text + " (sidecar: %s)"
        self.clear()

    def clear(self) -> None:
        self._lock = RLock()  # a destructor may trace in the middle of `add`
        self.counts: Counter[str] = Counter()
        self.unsaid: Counter[str] = Counter()
        self._said_at = -LOG_INTERVAL_S

    def add(self, reason: str, count: int, address: str) -> None:
        with self._lock:
            if reason not in self.counts and len(self.counts) >= _MAX_REASONS:
                reason = "other"
            self.counts[reason] += count
            self.unsaid[reason] += count
            if _now() - self._said_at < LOG_INTERVAL_S:
                return
        self.say(address)

    def say(self, address: str) -> None:
        with self._lock:
            unsaid, self.unsaid = self.unsaid, Counter()
            self._said_at = _now()
        if unsaid:
            counts = ", ".join(f"{count} ({reason})" for reason, count in unsaid.items())
            _warn(self._text, counts, address)


def _now() -> float:
    """The monotonic clock; where a sandbox forbids it, always 0, so that a line is logged once."""
    try:
        return time.monotonic()
    except Exception:  # noqa: BLE001 - Temporal's
        return 0.0


def visible(text: str) -> str:
    """`text` for a log, perhaps on a terminal: short, and what is not printable escaped."""
    shown = (each if each.isprintable() else ascii(each)[1:-1] for each in text[:_MAX_CHARS])
    return "".join(shown)[:_MAX_CHARS]


def _warn(text: str, *values: object) -> None:
    with ErrorsHidden():  # of a handler of the agent's: nobody is left to tell
        LOG.warning(text, *values)

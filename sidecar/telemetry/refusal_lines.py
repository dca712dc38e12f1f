"""Log lines about what agents posted and the sidecar did not accept: at most ten a minute of each.

They name the span, the field and the rule, never a value (D19).
"""

import structlog

from sidecar.spans.decode import Rejection
from sidecar.spans.validation import MAX_ID_BYTES
from sidecar.telemetry.log_rate_limiter import LogRateLimiter

log = structlog.get_logger()


class RefusalLines:
    """Says which events and requests were refused. `now` is loop time in seconds."""

    def __init__(self) -> None:
        self._events, self._requests = LogRateLimiter(), LogRateLimiter()

    def event(self, rejection: Rejection, now: float) -> None:
        """An event was rejected. Its id is in the line if an upstream could have it."""
        if (suppressed := self._events.admit(now)) is None:
            return
        shown: dict[str, object] = {"field": rejection.field} if rejection.field else {}
        if _is_valid(rejection.id):
            shown["span_id"] = rejection.id
        if suppressed:
            shown["not_logged"] = suppressed
        log.warning("event_rejected", reason=rejection.reason, error=rejection.error, **shown)

    def request(self, status: int, reason: str, now: float) -> None:
        """A whole request was refused, possibly before its body was read."""
        if (suppressed := self._requests.admit(now)) is not None:
            not_logged = {"not_logged": suppressed} if suppressed else {}
            log.warning("request_refused", status=status, reason=reason, **not_logged)


def _is_valid(id_: str | None) -> bool:
    # One as long as this may be the beginning of a longer one.
    return bool(id_) and "\0" not in str(id_) and len(str(id_).encode()) < MAX_ID_BYTES

"""What a lane knows of its upstream: the `Sink` protocol, and errors that are decisions.

An error says what to do, not what happened (D5). `sinks/http.py` is the one place that
knows status codes; the drain only knows these classes. Texts of errors never hold anything an
upstream said: its messages repeat the span (docs/upstreams.md A9).
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from sidecar.spans.span import Span


class Sink(Protocol):
    """Delivers batches to one upstream."""

    name: str
    max_batch: int  # spans in one request
    max_batch_bytes: int  # bytes in one request, about

    def skips(self, span: Span) -> str | None:
        """The reason (of books.SKIP_REASONS) not to send this write at all, or None."""
        ...

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> None:
        """Return once the upstream has the batch; raise a `SinkError` if it does not.

        `suspicion`: how often this very batch failed while others got through.
        """
        ...

    async def close(self) -> None:
        """Give up connections."""
        ...


class SinkError(Exception):
    """The upstream did not take the batch. `status` is the HTTP status, 0 where there was none.

    `outcome` names the decision in metrics (telemetry/outcomes.py).
    """

    outcome: ClassVar[str]

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Refused(SinkError):
    """The same batch would be refused again."""

    outcome = "refused"


class TooLarge(SinkError):
    """A smaller batch may be taken."""

    outcome = "too_large"


class Unavailable(SinkError):
    """The same batch may be taken later, not before `retry_after` seconds.

    `outage`: nobody answered at all. `suspect`: the upstream stumbled over this batch, which may be
    its own fault or the batch's (D8).
    """

    outcome = "unavailable"

    def __init__(
        self,
        message: str,
        status: int = 0,
        *,
        retry_after: float = 0.0,
        outage: bool = False,
        suspect: bool = False,
    ) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after
        self.outage = outage
        self.suspect = suspect


class Unauthorized(SinkError):
    """The credential is not accepted, now; or there is none yet."""

    outcome = "unauthorized"


class Misdirected(SinkError):
    """This is not the API we look for: wrong base URL, or a redirect."""

    outcome = "misdirected"

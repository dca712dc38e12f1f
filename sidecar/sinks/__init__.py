"""A lane's interface to its upstream: the `Sink` protocol, and errors that are decisions (D5).

The class of an error tells the drain what to do with the batch (drain/failures.py). Only the sinks
know status codes.
An error's text never quotes the upstream, because its messages repeat span content
(docs/upstreams.md A9).
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from sidecar.spans.span import Span
from sidecar.telemetry.outcomes import SinkState


class Sink(Protocol):
    """Delivers batches to one upstream."""

    name: str
    max_batch: int  # spans in one request
    max_batch_bytes: int  # bytes in one request, approximately

    def skips(self, span: Span) -> str | None:
        """Why this write must not be sent, one of accounting.SKIP_REASONS; None to send it."""
        ...

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> None:
        """Return once the upstream has accepted the batch; otherwise raise a `SinkError`.

        `suspicion`: how often this batch has failed while others succeeded (D8).
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class SinkError(Exception):
    """The upstream did not accept the batch. `status`: the HTTP status, 0 without a response.

    `outcome` is the decision's name in metrics (telemetry/outcomes.py), and `dead_letter` the
    reason that is counted if it makes the drain give up on a write (telemetry/accounting.py).
    `holds`: the upstream refuses everything, so the lane waits in this state.
    """

    outcome: ClassVar[str]
    dead_letter: ClassVar[str] = ""
    holds: ClassVar[SinkState | None] = None

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Refused(SinkError):
    """The upstream would refuse the same batch again."""

    outcome = dead_letter = "refused"


class TooLarge(SinkError):
    """The upstream may accept a smaller batch."""

    outcome = dead_letter = "too_large"


class Unavailable(SinkError):
    """The upstream may accept the same batch later; do not retry within `retry_after` seconds.

    `outage`: no connection could be opened. `suspect`: the failure may be caused by this batch
    rather than by the upstream (D8).
    """

    outcome = "unavailable"
    dead_letter = "failing"

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
    """The upstream does not currently accept the credential, or none is known yet."""

    outcome = "unauthorized"
    holds = SinkState.UNAUTHORIZED


class Misdirected(SinkError):
    """The base URL does not point to the expected API: no such path, or a redirect."""

    outcome = "misdirected"
    holds = SinkState.DOWN

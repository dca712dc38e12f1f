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
    data_follows: bool  # open writes are sent without `data`; it follows if no END comes
    reasons: frozenset[str]  # those of accounting.SPECIFIC_REASONS that it can have
    repairs: bool  # a write may need more than one request

    def skips(self, span: Span) -> str | None:
        """Why this write must not be sent, one of accounting.SKIP_REASONS; None to send it."""
        ...

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> int:
        """Return once the upstream has accepted the batch; otherwise raise a `SinkError`.

        Returns how many of its writes the upstream says that it did not keep, without saying which;
        fewer than all, because then the batch is `Refused`.
        `suspicion`: how often this batch, a single write, has failed while others succeeded (D8).
        """
        ...

    async def try_out(self) -> bool:
        """Ask the API for nothing; whether it says that it accepts the credential.

        Raises a `SinkError` if it does not accept it, or is not there.
        """
        ...

    def stopping(self) -> None:
        """The process is stopping: no END will follow the open writes that are sent from now on."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class SinkError(Exception):
    """The upstream did not accept the batch. `status`: the HTTP status, 0 without a response.

    `outcome` is the decision's name in metrics (telemetry/outcomes.py), and `dead_letter` the
    reason that is counted if it makes the drain give up on a write (telemetry/accounting.py).
    `about_content`: it is a verdict on what was sent; sent alone again, it would be refused again.
    `holds`: the upstream seems to refuse everything, so the lane waits in this state.
    `retry_after`: seconds for which it asks us to wait, or 0. `reached`: whether it can have seen
    the batch at all.
    """

    outcome: ClassVar[str]
    dead_letter: ClassVar[str] = "failing"
    about_content: ClassVar[bool] = False
    holds: ClassVar[SinkState | None] = None

    def __init__(
        self, message: str, status: int = 0, *, retry_after: float = 0.0, reached: bool = True
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.reached = reached


class Refused(SinkError):
    """The upstream would refuse the same batch again."""

    outcome = dead_letter = "refused"
    about_content = True


class TooLarge(SinkError):
    """The upstream may accept a smaller batch."""

    outcome = dead_letter = "too_large"
    about_content = True


class IdTaken(SinkError):
    """At the upstream, the write's id belongs to a span of another trace."""

    outcome = "refused"
    dead_letter = "id_taken"
    about_content = True


class Unavailable(SinkError):
    """The upstream may accept the same batch later."""

    outcome = "unavailable"


class Unauthorized(SinkError):
    """The upstream does not currently accept the credential, or none is known yet."""

    outcome = "unauthorized"
    holds = SinkState.UNAUTHORIZED


class Misdirected(SinkError):
    """The response is not the API's own verdict: a wrong base URL, a redirect, a gateway's page."""

    outcome = "misdirected"
    holds = SinkState.DOWN


class RouteGone(Misdirected):
    """The server has no such route, and may never have it again."""

"""A branch: the parts of a lane that serve one account."""

from dataclasses import dataclass

from sidecar.credentials import Credentials
from sidecar.drain.throttle import Throttle
from sidecar.drain.workers import Drain
from sidecar.queue.span_queue import SpanQueue
from sidecar.sinks import Sink


@dataclass(frozen=True, slots=True)
class Branch:
    """The parts that serve one account at one upstream; `account` is its number."""

    account: int
    sink: Sink
    credentials: Credentials
    queue: SpanQueue
    throttle: Throttle
    drain: Drain

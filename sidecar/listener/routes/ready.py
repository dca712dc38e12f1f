"""`GET /readyz` on the agents' port: 200 once the listener takes events (docs/api.md).

A route like the others, but that no span comes by it; while the process stops it says what they do.
"""

from http import HTTPStatus

import msgspec

from sidecar.listener.body import Refusal
from sidecar.listener.routes import Answer, Request
from sidecar.spans.decode import Decoded

_READY = Answer(HTTPStatus.OK, b"ready\n", "text/plain; charset=utf-8")


class ReadyRoute:
    """Brings no spans."""

    def check(self, request: Request) -> None:
        """Nothing is refused."""

    def decode(self, request: Request, body: bytes, now: float) -> Decoded:  # noqa: ARG002
        """No spans, whatever the body."""
        return Decoded([], [])

    def answer(self, request: Request, decoded: Decoded) -> Answer:  # noqa: ARG002
        """It is ready."""
        return _READY

    def refused(self, refusal: Refusal) -> bytes:
        """An `error` text."""
        return msgspec.json.encode({"error": str(refusal)})

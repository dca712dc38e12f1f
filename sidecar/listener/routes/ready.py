"""`GET /readyz` on the agents' port: 200 while the listener accepts events (docs/api.md).

A route like the others, except that its requests carry no spans. While the process is stopping, the
response is 503.
"""

from http import HTTPStatus

import msgspec

from sidecar.listener.refusals import Refusal
from sidecar.listener.routes import Request, Response
from sidecar.spans.decode import Decoded

_READY = Response(HTTPStatus.OK, b"ready\n", "text/plain; charset=utf-8")


class ReadyRoute:
    """The readiness probe."""

    def check(self, request: Request) -> None:
        """Accept every request."""

    def decode(self, request: Request, body: bytes, now: float) -> Decoded:  # noqa: ARG002
        """No spans, whatever the body."""
        return Decoded([], [])

    def respond(self, request: Request, decoded: Decoded) -> Response:  # noqa: ARG002
        return _READY

    def refusal_body(self, refusal: Refusal) -> bytes:
        return msgspec.json.encode({"error": str(refusal)})

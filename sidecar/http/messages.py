"""What the HTTP server and its services exchange: requests, receivers and responses."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

TEXT = "text/plain; charset=utf-8"
Headers = dict[bytes, bytes]  # of a request: names in lower case
Fields = Sequence[tuple[str, str]]  # of a response


class Request(msgspec.Struct, gc=False):
    """A parsed head. `path` is percent-encoded; `target` is the path with the query.

    Headers are decoded when they are asked for: most never are.
    """

    method: str
    target: str
    path: str
    headers: Headers

    def header(self, name: bytes) -> str:
        """The value of a header, "" without one; commas separate the values of a repeated one."""
        return self.headers.get(name, b"").decode("utf-8", "surrogateescape").strip()


class Response(NamedTuple):
    """A whole response. The server adds Content-Type, Content-Length and Date to `headers`."""

    status: int
    body: bytes = b""
    content_type: str = TEXT
    headers: Fields = ()


class StreamedResponse(NamedTuple):
    """A response whose body is sent piece by piece, with these headers and no others.

    `chunks` raises `Truncated` if the body can't be completed.
    """

    status: int
    reason: str
    headers: Fields
    chunks: AsyncIterator[bytes]


class Truncated(Exception):
    """The rest of a streamed body is missing; the client sees it by the broken connection."""


class Flow(Protocol):
    """Stops and continues reading from the client."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


Answer = Response | Awaitable[Response | StreamedResponse]


class Receiver(Protocol):
    """Takes the body of one request and gives the response.

    `wants_body`: a client that waits for 100 Continue gets it. `is_stream`: the body may take any
    time while it keeps coming, the response may be streamed, and a client that has stopped sending
    no longer wants it. Otherwise the body has a timeout, and such a client gets its response.
    """

    wants_body: bool
    is_stream: bool

    def data(self, chunk: bytes) -> None:
        """Take a piece of the body."""

    def end(self) -> Answer:
        """Take the end of the body; return the response, or what gives it."""

    def lost(self, *, late: bool) -> Response:
        """Give up a body that ended early or is `late`, or a streamed response.

        The returned response is for a client that may still be reading.
        """


# Called with each request when its head has arrived.
Service = Callable[[Request, Flow], Receiver]


class Discard:
    """Discards the body of a request, then gives `answer`, or what it returns."""

    wants_body = is_stream = False

    def __init__(self, answer: Response | Callable[[], Answer]) -> None:
        self._answer = answer

    def data(self, chunk: bytes) -> None: ...

    def end(self) -> Answer:
        return self._answer if isinstance(self._answer, Response) else self._answer()

    def lost(self, *, late: bool) -> Response:
        if isinstance(self._answer, Response):
            return self._answer
        return Response(408, b"the body is late\n") if late else Response(400, b"no whole body\n")

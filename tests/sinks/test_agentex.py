"""The Agentex sink: POST or PATCH, and which open spans it remembers."""

from collections import deque
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from sidecar.sinks import Unavailable
from sidecar.sinks import agentex as module
from sidecar.sinks.agentex import AgentexSink
from sidecar.sinks.http import Response
from tests.support.spans import make_span

OK = Response(200, b"", 0.0)
FAILED = Response(503, b"", 0.0)
EXISTS = Response(400, b'{"message":"Item already exists"}', 0.0)
UNKNOWN = Response(404, b'{"message":"Item with id s1 does not exist"}', 0.0)


class Server:
    """An upstream with a queue of `replies`, 200 once it is empty; a sink, and its requests."""

    def __init__(self, *replies: Response) -> None:
        self.replies = deque(replies)
        self.requests: list[str] = []
        client: Any = SimpleNamespace(target=str.encode, request=self._request)
        self.sink = AgentexSink(client)

    async def _request(self, method: bytes, target: bytes, _body: bytes) -> Response:
        self.requests.append(f"{method.decode()} {target.decode()}")
        return self.replies.popleft() if self.replies else OK

    async def start(self, id_: str = "s1", trace_id: str = "t1") -> None:
        """Deliver an open write."""
        await self.sink.send([make_span(id_, trace_id=trace_id, complete=False)])

    async def end(self, id_: str = "s1", trace_id: str = "t1") -> str:
        """Deliver a complete write; return its first request."""
        before = len(self.requests)
        await self.sink.send([make_span(id_, trace_id=trace_id)])
        return self.requests[before]


async def test_the_end_of_an_open_span_is_a_patch() -> None:
    """The END of a span that this sink has opened is a PATCH, any other a POST."""
    server = Server()
    await server.start("a b")
    assert server.requests == ["POST /spans"]
    assert await server.end("other") == "POST /spans"
    assert await server.end("a b", trace_id="t2") == "POST /spans"
    assert await server.end("a b") == "PATCH /spans/a%20b"


async def test_a_span_is_remembered_until_its_end_is_accepted() -> None:
    """A PATCH that fails is sent again as a PATCH; after one that is accepted, nothing is kept."""
    server = Server(OK, FAILED)
    await server.start()
    with pytest.raises(Unavailable):
        await server.end()
    assert await server.end() == "PATCH /spans/s1"
    assert await server.end() == "POST /spans"


async def test_an_open_write_without_a_response_may_have_arrived() -> None:
    """Its END is a PATCH; if the server does not know the span, the END is a POST."""
    server = Server(FAILED, UNKNOWN)
    with pytest.raises(Unavailable):
        await server.start()
    await server.end()
    assert server.requests[1:] == ["PATCH /spans/s1", "POST /spans"]


async def test_how_many_spans_are_remembered() -> None:
    """The oldest one is forgotten: its END costs one request more."""
    with patch.object(module, "_MAX_OPENED", 3):
        server = Server()
        for number in range(4):
            await server.start(f"s{number}")
        server.replies.append(EXISTS)
        assert await server.end("s0") == "POST /spans"
        assert server.requests[-1] == "PATCH /spans/s0"
        for number in range(1, 4):
            assert await server.end(f"s{number}") == f"PATCH /spans/s{number}"

"""An Agentex without HTTP: the test prepares its responses, and sees what the sink sends."""

import json
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest

from sidecar.queue.supplement import supplement
from sidecar.sinks import Misdirected, Unauthorized, Unavailable
from sidecar.sinks.agentex import AgentexSink
from sidecar.sinks.http import Response
from sidecar.spans.span import ALL_PAYLOADS, Lanes, Span
from tests.support.spans import make_span


def error(status: int, message: str) -> Response:
    """An error in the shape of the real server's."""
    return Response(status, json.dumps({"message": message, "code": status, "data": None}).encode())


def found(trace_id: str = "t1", id_: str = "s1", **fields: Any) -> Response:
    """The response to a GET of a span, which is open and without payloads if `fields` has none."""
    row = {"id": id_, "trace_id": trace_id, "name": "turn", "end_time": None}
    payloads = {"input": None, "output": None, "data": None}
    return Response(200, json.dumps({**row, **payloads, **fields}).encode())


OK = Response(200)
FAILED = Response(503)
PAGE = Response(200, b"<html>", is_own=False)
EXISTS = error(400, "Item already exists. Please check all unique constraints and try again.")
UNKNOWN_ID = error(404, "Item with id 's1' does not exist.")
UNKNOWN_TASK = error(500, 'violates foreign key constraint "fk_spans_task_id_tasks"')
NO_ROUTE = Response(404, b'{"detail":"Not Found"}')
DATA = b'{"d":1}'
POST, GET, PATCH = "POST /spans", "GET /spans/s1", "PATCH /spans/s1"

# Responses to a GET that leave open whose span it is, and that count as "ours".
NOT_TOLD = [
    NO_ROUTE,
    UNKNOWN_ID,
    Response(405),
    Response(501),
    Response(404, b"<html>", is_own=False),
]
# Responses to a GET that are failures, and what they mean.
UNREADABLE = pytest.mark.parametrize(
    ("response", "decision"),
    [
        (Response(500), Unavailable),
        (Response(503, retry_after=7.0), Unavailable),
        (Response(429), Unavailable),
        *[(error(status, "no verdict on the span"), Unavailable) for status in (400, 409, 422)],
        (Response(400, None), Unavailable),
        (Response(413), Unavailable),
        (Response(401), Unauthorized),
        (PAGE, Misdirected),
        (Response(302), Misdirected),
        (Response(400, b"<html>", is_own=False), Misdirected),
        (Response(200, b""), Unavailable),
        (Response(200, b"{}"), Unavailable),
        (Response(200, b'{"id":"s1","trace_'), Unavailable),
        (Response(200, b'{"id":"s1","trace_id":null}'), Unavailable),
        (Response(200, None), Unavailable),
        (Response(204), Unavailable),
    ],
)


class Server:
    """An upstream with a queue of `replies`, 200 once it is empty; a sink, and its requests.

    `bodies` has the body of each request, `repaired` counts the reasons of repairs.
    """

    def __init__(self, *replies: Response) -> None:
        self.replies = deque(replies)
        self.requests: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.failures: list[int] = []  # statuses of the responses that count as failed requests
        self.repaired: Counter[str] = Counter()
        client: Any = SimpleNamespace(target=str.encode, request=self._request)
        self.sink = AgentexSink(client, lambda reason: self.repaired.update([reason]))

    async def _request(
        self,
        method: bytes,
        target: bytes,
        body: bytes,
        *,
        expected: Callable[[Response], bool] = lambda _: False,
    ) -> Response:
        self.requests.append(f"{method.decode()} {target.decode()}")
        self.bodies.append(json.loads(body or b"null"))
        response = self.replies.popleft() if self.replies else OK
        if not (response.taken or expected(response)):
            self.failures.append(response.status)
        return response

    async def send(self, span: Span, suspicion: int = 0) -> list[str]:
        """Deliver a write; return its requests."""
        before = len(self.requests)
        await self.sink.send([span], suspicion=suspicion)
        return self.requests[before:]

    async def start(self, id_: str = "s1", *, suspicion: int = 0, **fields: Any) -> list[str]:
        """Deliver an open write with `data`."""
        return await self.send(
            make_span(id_, complete=False, **{"data": DATA, **fields}), suspicion
        )

    async def end(self, id_: str = "s1", *, suspicion: int = 0, **fields: Any) -> list[str]:
        """Deliver a complete write with `data`."""
        return await self.send(make_span(id_, **{"data": DATA, **fields}), suspicion)

    async def supplement(self, id_: str = "s1", *, suspicion: int = 0, **fields: Any) -> list[str]:
        """Deliver what a START adds."""
        return await self.send(added(id_, **fields), suspicion)


def added(id_: str = "s1", **fields: Any) -> Span:
    """The supplement of a START with `data`."""
    start = make_span(id_, complete=False, **{"data": DATA, **fields})
    return supplement(start, ALL_PAYLOADS, int(Lanes.AGENTEX), now=0.0)


# Delivers an open or a complete write; returns its requests.
Write: TypeAlias = Callable[[Server], Awaitable[list[str]]]
STARTS_AND_ENDS = pytest.mark.parametrize("write", [Server.start, Server.end])

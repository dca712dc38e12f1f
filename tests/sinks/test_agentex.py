"""The Agentex sink: which requests it makes for a write, and what it makes of their responses."""

import pytest

from sidecar.sinks import IdTaken, Misdirected, Refused, RouteGone, SinkError, Unavailable
from sidecar.sinks import agentex as module
from sidecar.sinks.http import Response
from sidecar.spans.span import Stored
from tests.sinks.scripted_agentex import (
    DATA,
    EXISTS,
    FAILED,
    GET,
    NO_ROUTE,
    NOT_TOLD,
    OK,
    PAGE,
    PATCH,
    POST,
    STARTS_AND_ENDS,
    UNKNOWN_ID,
    UNREADABLE,
    Server,
    Write,
    error,
    found,
)
from tests.support.spans import END_TIME, make_span

GONE = "there is no spans API at this base URL: correct agentex.base_url, or unset it"


# Open writes and their ENDs.


async def test_an_open_write_has_no_data_until_the_process_stops() -> None:
    """Its END's PATCH then stores `data` whole; once no END will follow, it has its `data`."""
    server = Server()
    assert await server.start() == [POST]
    server.sink.stopping()
    assert await server.start("s2") == [POST]
    assert [body["data"] for body in server.bodies] == [None, {"d": 1}]
    assert [body["input"] for body in server.bodies] == [{"q": 1}] * 2
    assert list(server.bodies[0]) == list(server.bodies[1])


async def test_an_open_write_on_disk_has_no_data_when_the_process_stops() -> None:
    """After a restart, its END may still follow."""
    server = Server()
    server.sink.stopping()
    start = make_span("s1", complete=False, data=DATA)
    start.stored = Stored(1, 0)
    assert await server.send(start) == [POST]
    assert server.bodies[-1]["data"] is None


async def test_a_complete_write_has_its_data() -> None:
    """Whether it is a POST or a PATCH."""
    server = Server()
    assert await server.end() == [POST]
    await server.start()
    assert await server.end() == [PATCH]
    assert [body["data"] for body in server.bodies] == [{"d": 1}, None, {"d": 1}]


async def test_the_end_of_an_open_span_is_a_patch() -> None:
    """The END of a span that this sink has opened is a PATCH, any other a POST."""
    server = Server()
    await server.start("a b")
    assert await server.end("other") == [POST]
    assert await server.end("a b", trace_id="t2") == [POST]
    assert await server.end("a b") == ["PATCH /spans/a%20b"]
    assert server.repaired == {}


async def test_a_span_is_remembered_until_its_end_is_accepted() -> None:
    """A PATCH that fails is sent again as a PATCH; after one that is accepted, nothing is kept."""
    server = Server(OK, FAILED)
    await server.start()
    with pytest.raises(Unavailable):
        await server.end()
    assert await server.end() == [PATCH]
    assert await server.end() == [POST]


@pytest.mark.parametrize("response", [FAILED, PAGE, Response(422), Response(401), NO_ROUTE])
async def test_an_open_write_that_was_not_accepted_is_not_remembered(response: Response) -> None:
    """Its END is a POST, which creates the span."""
    server = Server(response)
    with pytest.raises(SinkError):
        await server.start()
    assert await server.end() == [POST]
    assert server.repaired == {}


async def test_an_open_write_whose_response_was_lost() -> None:
    """Its END's POST finds the span; as it is the same trace's, the END is a PATCH."""
    server = Server(FAILED, EXISTS, found())
    with pytest.raises(Unavailable):
        await server.start()
    assert await server.end() == [POST, GET, PATCH]
    assert server.bodies[-1]["data"] == {"d": 1}
    assert (server.repaired, server.failures) == ({"exists": 1}, [503])


async def test_an_open_write_that_exists_is_done() -> None:
    """It was stored, but its response was lost: its END is a PATCH."""
    server = Server(EXISTS, found(input={"q": 1}))
    assert await server.start() == [POST, GET]
    assert await server.end() == [PATCH]
    assert (server.repaired, server.failures) == ({}, [])


async def test_an_open_write_that_exists_adds_what_is_missing() -> None:
    """But not `data`, which its END stores whole; that is a PATCH."""
    server = Server(EXISTS, found())
    assert await server.start() == [POST, GET, PATCH]
    assert server.bodies[-1] == {"trace_id": "t1", "input": {"q": 1}}
    assert await server.end() == [PATCH]
    assert (server.repaired, server.failures) == ({}, [])


@pytest.mark.parametrize("has_row", [False, True])
@pytest.mark.parametrize("stopping", [False, True])
@pytest.mark.parametrize("end_time", [None, END_TIME])
async def test_when_an_open_write_that_exists_adds_data(
    end_time: str | None, stopping: bool, has_row: bool
) -> None:
    """If the span has ended elsewhere, or the process stops and nothing of it is on disk."""
    server = Server(EXISTS, found(end_time=end_time, input={}))
    if stopping:
        server.sink.stopping()
    start = make_span("s1", complete=False, data=DATA)
    start.stored = Stored(1, 0) if has_row else None
    if end_time is not None or (stopping and not has_row):
        assert await server.send(start) == [POST, GET, PATCH]
        assert server.bodies[-1] == {"trace_id": "t1", "data": {"d": 1}}
    else:
        assert await server.send(start) == [POST, GET]


async def test_an_open_write_that_exists_whose_addition_fails_is_not_remembered() -> None:
    """It is tried again; an END that comes first is a POST."""
    server = Server(EXISTS, found(), FAILED)
    with pytest.raises(Unavailable):
        await server.start()
    assert server.requests == [POST, GET, PATCH]
    assert await server.end() == [POST]


async def test_an_unknown_span_is_created() -> None:
    """Its open write is not there any more: the END is a POST, and whole."""
    server = Server(OK, UNKNOWN_ID)
    await server.start()
    assert await server.end() == [PATCH, POST]
    assert server.bodies[-1]["data"] == {"d": 1}
    assert (server.repaired, server.failures) == ({"unknown_id": 1}, [])


async def test_a_span_that_exists_and_is_unknown_is_tried_again() -> None:
    """The server's replica lags behind."""
    server = Server(EXISTS, found(), UNKNOWN_ID)
    with pytest.raises(Unavailable):
        await server.end()
    assert server.requests == [POST, GET, PATCH]


async def test_how_many_spans_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest one is forgotten: its END costs two requests more."""
    monkeypatch.setattr(module, "_MAX_OPENED", 3)
    server = Server()
    for number in range(4):
        await server.start(f"s{number}")
    server.replies.extend([EXISTS, found(id_="s0")])
    assert await server.end("s0") == [POST, "GET /spans/s0", "PATCH /spans/s0"]
    for number in range(1, 4):
        assert await server.end(f"s{number}") == [f"PATCH /spans/s{number}"]


async def test_a_span_that_can_not_be_addressed() -> None:
    """Its open write is skipped, and its END is only ever a POST."""
    server = Server(OK, EXISTS)
    for id_ in ("a/b", ".", ".."):
        assert server.sink.skips(make_span(id_, complete=False)) == "unaddressable_id"
        assert server.sink.skips(make_span(id_)) is None
    await server.start("a/b")
    assert await server.end("a/b") == [POST]


# Whose span it is.


@pytest.mark.parametrize("other", [found("t2"), found("t2", "s2"), found("t1", "s2"), found("T1")])
@STARTS_AND_ENDS
async def test_the_span_of_another_trace_is_not_touched(write: Write, other: Response) -> None:
    """A PATCH would move it into this trace."""
    server = Server(EXISTS, other)
    with pytest.raises(IdTaken) as raised:
        await write(server)
    assert server.requests == [POST, GET]
    assert (raised.value.dead_letter, raised.value.about_content) == ("id_taken", True)
    assert (server.repaired, server.failures) == ({}, [])
    server.replies.extend([EXISTS, other])
    with pytest.raises(IdTaken):
        await server.end()
    assert server.requests[2:] == [POST, GET]


@pytest.mark.parametrize("untold", NOT_TOLD)
async def test_a_server_that_does_not_tell_whose_span_it_is(untold: Response) -> None:
    """It is taken for ours: other servers may not have this route."""
    server = Server(EXISTS, untold)
    assert await server.end() == [POST, GET, PATCH]
    server.replies.extend([EXISTS, untold])
    assert await server.start() == [POST, GET]
    assert await server.end() == [PATCH]
    assert server.failures == []


@UNREADABLE
@STARTS_AND_ENDS
async def test_a_span_whose_trace_can_not_be_read_is_tried_again(
    write: Write, response: Response, decision: type[SinkError]
) -> None:
    """It is a failure like any other, and nothing is changed."""
    server = Server(EXISTS, response)
    with pytest.raises(SinkError) as raised:
        await write(server)
    assert type(raised.value) is decision
    assert raised.value.retry_after == response.retry_after
    assert server.requests == [POST, GET]
    assert server.repaired == {}
    server.replies.extend([EXISTS, found()])
    assert await server.end() == [POST, GET, PATCH]


# Routes that are gone.


@pytest.mark.parametrize("status", [404, 405, 410])
async def test_a_server_without_a_spans_api(status: int) -> None:
    """The error says so in words; the write is not to blame."""
    gone = Response(status, b'{"detail":"Not Found"}')
    server = Server(OK, gone, gone)
    await server.start()
    for send in (server.start, server.end):
        with pytest.raises(RouteGone) as raised:
            await send()
        assert str(raised.value) == f"HTTP {status}: {GONE}"
        assert (raised.value.status, raised.value.about_content) == (status, False)
    assert server.repaired == {}


@pytest.mark.parametrize("status", [407, 421, 302, 200])
async def test_other_responses_of_the_hop_say_nothing_about_the_route(status: int) -> None:
    """A proxy or a redirect may go away."""
    server = Server(Response(status, b"<html>", is_own=False))
    with pytest.raises(Misdirected) as raised:
        await server.start()
    assert not isinstance(raised.value, RouteGone)


async def test_a_refusal_is_not_repaired() -> None:
    """A 400 that does not say that the span exists is a verdict on the write."""
    server = Server(error(400, "There was an error parsing the body"))
    with pytest.raises(Refused):
        await server.end()
    assert server.requests == [POST]


async def test_what_an_open_write_adds_may_be_unknown_for_a_while() -> None:
    """The read replica lags: the START is stored, so it is sent again and not given up."""
    server = Server(EXISTS, found(), UNKNOWN_ID)
    with pytest.raises(Unavailable):
        await server.start()

"""The Agentex sink: supplements, which add payloads to a span that is stored already."""

from typing import Any

import pytest

from sidecar.sinks import IdTaken, RouteGone, SinkError, Unavailable
from sidecar.sinks.http import Response
from tests.sinks.scripted_agentex import (
    EXISTS,
    GET,
    NOT_TOLD,
    OK,
    PATCH,
    POST,
    STARTS_AND_ENDS,
    UNKNOWN_ID,
    UNKNOWN_TASK,
    UNREADABLE,
    Server,
    Write,
    added,
    found,
)
from tests.support.spans import END_TIME

BODY: dict[str, Any] = {"trace_id": "t1", "input": {"q": 1}, "data": {"d": 1}}


async def test_of_a_span_that_was_opened() -> None:
    """It asks first what is missing, as the END may have come elsewhere; its END is a PATCH."""
    server = Server(OK, found())
    await server.start()
    assert await server.supplement() == [GET, PATCH]
    assert server.bodies[-1] == BODY
    assert await server.end() == [PATCH]


async def test_of_a_span_that_this_sink_did_not_open() -> None:
    """It asks first, each time, and remembers nothing: an END is still a POST."""
    server = Server(found(), OK, found())
    for _ in range(2):
        assert await server.supplement() == [GET, PATCH]
        assert server.bodies[-1] == BODY
    assert await server.end() == [POST]
    assert (server.repaired, server.failures) == ({}, [])


@pytest.mark.parametrize("end_time", [None, END_TIME])
@pytest.mark.parametrize("missing", ["input", "data"])
async def test_only_what_is_missing_is_added(missing: str, end_time: str | None) -> None:
    """Whether the span has ended or not; what is stored may be newer, even if it is empty."""
    stored: dict[str, Any] = {"input": {}, "output": {}, "data": {}, missing: None}
    server = Server(found(end_time=end_time, **stored))
    assert await server.supplement() == [GET, PATCH]
    assert server.bodies[-1] == {"trace_id": "t1", missing: BODY[missing]}


@pytest.mark.parametrize("end_time", [None, END_TIME])
async def test_nothing_is_sent_if_nothing_is_missing(end_time: str | None) -> None:
    """It is done: no PATCH, not even for its task."""
    server = Server(found(end_time=end_time, input={}, data=[]))
    assert await server.supplement(task_id="k") == [GET]
    assert (server.repaired, server.failures) == ({}, [])


async def test_of_a_span_that_can_not_be_addressed() -> None:
    """It is skipped, like an open write."""
    assert Server().sink.skips(added("a/b")) == "unaddressable_id"


async def test_it_has_the_task() -> None:
    """The open write may have been stored without it."""
    server = Server(found())
    await server.supplement(task_id="k", parent_id="p")
    assert server.bodies[-1] == {**BODY, "task_id": "k", "parent_id": "p"}


async def test_an_unknown_task_is_moved_into_its_data() -> None:
    """As for other writes; it asks again."""
    server = Server(found(), UNKNOWN_TASK, found())
    assert await server.supplement(task_id="k") == [GET, PATCH, GET, PATCH]
    assert server.bodies[-1] == {**BODY, "data": {"task_id": "k", "d": 1}}
    assert (server.repaired, server.failures) == ({"unknown_task": 1}, [])
    server = Server(found(), UNKNOWN_TASK, found())
    assert await server.supplement(task_id="k", data=b"") == [GET, PATCH, GET, PATCH]
    assert server.bodies[-1] == {**BODY, "data": {"task_id": "k"}}


# Whose span it is.


@pytest.mark.parametrize("other", [found("t2"), found("t2", "s2"), found("t1", "s2")])
async def test_the_span_of_another_trace_is_not_touched(other: Response) -> None:
    """The supplement is a dead letter, as what it follows is."""
    server = Server(other)
    with pytest.raises(IdTaken) as raised:
        await server.supplement()
    assert (raised.value.dead_letter, server.requests) == ("id_taken", [GET])
    assert server.failures == []


@STARTS_AND_ENDS
async def test_it_follows_a_write_whose_id_was_taken(write: Write) -> None:
    """That write was not accepted, so the span is not taken for ours."""
    server = Server(EXISTS, found("t2"), found("t2"))
    with pytest.raises(IdTaken):
        await write(server)
    with pytest.raises(IdTaken):
        await server.supplement()
    assert server.requests == [POST, GET, GET]


@pytest.mark.parametrize("untold", NOT_TOLD)
async def test_a_server_that_does_not_tell_whose_span_it_is(untold: Response) -> None:
    """It is taken for ours: other servers may not have this route."""
    server = Server(untold)
    assert await server.supplement() == [GET, PATCH]
    assert server.failures == []


@UNREADABLE
async def test_a_span_whose_trace_can_not_be_read_is_tried_again(
    response: Response, decision: type[SinkError]
) -> None:
    """It is a failure like any other, never a verdict on the supplement, and nothing is changed."""
    server = Server(response)
    with pytest.raises(SinkError) as raised:
        await server.supplement()
    assert (type(raised.value), raised.value.about_content) == (decision, False)
    assert (server.requests, raised.value.retry_after) == ([GET], response.retry_after)


# A span that is not there.


async def test_it_creates_nothing() -> None:
    """It is tried again, as its open write may be stored by then, and never a POST."""
    server = Server(UNKNOWN_ID, UNKNOWN_ID)
    with pytest.raises(Unavailable) as raised:
        await server.supplement()
    assert raised.value.status == 404
    assert server.requests == [GET, PATCH]
    assert (server.repaired, server.failures) == ({}, [])


async def test_a_span_that_was_opened_may_be_unknown_for_a_while() -> None:
    """The server's replica lags behind; the span is still remembered."""
    server = Server(OK, UNKNOWN_ID, UNKNOWN_ID, found())
    await server.start()
    with pytest.raises(Unavailable) as raised:
        await server.supplement()
    assert not isinstance(raised.value, RouteGone)
    assert await server.supplement() == [GET, PATCH]
    assert await server.end() == [PATCH]


@pytest.mark.parametrize("status", [404, 405])
async def test_a_server_without_a_spans_api(status: int) -> None:
    """It does not tell whose span it is, and then has no route for the PATCH either."""
    gone = Response(status, b'{"detail":"Not Found"}')
    server = Server(gone, gone)
    with pytest.raises(RouteGone):
        await server.supplement()
    assert server.requests == [GET, PATCH]

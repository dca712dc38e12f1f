"""The Agentex sink: what the server does not accept as it is, and how it is sent again."""

import pytest

from sidecar.sinks import SinkError, Unavailable
from sidecar.sinks.http import Response
from sidecar.telemetry.outcomes import REPAIR_REASONS
from tests.sinks.scripted_agentex import (
    EXISTS,
    FAILED,
    GET,
    NO_ROUTE,
    OK,
    PATCH,
    POST,
    UNKNOWN_ID,
    UNKNOWN_TASK,
    Server,
    error,
    found,
)
from tests.support.spans import END_TIME

# What Python says when the server merges `data`; the server's own text is around it.
NOT_MERGED = [
    "AttributeError: 'list' object has no attribute 'update'",
    "ValueError: dictionary update sequence element #0 has length 1; 2 is required",
    "TypeError: cannot convert dictionary update sequence element #0 to a sequence",
]
OTHER_500S = [
    Response(500),
    Response(500, None),
    Response(500, b"<html>", is_own=False),
    error(500, "sqlalchemy.exc.TimeoutError: QueuePool limit of size 10 overflow 20 reached"),
    error(500, "AttributeError: 'NoneType' object has no attribute 'items'"),
]
# A 500 whose message a proxy has removed or replaced.
HIDDEN = OTHER_500S[:3]
DATA_AGAIN = {"d": 1}


async def opened(*replies: Response) -> Server:
    """A server that has accepted an open write, and then gives these responses."""
    server = Server(OK, *replies)
    await server.start()
    return server


# `data` that the server can't merge.


@pytest.mark.parametrize("text", NOT_MERGED)
async def test_data_that_can_not_be_merged_is_left_out(text: str) -> None:
    """The rest of the END is stored: sent once more, without `data`."""
    server = await opened(error(500, text))
    assert await server.end(task_id="k") == [PATCH, PATCH]
    first, second = server.bodies[1:]
    assert first.pop("data") == DATA_AGAIN
    assert second == first
    assert (second["output"], second["end_time"], second["task_id"]) == ({"a": 2}, END_TIME, "k")
    assert (server.repaired, server.failures) == ({"data_not_merged": 1}, [])
    assert await server.end() == [POST]  # the span is no longer open


async def test_the_data_of_a_supplement_that_can_not_be_merged_is_left_out() -> None:
    """Its other payloads are stored, if the server did not show that it has `data`."""
    server = Server(NO_ROUTE, error(500, NOT_MERGED[0]))
    assert await server.supplement() == [GET, PATCH, PATCH]
    assert server.bodies[-1] == {"trace_id": "t1", "input": {"q": 1}}
    assert server.repaired == {"data_not_merged": 1}


async def test_data_is_left_out_where_it_is_stored_already() -> None:
    """The response to an END's POST was lost; its list can't be merged into itself."""
    server = Server(EXISTS, found(), error(500, NOT_MERGED[0]))
    assert await server.end(data=b'[{"d":1}]') == [POST, GET, PATCH, PATCH]
    assert server.repaired == {"exists": 1, "data_not_merged": 1}


@pytest.mark.parametrize("response", [FAILED, error(500, NOT_MERGED[1]), Response(422)])
async def test_without_data_it_may_fail_as_well(response: Response) -> None:
    """That is the outcome: no third request, and the span is still open."""
    server = await opened(error(500, NOT_MERGED[0]), response)
    with pytest.raises(SinkError) as raised:
        await server.end()
    assert raised.value.status == response.status
    assert server.requests == [POST, PATCH, PATCH]
    assert await server.end() == [PATCH]


@pytest.mark.parametrize("response", OTHER_500S)
async def test_other_errors_are_not_about_data(response: Response) -> None:
    """No second request: any of them may be about anything."""
    server = await opened(response)
    with pytest.raises(Unavailable):
        await server.end()
    assert server.requests == [POST, PATCH]
    assert server.repaired == {}


async def test_without_data_nothing_can_be_left_out() -> None:
    """The same request would fail again."""
    server = await opened(error(500, NOT_MERGED[0]))
    with pytest.raises(Unavailable):
        await server.end(data=b"")
    assert server.requests == [POST, PATCH]
    assert server.repaired == {}


@pytest.mark.parametrize("status", [400, 503])
async def test_only_a_500_is_about_merging(status: int) -> None:
    """The text alone says nothing: a prompt may have it."""
    server = await opened(error(status, NOT_MERGED[0]))
    with pytest.raises(SinkError):
        await server.end()
    assert server.requests == [POST, PATCH]


# Tasks that the server does not know.


async def test_an_unknown_task_is_moved_into_data() -> None:
    """Of a POST, and of a PATCH."""
    server = Server(UNKNOWN_TASK)
    assert await server.end(task_id="k") == [POST, POST]
    assert [body["task_id"] for body in server.bodies] == ["k", None]
    assert server.bodies[1]["data"] == {"task_id": "k", "d": 1}
    assert (server.repaired, server.failures) == ({"unknown_task": 1}, [])
    server = await opened(UNKNOWN_TASK)
    assert await server.end(task_id="k") == [PATCH, PATCH]
    assert "task_id" not in server.bodies[-1]
    assert server.bodies[-1]["data"] == {"task_id": "k", "d": 1}


async def test_an_unknown_task_of_an_open_write_is_left_to_its_end() -> None:
    """The open write has no `data`; its END has, and the task with it."""
    server = Server(UNKNOWN_TASK, OK, UNKNOWN_TASK)
    assert await server.start(task_id="k") == [POST, POST]
    assert (server.bodies[1]["task_id"], server.bodies[1]["data"]) == (None, None)
    assert await server.end(task_id="k") == [PATCH, PATCH]
    assert server.bodies[-1]["data"] == {"task_id": "k", "d": 1}
    assert server.repaired == {"unknown_task": 2}


# Failures that a proxy hides.


@pytest.mark.parametrize("suspicion", [3, 5, 8])
async def test_suspicion_alone_changes_nothing(suspicion: int) -> None:
    """The cause may be over: the first request is whole, whatever happened before."""
    server = await opened(found())
    assert await server.supplement(suspicion=suspicion, task_id="k") == [GET, PATCH]
    assert await server.end(suspicion=suspicion, task_id="k") == [PATCH]
    assert await server.end(suspicion=suspicion, task_id="k") == [POST]
    sent = [(body["task_id"], body["data"]) for body in server.bodies[2:]]
    assert sent == [("k", DATA_AGAIN)] * 3
    assert server.repaired == {}


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("suspicion", [3, 4])
async def test_after_three_failures_a_500_may_be_about_the_task(
    suspicion: int, hidden: Response
) -> None:
    """Of a POST and of a PATCH: sent once more, with the task in `data`."""
    server = Server(hidden)
    assert await server.end(suspicion=suspicion, task_id="k") == [POST, POST]
    assert [body["task_id"] for body in server.bodies] == ["k", None]
    assert server.bodies[-1]["data"] == {"task_id": "k"} | DATA_AGAIN
    assert (server.repaired, server.failures) == ({"unknown_task": 1}, [500])
    server = await opened(hidden)
    assert await server.end(suspicion=suspicion, task_id="k") == [PATCH, PATCH]
    assert "task_id" not in server.bodies[-1]
    assert server.bodies[-1]["data"] == {"task_id": "k"} | DATA_AGAIN


@pytest.mark.parametrize("hidden", HIDDEN)
async def test_after_five_failures_a_500_may_be_about_data(hidden: Response) -> None:
    """A PATCH is sent once more without it; the task stays where it is."""
    server = await opened(hidden)
    assert await server.end(suspicion=5, task_id="k") == [PATCH, PATCH]
    first, second = server.bodies[1:]
    assert first.pop("data") == DATA_AGAIN
    assert second == first
    assert (second["task_id"], second["output"]) == ("k", {"a": 2})
    assert (server.repaired, server.failures) == ({"data_not_merged": 1}, [500])


async def test_after_five_failures_it_may_be_about_either_or_both() -> None:
    """First `data` is left out, then the task is moved; in the end there is neither."""
    server = await opened(Response(500), Response(500))
    assert await server.end(suspicion=5, task_id="k") == [PATCH] * 3
    assert "task_id" not in server.bodies[-1]
    assert server.bodies[-1]["data"] == {"task_id": "k"} | DATA_AGAIN
    assert server.repaired == {"data_not_merged": 1, "unknown_task": 1}
    server = await opened(*[Response(500)] * 3)
    assert await server.end(suspicion=5, task_id="k") == [PATCH] * 4
    assert not {"task_id", "data"} & server.bodies[-1].keys()
    assert server.repaired == {"data_not_merged": 2, "unknown_task": 1}


@pytest.mark.parametrize(("suspicion", "requests"), [(2, 1), (3, 2), (4, 2), (5, 4), (8, 4)])
async def test_a_500_that_stays_is_a_failure(suspicion: int, requests: int) -> None:
    """After as many requests as there are repairs to try; the span is still open."""
    server = await opened(*[Response(500)] * requests)
    with pytest.raises(Unavailable) as raised:
        await server.end(suspicion=suspicion, task_id="k")
    assert raised.value.status == 500
    assert server.requests[1:] == [PATCH] * requests
    assert await server.end() == [PATCH]


@pytest.mark.parametrize("response", [FAILED, Response(422), Response(401), Response(429)])
async def test_only_a_500_hides_anything(response: Response) -> None:
    """Other statuses say what they mean."""
    server = await opened(response)
    with pytest.raises(SinkError):
        await server.end(suspicion=8, task_id="k")
    assert server.requests == [POST, PATCH]
    assert server.repaired == {}


async def test_a_500_of_a_write_without_a_task_or_data() -> None:
    """There is nothing to leave out; nor is there `data` to merge in a POST."""
    server = await opened(Response(500), Response(500))
    with pytest.raises(Unavailable):
        await server.end(suspicion=8, data=b"")
    with pytest.raises(Unavailable):
        await server.end("s2", suspicion=8)
    assert server.requests == [POST, PATCH, POST]
    assert server.repaired == {}


async def test_a_hidden_failure_of_a_span_that_exists() -> None:
    """Its PATCH is sent once more without `data`."""
    server = Server(EXISTS, found(), Response(500))
    assert await server.end(suspicion=5) == [POST, GET, PATCH, PATCH]
    assert "data" not in server.bodies[-1]
    assert server.repaired == {"exists": 1, "data_not_merged": 1}


async def test_a_hidden_failure_of_a_supplement() -> None:
    """It is written without its `data`, rather than not at all."""
    server = await opened(found(), Response(500))
    assert await server.supplement(suspicion=5) == [GET, PATCH, PATCH]
    assert server.bodies[-1] == {"trace_id": "t1", "input": {"q": 1}}
    assert server.repaired == {"data_not_merged": 1}


async def test_a_hidden_failure_of_an_open_write() -> None:
    """Its task is left to its END."""
    server = Server(Response(500))
    assert await server.start(suspicion=3, task_id="k") == [POST, POST]
    assert (server.bodies[-1]["task_id"], server.bodies[-1]["data"]) == (None, None)
    assert await server.end() == [PATCH]


async def test_a_task_is_moved_only_once() -> None:
    """A server that still names the task means something else."""
    server = await opened(UNKNOWN_TASK, UNKNOWN_TASK)
    with pytest.raises(Unavailable):
        await server.end(suspicion=3, task_id="k")
    assert server.requests == [POST, PATCH, PATCH]
    assert server.repaired == {"unknown_task": 1}


async def test_repairs_are_counted_by_reason() -> None:
    """There is no other reason."""
    server = await opened(UNKNOWN_TASK, UNKNOWN_ID, EXISTS, found(), error(500, NOT_MERGED[0]))
    assert await server.end(task_id="k") == [PATCH, PATCH, POST, GET, PATCH, PATCH]
    assert server.repaired == dict.fromkeys(REPAIR_REASONS, 1)

"""One span, `s`, whose END changes `data`, by the routes on which it can reach Agentex."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from tests.support.faults import Json, World, end, span, start

# `data` of a START and of its END. Merged by the server, each END would lose what it says.
PAIRS = [
    ([{"a": 1}], {"k": 1}),
    ([{"a": 1}], [{"a": 1}, {"b": 2}]),
    ({"k": 1}, [{"a": 1}]),
    ([{"a": 1}], []),
    ({"a": 1}, {}),
    ({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}, "z": None}),
    ({"k": 1}, [{"a": 1, "b": 2}]),  # the server takes the list for pairs: {"k": 1, "a": "b"}
    (None, {"k": 1}),
    (None, [{"a": 1}]),
]
Post: TypeAlias = Callable[[World, Json], Awaitable[None]]


async def event(w: World, of: Json) -> None:
    """Post an event."""
    await w.post(start(of) if of["end_time"] is None else end(of))


async def request_of_the_sdk(w: World, of: Json) -> None:
    """Post what the SDK sends to Agentex itself: a START is a POST, its END a PATCH."""
    method, path = ("POST", "/spans") if of["end_time"] is None else ("PATCH", "/spans/s")
    assert (await w.running.request(method, path, json=of)).status == 200


each_route = pytest.mark.parametrize("post", [event, request_of_the_sdk])


def started(data: object = None, **fields: Any) -> Json:
    """A START."""
    return span("s", end_time=None, output=None, data=data, **fields)


def ended(data: object, **fields: Any) -> Json:
    """An END."""
    return span("s", data=data, **fields)

"""Connections are replaced: after a while, and after what may be the connection's own fault."""

import asyncio

import pytest

from sidecar.http.client import TRUST_S
from sidecar.sinks import Unavailable
from sidecar.sinks.http import Response
from tests.support.faults import fast, now
from tests.support.upstream_connection import (
    DONE,
    AcceptedConnection,
    RawUpstream,
    new_http_client,
    on_both_loops,
    raw_upstream,
)

FAILURE = b"HTTP/1.1 %b X\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


async def two_idle_connections(
    upstream: RawUpstream,
) -> tuple[AcceptedConnection, AcceptedConnection]:
    """Two connections that have served a request each, and are idle."""
    sending = upstream.send(), upstream.send()
    first, second = await upstream.accept(), await upstream.accept()
    await first.serve()
    await second.serve()
    await asyncio.gather(*sending)
    return first, second


async def used(upstream: RawUpstream, connection: AcceptedConnection) -> bool:
    """Whether the next request uses `connection`, and not a new one."""
    sending = upstream.send()
    serving = asyncio.create_task(connection.serve())
    accepting = asyncio.create_task(upstream.accept())
    await asyncio.wait([serving, accepting], return_when=asyncio.FIRST_COMPLETED)
    if serving.done() and serving.exception() is not None:  # the client has closed it
        await accepting
    is_new = accepting.done()
    if is_new:
        await accepting.result().serve()
    for task in (serving, accepting):
        task.cancel()
    await asyncio.wait([serving, accepting])
    assert await sending == DONE
    return not is_new


@fast
async def test_a_connection_has_a_maximum_age() -> None:
    """However often it is used, it is replaced after four fifths of the age, or up to all of it."""
    async with raw_upstream() as upstream:
        upstream.client._http = new_http_client(upstream.url, max_age_s=100.0)
        connection, began = await upstream.idle_connection(), now()
        while await used(upstream, connection):  # noqa: ASYNC110 (in virtual time)
            await asyncio.sleep(1.0)
        assert 80.0 <= now() - began <= 102.0


async def test_ages_differ() -> None:
    """The connections of many sidecars are not replaced at the same moment."""
    async with raw_upstream() as upstream:
        http = new_http_client(upstream.url)
        upstream.client._http = http
        sending = [upstream.send() for _ in range(4)]
        for _ in sending:
            await (await upstream.accept()).serve()
        await asyncio.gather(*sending)
        assert len({round(one.usable_until, 1) for one in http._connections}) > 1


@pytest.mark.parametrize(
    ("status", "is_kept"),
    [
        (b"200", True),
        (b"400", True),  # about what was sent
        (b"413", True),
        (b"401", False),
        (b"404", False),
        (b"421", False),
        (b"500", False),
        (b"503", False),
    ],
)
@on_both_loops
async def test_after_a_failure(status: bytes, is_kept: bool) -> None:
    """The next request is not sent on a connection that may lead to the wrong server."""
    async with raw_upstream() as upstream:
        first, second = await two_idle_connections(upstream)
        failing = upstream.send()
        serving = [asyncio.create_task(each.serve(FAILURE % status)) for each in (first, second)]
        await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
        (answered,) = [n for n, each in enumerate(serving) if each.done()]
        response = await failing
        assert isinstance(response, Response)
        serving[1 - answered].cancel()
        await asyncio.wait(serving)
        assert await used(upstream, (first, second)[answered]) is is_kept


@on_both_loops
async def test_a_step_of_an_exchange_is_no_failure() -> None:
    """A status that a sink expects leaves the connection in use."""
    async with raw_upstream() as upstream:
        connection = await upstream.idle_connection()
        client = upstream.client
        sending = asyncio.create_task(
            client.request(b"POST", client.target("/"), b"{}", expected=lambda _: True)
        )
        await connection.serve(FAILURE % b"500")
        assert (await sending).status == 500
        assert await used(upstream, connection)


@on_both_loops
async def test_after_a_reset() -> None:
    """Other connections to a server that resets one are not trusted, either."""
    async with raw_upstream() as upstream:
        first, second = await two_idle_connections(upstream)
        failing = upstream.send()
        serving = [asyncio.create_task(each.request()) for each in (first, second)]
        await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
        (asked,) = [n for n, each in enumerate(serving) if each.done()]
        (first, second)[asked].writer.write(b"HTTP/1.1 500 X\r\nContent-Length: 9\r\n\r\n")
        await upstream.received(1)
        (first, second)[asked].reset()
        with pytest.raises(Unavailable):
            await failing
        serving[1 - asked].cancel()
        await asyncio.wait(serving)
        assert not await used(upstream, (first, second)[1 - asked])


@fast
async def test_failures_that_follow_each_other() -> None:
    """All idle connections end at most once a second; later, only the one that failed."""
    async with raw_upstream() as upstream:
        http = upstream.client._http
        for expected in (0, 1, 0):
            await two_idle_connections(upstream)
            assert len(http._connections) == 2
            http.distrust()
            await asyncio.sleep(0.1)
            assert len(http._connections) == expected
            if expected:
                http.distrust()  # the one that is left
                await asyncio.sleep(TRUST_S)

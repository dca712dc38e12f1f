"""Idle connections are closed."""

import asyncio

from tests.support.world import running_app


async def test_half_a_head_does_not_stay_forever() -> None:
    """A connection with an incomplete head is closed after `idle_s`; new ones are accepted."""
    async with running_app() as app:
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        writer.write(b"POST /v1/spans HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        listener = app.app.listener
        now = asyncio.get_running_loop().time()
        async with app.client.get(f"{app.url}/readyz") as response:
            assert response.status == 200
        listener.sweep(now)  # sees both connections
        listener.sweep(now + listener.idle_s / 2)
        assert not reader.at_eof()
        listener.sweep(now + listener.idle_s + 1)
        assert await reader.read() == b""
        writer.close()
        async with app.client.get(f"{app.url}/readyz") as response:
            assert response.status == 200

"""`sidecar replay --to`: the size of its requests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from sidecar.config import ListenerConfig
from sidecar.operate import replay
from sidecar.sinks import TooLarge
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.spans.span import Lanes, SdkFields
from tests.support.spans import make_span


@asynccontextmanager
async def listener(sizes: list[int]) -> AsyncIterator[str]:
    """The URL of a server that accepts everything and appends the size of each body to `sizes`."""

    async def handle(request: web.BaseRequest) -> web.Response:
        sizes.append(len(await request.content.read()))
        return web.json_response({})

    runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
@pytest.mark.parametrize("sdk", [None, SdkFields(Lanes.SGP)])
async def test_requests_fit_into_the_listener(tmp_path: Path, sdk: SdkFields | None) -> None:
    """Fifty large letters do not share a request, as small ones do, and none is left out."""
    file = tmp_path / "letters.jsonl"
    dead = DeadLetters(str(file), 2**30)
    for number in range(70):
        payload = b'"%b"' % (b"x" * (700_000 if number < 50 else 7))
        dead.add("sgp", make_span(f"s{number}", sdk=sdk, input=payload), "too_large", TooLarge("x"))
    sizes: list[int] = []
    async with listener(sizes) as url:
        done = await replay.through(str(file), None, url)
    assert dict(+done) == {"accepted": 70}
    assert len(sizes) < 70
    assert max(sizes) <= ListenerConfig().max_body

"""The lifecycle of the process."""

import asyncio
import gc
from collections.abc import Callable, Sequence

import aiohttp
import pytest

from sidecar.app import App
from sidecar.config_load import load
from sidecar.drain.retry_queue import Batch
from sidecar.process.addresses import listen
from tests.support.spans import make_event
from tests.support.spool import until
from tests.support.world import NOWHERE, running_app, upstream

ENVIRON = {
    "AGENTEX_BASE_URL": NOWHERE,
    "SIDECAR_LISTENER__PORT": "0",
    "SIDECAR_ADMIN__PORT": "0",
    "SIDECAR_ADMIN__HOST": "127.0.0.1",
    "SIDECAR_SHUTDOWN__QUIET_S": "0",
}


async def test_a_bug_in_a_callback_ends_the_process() -> None:
    """The exception propagates from `run`, and Kubernetes restarts the container (D13)."""
    app = App(load(None, ENVIRON), ENVIRON)
    started = asyncio.Event()
    running = asyncio.create_task(app.run(started))
    await started.wait()

    def bug() -> None:
        raise ZeroDivisionError

    asyncio.get_running_loop().call_soon(bug)
    with pytest.raises(ExceptionGroup) as caught:
        await running
    assert caught.value.subgroup(ZeroDivisionError)


async def test_stop_before_any_event() -> None:
    """`run` ends without loss, and a second `stop` afterwards is harmless."""
    app = App(load(None, ENVIRON), ENVIRON)
    started = asyncio.Event()
    running = asyncio.create_task(app.run(started))
    await started.wait()
    app.stop()
    assert await running
    app.stop()


async def test_readiness_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The admin port says so only once events are accepted; the process lives before that."""
    seen: list[tuple[str, int]] = []
    ports: dict[str, int] = {}

    async def watched(
        connect: Callable[[], asyncio.BaseProtocol], hosts: Sequence[str | None], port: int
    ) -> tuple[list[asyncio.Server], int]:
        if ports:  # the admin port is open, the agents' port not yet
            async with aiohttp.ClientSession(f"http://127.0.0.1:{ports['admin']}") as session:
                for path in ("/livez", "/readyz"):
                    async with session.get(path) as response:
                        seen.append((path, response.status))
        servers, ports["admin"] = await listen(connect, hosts, port)
        return servers, ports["admin"]

    monkeypatch.setattr("sidecar.app.listen", watched)
    async with running_app() as app, app.client.get(app.admin_url + "/readyz") as response:
        assert response.status == 200
    assert seen == [("/livez", 200), ("/readyz", 503)]


async def test_forwarded_spans_are_released() -> None:
    """An idle lane keeps no reference to what it forwarded: memory is freed after a burst."""
    async with upstream() as agentex, running_app({"AGENTEX_BASE_URL": agentex.url}) as app:
        events = [make_event(f"sent-{number}", kind="end") for number in range(20)]
        await app.post(events)
        await until(lambda: len(agentex.requests) == len(events))

        def kept() -> bool:
            gc.collect()
            batches = [each for each in gc.get_objects() if isinstance(each, Batch)]
            return any(span.id.startswith("sent-") for each in batches for span in each.spans)

        await until(lambda: not kept())

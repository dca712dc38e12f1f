"""The operators' side: `/metrics`, `/livez`, `/readyz`, `/status`, on the pod's address.

Read only. Ready means that the listener takes events; it does not depend on the upstreams, so that
an outage there never takes agents out of service (design.md D11, D12).
"""

from collections.abc import Callable
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST


def application(
    registry: CollectorRegistry, status: Callable[[], dict[str, Any]], ready: Callable[[], bool]
) -> web.Application:
    """The admin port's application."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_: web.Request) -> web.Response:
        if ready():
            return web.Response(text="ready\n")
        return web.Response(status=503, text="the listener does not take events\n")

    async def status_(_: web.Request) -> web.Response:
        body = orjson.dumps(status(), option=orjson.OPT_INDENT_2)
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/status", status_)
    return app

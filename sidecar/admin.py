"""The operators' side, on the pod's address: metrics, probes, `/status`, and the page at `/`.

Read only. Ready means that the listener takes events; it does not depend on the upstreams, so that
an outage there never takes agents out of service (design.md D11, D12).

Any `Host` is answered: people come through port forwards, probes by address. So a web page that
points its own name at this port could read what is here: counts, ages, error kinds and the
configuration without secrets, never a span; and it could change nothing.
"""

from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_PAGE = Path(__file__).parent / "status_page"
_DIGITS = 18
_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _NOTHING,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def application(
    registry: CollectorRegistry,
    status: Callable[[], dict[str, Any]],
    history: Callable[[int], dict[str, Any]],
    *,
    about: Callable[[str], dict[str, Any]],
    ready: Callable[[], bool],
) -> web.Application:
    """The admin port's application.

    `history` gives samples from a number on, `about` what is known of a span by its id.
    """
    answers = _Answers(registry, status, history, about, ready)
    app = web.Application()
    app.on_response_prepare.append(_protect)
    app.router.add_get("/", answers.page)
    app.router.add_get("/metrics", answers.metrics)
    app.router.add_get("/livez", answers.livez)
    app.router.add_get("/readyz", answers.readyz)
    app.router.add_get("/status", answers.status)
    app.router.add_get("/status/history", answers.history)
    app.router.add_get("/explain", answers.explain)
    return app


async def _protect(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)


class _Answers:
    """One method for each path."""

    def __init__(
        self,
        registry: CollectorRegistry,
        status: Callable[[], dict[str, Any]],
        history: Callable[[int], dict[str, Any]],
        about: Callable[[str], dict[str, Any]],
        ready: Callable[[], bool],
    ) -> None:
        self._about = about
        self._registry = registry
        self._status = status
        self._history = history
        self._ready = ready
        self._text, self._policy = _page()

    async def page(self, _: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": self._policy}
        return web.Response(text=self._text, content_type="text/html", headers=headers)

    async def metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def livez(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(self, _: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ready\n")
        return web.Response(status=503, text="the listener does not take events\n")

    async def status(self, _: web.Request) -> web.Response:
        body = orjson.dumps(self._status(), option=orjson.OPT_INDENT_2)
        return web.Response(body=body, content_type="application/json")

    async def history(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        if not (after.isascii() and after.isdigit() and len(after) <= _DIGITS):
            return web.Response(status=400, text="after: the number of a sample\n")
        body = orjson.dumps(self._history(int(after)))
        return web.Response(body=body, content_type="application/json")

    async def explain(self, request: web.Request) -> web.Response:
        id_ = request.query.get("id", "")
        if not id_:
            return web.Response(status=400, text="id: the id of a span\n")
        return web.Response(body=orjson.dumps(self._about(id_)), content_type="application/json")


def _page() -> tuple[str, str]:
    """The page with its style and scripts inside, and the policy that allows just these."""
    page = (_PAGE / "page.html").read_text()
    hashes: dict[str, list[str]] = {"style": [], "script": []}
    for kind, name in (("style", "page.css"), ("script", "charts.js"), ("script", "page.js")):
        text = (_PAGE / name).read_text()
        page = page.replace(f"<{kind} src={name}></{kind}>", f"<{kind}>{text}</{kind}>")
        hashes[kind].append(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'")
    allowed = "; ".join(f"{kind}-src {' '.join(them)}" for kind, them in hashes.items())
    # The icon changes with the answers: an image made by the page.
    extra = "connect-src 'self'; img-src data:; require-trusted-types-for 'script'"
    return page, f"{_NOTHING}; {allowed}; {extra}"

"""The admin port: metrics, probes, `/status`, `/explain`, and the status page at `/`.

Read only, on the pod's address. Readiness means that the listener accepts events. It does not
depend on the upstreams, so an outage there never takes agents out of service (D11, D12).

Any `Host` is accepted: people use port forwards, probes use the address. A web page that rebinds
its own DNS name to this port could therefore read counts, ages, error kinds and the configuration
without secrets. It could read no span, and change nothing.
"""

import asyncio
from base64 import b64encode
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import parse_qsl

import orjson
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sidecar.http.messages import TEXT, Discard, Flow, Receiver, Request, Response
from sidecar.http.server import HttpServer

# Longer than Prometheus' default scrape interval, so that the next scrape reuses its connection.
IDLE_S = 75.0
BODY_S = 10.0
MAX_CONNECTIONS = 256
# Half of the places can wait for an expensive page; the others are for probes and new connections.
MAX_WAITING = MAX_CONNECTIONS // 2
# After an expensive page, its cost is left to the agents this many times over.
AGENTS_SHARE = 3
_PAGE = Path(__file__).parent / "page"
_MAX_DIGITS = 18
_JSON = "application/json; charset=utf-8"
_DENY_ALL = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_POLICY = "Content-Security-Policy"
_HEADERS = [
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
]


Query = Mapping[str, str]
Handler = Callable[[Query], Response]


def admin_server(
    registry: CollectorRegistry,
    status: Callable[[], dict[str, Any]],
    history: Callable[[int], dict[str, Any]],
    *,
    about: Callable[[str], dict[str, Any]],
    ready: Callable[[], bool],
    crowded: Callable[[], None],
) -> HttpServer:
    """Return the admin port's server; call it inside a running loop.

    `history` returns the samples from a given number on, `about` what is known about a span id.
    """
    pages = _Pages(registry, status, history, about, ready)
    service = AdminService(
        cheap={"/": pages.page, "/livez": pages.livez, "/readyz": pages.readyz},
        expensive={
            "/metrics": pages.metrics,
            "/status": pages.status,
            "/status/history": pages.history,
            "/explain": pages.explain,
        },
    )
    return HttpServer(
        service.receive,
        max_connections=MAX_CONNECTIONS,
        idle_s=IDLE_S,
        body_s=BODY_S,
        refused=lambda status, error: _secured(Response(status, f"{error}\n".encode())),
        crowded=crowded,
        failed=service.log_bug,
    )


class AdminService:
    """Answers GET and HEAD by path. Expensive handlers take turns with the agents' requests.

    A handler blocks the loop for milliseconds, so one runs at a time, and then the loop is left to
    the agents for `AGENTS_SHARE` times as long: operators can use a quarter of it at most.
    """

    def __init__(self, *, cheap: Mapping[str, Handler], expensive: Mapping[str, Handler]) -> None:
        self._cheap, self._expensive = cheap, expensive
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._next_turn = 0.0  # loop time
        self._waiting = 0

    def receive(self, request: Request, _: Flow) -> Receiver:
        """The service of the admin port (http/messages.py)."""
        cheap = self._cheap.get(request.path)
        handler = cheap or self._expensive.get(request.path)
        if handler is None:
            return _answered(Response(HTTPStatus.NOT_FOUND, b"no such path\n"))
        if request.method not in {"GET", "HEAD"}:
            allow = [("Allow", "GET, HEAD")]
            return _answered(Response(HTTPStatus.METHOD_NOT_ALLOWED, b"use GET\n", TEXT, allow))
        if cheap is not None:
            return Discard(partial(self._handle, cheap, request))
        if self._waiting >= MAX_WAITING:
            retry = [("Retry-After", "1")]
            busy = b"too many requests are waiting\n"
            return _answered(Response(HTTPStatus.SERVICE_UNAVAILABLE, busy, TEXT, retry))
        return Discard(partial(self._handle_in_turn, handler, request))

    async def _handle_in_turn(self, handler: Handler, request: Request) -> Response:
        self._waiting += 1
        try:
            async with self._turn:
                await asyncio.sleep(self._next_turn - self._loop.time())
                started = perf_counter()
                response = self._handle(handler, request)
                cost = perf_counter() - started
                self._next_turn = self._loop.time() + AGENTS_SHARE * cost
                return response
        finally:
            self._waiting -= 1

    def _handle(self, handler: Handler, request: Request) -> Response:
        query = parse_qsl(request.target.partition("?")[2], keep_blank_values=True)
        try:
            return _secured(handler(dict(reversed(query))))
        except Exception as bug:  # noqa: BLE001 (observing the sidecar must never stop it)
            self.log_bug(bug, f"the handler of {request.path}")
            return _secured(Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"see the log\n"))

    def log_bug(self, bug: BaseException, what: str = "an admin connection") -> None:
        """Log an exception that ends a request, but never the process (D13)."""
        context = {"message": f"{what} failed", "exception": bug}
        self._loop.call_exception_handler(context)


def _answered(response: Response) -> Receiver:
    return Discard(_secured(response))


def _secured(response: Response) -> Response:
    """Add the headers that every response has; the page has its own policy."""
    headers = [*_HEADERS, *response.headers]
    if all(name != _POLICY for name, _ in response.headers):
        headers.append((_POLICY, _DENY_ALL))
    return response._replace(headers=headers)


class _Pages:
    """One method per path."""

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

    def page(self, _: Query) -> Response:
        headers = [(_POLICY, self._policy)]
        return Response(HTTPStatus.OK, self._text.encode(), "text/html; charset=utf-8", headers)

    def metrics(self, _: Query) -> Response:
        return Response(HTTPStatus.OK, generate_latest(self._registry), CONTENT_TYPE_LATEST)

    def livez(self, _: Query) -> Response:
        return Response(HTTPStatus.OK, b"alive\n")

    def readyz(self, _: Query) -> Response:
        if self._ready():
            return Response(HTTPStatus.OK, b"ready\n")
        text = b"the listener does not accept events\n"
        return Response(HTTPStatus.SERVICE_UNAVAILABLE, text)

    def status(self, _: Query) -> Response:
        body = orjson.dumps(self._status(), option=orjson.OPT_INDENT_2)
        return Response(HTTPStatus.OK, body, _JSON)

    def history(self, query: Query) -> Response:
        after = query.get("after", "0")
        if not (after.isascii() and after.isdigit() and len(after) <= _MAX_DIGITS):
            return _bad_request(b"after: expected a sample number\n")
        return Response(HTTPStatus.OK, orjson.dumps(self._history(int(after))), _JSON)

    def explain(self, query: Query) -> Response:
        id_ = query.get("id", "")
        if not id_:
            return _bad_request(b"id: expected a span id\n")
        return Response(HTTPStatus.OK, orjson.dumps(self._about(id_)), _JSON)


def _bad_request(text: bytes) -> Response:
    return Response(HTTPStatus.BAD_REQUEST, text)


def _page() -> tuple[str, str]:
    """Return the page with style and scripts inlined, and a CSP that allows only these."""
    page = (_PAGE / "page.html").read_text()
    hashes: dict[str, list[str]] = {"style": [], "script": []}
    for kind, name in (
        ("style", "page.css"),
        ("script", "charts.js"),
        ("script", "widgets.js"),
        ("script", "page.js"),
    ):
        text = (_PAGE / name).read_text()
        page = page.replace(f"<{kind} src={name}></{kind}>", f"<{kind}>{text}</{kind}>")
        hashes[kind].append(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'")
    allowed = "; ".join(f"{kind}-src {' '.join(sources)}" for kind, sources in hashes.items())
    # data: is for the icon, which the page draws itself in the color of the worst answer.
    extra = "connect-src 'self'; img-src data:; require-trusted-types-for 'script'"
    return page, f"{_DENY_ALL}; {allowed}; {extra}"

"""The admin port: metrics, probes, `/status`, `/explain`, `/debug`, and the status page at `/`.

Read only, on the pod's address. Readiness means that the listener accepts events. It does not
depend on the upstreams, so an outage there never takes agents out of service (D11, D12).

Any `Host` is accepted: people use port forwards, probes use the address. A web page that rebinds
its own DNS name to this port could therefore read counts, ages, error kinds and the configuration
without secrets. It could read no span, and change nothing.
"""

import asyncio
import json
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from hashlib import sha256
from html import escape
from http import HTTPStatus
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import parse_qsl

import orjson
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sidecar.config_values import utf8
from sidecar.http.messages import TEXT, Discard, Flow, Receiver, Request, Response
from sidecar.http.server import HttpServer
from sidecar.lanes import UPSTREAMS
from sidecar.operate.turns import AGENTS_SHARE

# Longer than Prometheus' default scrape interval, so that the next scrape reuses its connection.
IDLE_S = 75.0
BODY_S = 10.0
_PAGE = Path(__file__).parent / "page"
_MAX_DIGITS = 18
_DENY_ALL = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_POLICY = "Content-Security-Policy"
# Of every response; one that has a header of the same name keeps its own.
_HEADERS = {
    _POLICY: _DENY_ALL,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_BUSY = Response(
    HTTPStatus.SERVICE_UNAVAILABLE,
    b"too many requests are waiting\n",
    TEXT,
    [("Retry-After", "1")],
)

Query = Mapping[str, str]
# It may return what it waits for, such as the disk: with a deadline, and its work on the loop in
# `Turns`. If that raises `TimeoutError`, too many are waiting.
Handler = Callable[[Query], Response | Awaitable[Response]]


def admin_server(
    registry: CollectorRegistry,
    status: Callable[[], dict[str, Any]],
    history: Callable[[int], dict[str, Any]],
    *,
    about: Callable[[str], Awaitable[dict[str, Any]]],
    debug: Callable[[], Awaitable[dict[str, Any]]],
    ready: Callable[[], bool],
    crowded: Callable[[], None],
    max_connections: int,
) -> HttpServer:
    """Return the admin port's server; call it inside a running loop.

    `history` returns the samples from a given number on, `about` what is known about an id,
    `debug` what only `sidecar debug` shows.
    """
    page, policy = _page()

    def readyz(_: Query) -> Response:
        if ready():
            return Response(HTTPStatus.OK, b"ready\n")
        text = b"the listener does not accept events\n"
        return Response(HTTPStatus.SERVICE_UNAVAILABLE, text)

    def samples(query: Query) -> Response:
        after = query.get("after", "0")
        if not (after.isascii() and after.isdigit() and len(after) <= _MAX_DIGITS):
            return Response(HTTPStatus.BAD_REQUEST, b"after: expected a sample number\n")
        return _json(history(int(after)))

    def explain(query: Query) -> Response | Awaitable[Response]:
        if id_ := query.get("id"):
            return _later_json(about(id_))
        return Response(HTTPStatus.BAD_REQUEST, b"id: expected the id of a span or a trace\n")

    service = AdminService(
        cheap={
            "/": lambda _: Response(HTTPStatus.OK, page, "text/html; charset=utf-8", [policy]),
            "/livez": lambda _: Response(HTTPStatus.OK, b"alive\n"),
            "/readyz": readyz,
        },
        expensive={
            "/metrics": lambda _: Response(
                HTTPStatus.OK, generate_latest(registry), CONTENT_TYPE_LATEST
            ),
            "/status": lambda _: _json(status(), orjson.OPT_INDENT_2),
            "/status/history": samples,
            "/explain": explain,
            "/debug": lambda _: _later_json(debug()),
        },
        # The other half of the places is for probes and new connections.
        max_waiting=max_connections // 2,
    )
    return HttpServer(
        service.receive,
        max_connections=max_connections,
        idle_s=IDLE_S,
        body_s=BODY_S,
        refused=lambda status, error: _secured(Response(status, f"{error}\n".encode())),
        crowded=crowded,
        failed=service.log_bug,
    )


def _json(value: object, option: int = 0) -> Response:
    try:
        body = orjson.dumps(value, option=option)
    except TypeError:  # a path with bytes that are not UTF-8, or that the locale lacks
        body = orjson.dumps(_displayed(value), option=option)
    return Response(HTTPStatus.OK, body, "application/json; charset=utf-8")


def _displayed(value: object) -> object:
    """The same plain value, with all its text in UTF-8."""
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, dict):
        return {utf8(key): _displayed(each) for key, each in value.items()}
    return [_displayed(each) for each in value] if isinstance(value, list | tuple) else value


async def _later_json(value: Awaitable[object]) -> Response:
    return _json(await value)


class AdminService:
    """Answers GET and HEAD by path. Expensive handlers take turns with the agents' requests.

    A handler blocks the loop for milliseconds, so one runs at a time, and then the loop is left to
    the agents for `AGENTS_SHARE` times as long: operators can use a quarter of it at most. What a
    handler returns to be awaited is awaited after its turn, so that a slow disk delays no other
    request. Up to `max_waiting` requests wait, for their turn or after it.
    """

    def __init__(
        self,
        *,
        cheap: Mapping[str, Handler],
        expensive: Mapping[str, Handler],
        max_waiting: int,
    ) -> None:
        self._cheap, self._expensive = cheap, expensive
        self._max_waiting = max_waiting
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._next_turn = 0.0  # loop time
        self._waiting = 0

    def receive(self, request: Request, _: Flow) -> Receiver:
        """The service of the admin port (http/messages.py)."""
        cheap = self._cheap.get(request.path)
        handler = cheap or self._expensive.get(request.path)
        if handler is None:
            answer = Response(HTTPStatus.NOT_FOUND, b"no such path\n")
        elif request.method not in {"GET", "HEAD"}:
            allow = [("Allow", "GET, HEAD")]
            answer = Response(HTTPStatus.METHOD_NOT_ALLOWED, b"use GET\n", TEXT, allow)
        elif cheap is not None:
            return _Discard(partial(self._handle, cheap, request))
        elif self._waiting < self._max_waiting:
            return _Discard(partial(self._handle_in_turn, handler, request))
        else:
            answer = _BUSY
        return Discard(_secured(answer))

    async def _handle_in_turn(self, handler: Handler, request: Request) -> Response:
        self._waiting += 1
        try:
            async with self._turn:
                await asyncio.sleep(self._next_turn - self._loop.time())
                started = perf_counter()
                answer = self._handle(handler, request)
                cost = perf_counter() - started
                self._next_turn = self._loop.time() + AGENTS_SHARE * cost
            return answer if isinstance(answer, Response) else await answer
        finally:
            self._waiting -= 1

    def _handle(self, handler: Handler, request: Request) -> Response | Awaitable[Response]:
        query = parse_qsl(request.target.partition("?")[2], keep_blank_values=True)
        try:
            answer = handler(dict(reversed(query)))
        except Exception as bug:  # noqa: BLE001 (observing the sidecar must never stop it)
            return self._failed(bug, request)
        return _secured(answer) if isinstance(answer, Response) else self._await(answer, request)

    async def _await(self, answer: Awaitable[Response], request: Request) -> Response:
        try:
            return _secured(await answer)
        except TimeoutError:  # others took all the time that it may wait
            return _secured(_BUSY)
        except Exception as bug:  # noqa: BLE001 (as in `_handle`)
            return self._failed(bug, request)

    def _failed(self, bug: Exception, request: Request) -> Response:
        self.log_bug(bug, f"the handler of {request.path}")
        return _secured(Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"see the log\n"))

    def log_bug(self, bug: BaseException, what: str = "an admin connection") -> None:
        """Log an exception that ends a request, but never the process (D13)."""
        context = {"message": f"{what} failed", "exception": bug}
        self._loop.call_exception_handler(context)


class _Discard(Discard):
    def lost(self, *, late: bool) -> Response:
        return _secured(super().lost(late=late))


def _secured(response: Response) -> Response:
    return response._replace(headers=list((_HEADERS | dict(response.headers)).items()))


def _page() -> tuple[bytes, tuple[str, str]]:
    """Return the page with all that it needs in it, and a CSP header that allows only that."""
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def inlined(tag: re.Match[str]) -> str:
        kind, name = tag.groups()
        text = (_PAGE / name).read_text(encoding="utf-8")
        hashes[kind].append(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'")
        return f"<{kind}>{text}</{kind}>"

    titles = escape(json.dumps({each.name: each.title for each in UPSTREAMS}))
    html = (_PAGE / "page.html").read_text(encoding="utf-8")
    html = html.replace('data-titles="{}"', f'data-titles="{titles}"')
    page = re.sub(r"<(style|script) src=([a-z.]+)></\1>", inlined, html)
    allowed = "; ".join(f"{kind}-src {' '.join(sources)}" for kind, sources in hashes.items())
    # data: is for the icon, which the page draws itself in the color of the worst answer.
    extra = "connect-src 'self'; img-src data:; require-trusted-types-for 'script'"
    return page.encode(), (_POLICY, f"{_DENY_ALL}; {allowed}; {extra}")

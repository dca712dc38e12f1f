"""The admin port: metrics, probes, `/status`, `/explain`, and the status page at `/`.

Read only, on the pod's address. Readiness means that the listener accepts events. It does not
depend on the upstreams, so an outage there never takes agents out of service (D11, D12).

Any `Host` is accepted: people use port forwards, probes use the address. A web page that rebinds
its own DNS name to this port could therefore read counts, ages, error kinds and the configuration
without secrets. It could read no span, and change nothing.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sidecar.http.server import HttpServer, Response, bad_request

_PAGE = Path(__file__).parent / "page"
_MAX_DIGITS = 18
_JSON = "application/json; charset=utf-8"
_DENY_ALL = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _DENY_ALL,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def admin_server(
    registry: CollectorRegistry,
    status: Callable[[], dict[str, Any]],
    history: Callable[[int], dict[str, Any]],
    *,
    about: Callable[[str], dict[str, Any]],
    ready: Callable[[], bool],
) -> HttpServer:
    """Return the admin port's server; call it inside a running loop.

    `history` returns the samples from a given number on, `about` what is known about a span id.
    """
    pages = _Pages(registry, status, history, about, ready)
    handlers = {
        "/": pages.page,
        "/metrics": pages.metrics,
        "/livez": pages.livez,
        "/readyz": pages.readyz,
        "/status": pages.status,
        "/status/history": pages.history,
        "/explain": pages.explain,
    }
    return HttpServer(handlers, _HEADERS)


Query = Mapping[str, str]


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
        headers = {"Content-Security-Policy": self._policy}
        return Response(self._text.encode(), "text/html; charset=utf-8", headers=headers)

    def metrics(self, _: Query) -> Response:
        return Response(generate_latest(self._registry), CONTENT_TYPE_LATEST)

    def livez(self, _: Query) -> Response:
        return Response(b"alive\n")

    def readyz(self, _: Query) -> Response:
        if self._ready():
            return Response(b"ready\n")
        text = b"the listener does not accept events\n"
        return Response(text, status=HTTPStatus.SERVICE_UNAVAILABLE)

    def status(self, _: Query) -> Response:
        return Response(orjson.dumps(self._status(), option=orjson.OPT_INDENT_2), _JSON)

    def history(self, query: Query) -> Response:
        after = query.get("after", "0")
        if not (after.isascii() and after.isdigit() and len(after) <= _MAX_DIGITS):
            return bad_request("after: expected a sample number")
        return Response(orjson.dumps(self._history(int(after))), _JSON)

    def explain(self, query: Query) -> Response:
        id_ = query.get("id", "")
        if not id_:
            return bad_request("id: expected a span id")
        return Response(orjson.dumps(self._about(id_)), _JSON)


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

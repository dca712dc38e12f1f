"""The operators' side, on the pod's address: metrics, probes, `/status`, and the page at `/`.

Read only. Ready means that the listener takes events; it does not depend on the upstreams, so that
an outage there never takes agents out of service (D11, D12).

Any `Host` is answered: people come through port forwards, probes by address. So a web page that
points its own name at this port could read what is here: counts, ages, error kinds and the
configuration without secrets, never a span; and it could change nothing.
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
_DIGITS = 18
_JSON = "application/json; charset=utf-8"
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


def visitors(
    registry: CollectorRegistry,
    status: Callable[[], dict[str, Any]],
    history: Callable[[int], dict[str, Any]],
    *,
    about: Callable[[str], dict[str, Any]],
    ready: Callable[[], bool],
) -> HttpServer:
    """The admin port's answers. Make it inside a running loop.

    `history` gives samples from a number on, `about` what is known of a span by its id.
    """
    answers = _Answers(registry, status, history, about, ready)
    handlers = {
        "/": answers.page,
        "/metrics": answers.metrics,
        "/livez": answers.livez,
        "/readyz": answers.readyz,
        "/status": answers.status,
        "/status/history": answers.history,
        "/explain": answers.explain,
    }
    return HttpServer(handlers, _HEADERS)


Query = Mapping[str, str]


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
        text = b"the listener does not take events\n"
        return Response(text, status=HTTPStatus.SERVICE_UNAVAILABLE)

    def status(self, _: Query) -> Response:
        return Response(orjson.dumps(self._status(), option=orjson.OPT_INDENT_2), _JSON)

    def history(self, query: Query) -> Response:
        after = query.get("after", "0")
        if not (after.isascii() and after.isdigit() and len(after) <= _DIGITS):
            return bad_request("after: the number of a sample")
        return Response(orjson.dumps(self._history(int(after))), _JSON)

    def explain(self, query: Query) -> Response:
        id_ = query.get("id", "")
        if not id_:
            return bad_request("id: the id of a span")
        return Response(orjson.dumps(self._about(id_)), _JSON)


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

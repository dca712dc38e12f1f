"""Generates docs/openapi.json: both ports, for clients and for people who try them.

    python -m tools.openapi > docs/openapi.json

The paths, statuses and headers are those of docs/api.md; openapi_schemas.py makes the schemas from
the code's own structs. tests/tools/test_openapi.py fails on a route or a status that is missing
here or there, and on a file that is out of date; tests/e2e/test_openapi.py asks a running sidecar.
"""

import json
import sys
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from sidecar import __version__
from sidecar.config import Config
from sidecar.credentials import ACCOUNT_HEADER, KEY_HEADER, ONLY_ACCOUNT_HEADER
from sidecar.listener.routes.flush import DEFAULT_WAIT_S, MAX_WAIT_S
from sidecar.spans.validation import MAX_ID_BYTES
from tools.openapi_schemas import REF, Json, components

_AGENTS = {
    "url": f"http://127.0.0.1:{Config().listener.port}",
    "description": "The agents' port",
}
_ADMIN = {
    "url": f"http://127.0.0.1:{Config().admin.port}",
    "description": "The admin port",
}
_JSON, _NDJSON, _TEXT = "application/json", "application/x-ndjson", "text/plain"

DESCRIPTION = """\
Agents post span events to the agents' port; the admin port serves the kubelet, Prometheus and
people. docs/api.md has the rules and promises behind this document.

The agents' port answers requests with an `Origin`, or with a `Host` that is not its own, with 403;
any other path with 404; and any other method with 405 and `Allow`, except on `/spans` and
`/spans/{id}`, where it is 404. On the admin port, another path is 404 and another method 405.

With `listener.pass_through`, every other request below `/v4/` and `/v5/` goes to SGP and is
answered by it: this document does not describe those.
"""

_START: Json = {
    "event_type": "start",
    "span": {
        "id": "9b1c6d1e-plan",
        "trace_id": "9b1c6d1e",
        "name": "plan the trip",
        "start_time": "2026-03-01T09:00:00.250+00:00",
        "parent_id": None,
        "task_id": None,
        "input": {"question": "Which train goes to Oslo?"},
        "data": {"model": "small"},
    },
}
_END: Json = {
    "event_type": "end",
    "span": {
        "id": "9b1c6d1e-plan",
        "trace_id": "9b1c6d1e",
        "name": "plan the trip",
        "start_time": "2026-03-01T09:00:00.250+00:00",
        "end_time": "2026-03-01T09:00:01.500+00:00",
        "output": {"answer": "The one at noon."},
    },
}
_ITEM: Json = {
    "id": "5e0f77a2-find",
    "trace_id": "5e0f77a2",
    "name": "find a hotel",
    "start_timestamp": "2026-03-01T09:00:02+00:00",
    "end_timestamp": "2026-03-01T09:00:03.125+00:00",
    "input": {"city": "Oslo"},
    "output": {"hotels": 3},
    "metadata": {"tool": "search"},
    "status": "SUCCESS",
    "type": "CUSTOM",
}


def document() -> Json:
    """Return the whole document."""
    paths: dict[str, Json] = {
        "/v1/spans": {"servers": [_AGENTS], "post": _post_events()},
        "/v5/spans/batch": {
            "servers": [_AGENTS],
            "put": _batch("upsertBatch"),
            "post": _batch("createBatch"),
        },
        "/v1/flush": {"servers": [_AGENTS], "post": _flush()},
        "/spans": {"servers": [_AGENTS], "post": _post_span()},
        "/spans/{id}": {"servers": [_AGENTS], "patch": _patch_span()},
        "/readyz": _readyz(),
        **_admin_paths(),
    }
    used = json.dumps(paths)
    unused = {"MethodNotAllowed"}  # of no operation: it is for methods that are not here
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Trace sidecar",
            "version": __version__,
            "summary": "Span events in, Agentex, SGP and OTLP out.",
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [_AGENTS, _ADMIN],
        "tags": [
            {"name": "events", "description": "The sidecar's own API for agents."},
            {"name": "sdk", "description": "What unchanged SDKs send."},
            {"name": "operate", "description": "The admin port; `/readyz` is on both."},
        ],
        "paths": paths,
        "components": {
            "schemas": components(),
            "parameters": _PARAMETERS,
            "responses": {
                name: response
                for name, response in _shared_responses().items()
                if f'/{name}"' in used or name in unused
            },
            "headers": _HEADERS,
        },
    }


def _text(description: str) -> Json:
    return {"schema": {"type": "string", "description": description}}


_PARAMETERS: dict[str, Json] = {
    "Encoding": {
        "name": "Content-Encoding",
        "in": "header",
        "description": "How the body is compressed.",
        "schema": {"enum": ["gzip", "deflate", "identity"]},
    },
    "AgentKey": {
        "name": "x-agent-api-key",
        "in": "header",
        "description": "The agent's key for Agentex; used where the sidecar has none configured.",
        "schema": {"type": "string"},
    },
    "Key": {
        "name": KEY_HEADER,
        "in": "header",
        "description": "The key for SGP; used with `sgp.relay` where none is configured.",
        "schema": {"type": "string"},
    },
    "Account": {
        "name": ACCOUNT_HEADER,
        "in": "header",
        "description": "The SGP account of the spans; used with `sgp.relay` where none is "
        "configured. Required once the pod has several.",
        "schema": {"type": "string"},
    },
    "OnlyAccount": {
        "name": ONLY_ACCOUNT_HEADER,
        "in": "header",
        "description": "The only account that the spans may go out under; otherwise 409.",
        "schema": {"type": "string"},
    },
}
_HEADERS: dict[str, Json] = {
    "RetryAfter": {
        "description": "Seconds to wait before trying again.",
        "required": True,
        "schema": {"type": "integer"},
    },
    "Date": {"required": True, "schema": {"type": "string"}},
    "Allow": {"required": True, "schema": {"type": "string"}},
    "NoStore": {"required": True, "schema": {"const": "no-store"}},
    "Policy": {
        "description": "Nothing is allowed; the status page has its own style and scripts only.",
        "required": True,
        "schema": {"type": "string"},
    },
    "NoSniff": {"required": True, "schema": {"const": "nosniff"}},
    "Deny": {"required": True, "schema": {"const": "DENY"}},
    "NoReferrer": {"required": True, "schema": {"const": "no-referrer"}},
    "SameOrigin": {"required": True, "schema": {"const": "same-origin"}},
}
_RETRY = {"Retry-After": "RetryAfter"}
_ALLOW = {"Allow": "Allow"}
_SECURITY = {
    "Cache-Control": "NoStore",
    "Content-Security-Policy": "Policy",
    "X-Content-Type-Options": "NoSniff",
    "X-Frame-Options": "Deny",
    "Referrer-Policy": "NoReferrer",
    "Cross-Origin-Opener-Policy": "SameOrigin",
    "Cross-Origin-Resource-Policy": "SameOrigin",
}


def _parameters(*names: str) -> list[Json]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _response(
    description: str, content: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Json:
    """Return a response; `content` has a schema, or the name of one, by media type."""
    named = {"Date": "Date", **(headers or {})}
    return {
        "description": description,
        "headers": {
            name: {"$ref": f"#/components/headers/{header}"} for name, header in named.items()
        },
        "content": {
            media: {"schema": {"$ref": REF + schema} if isinstance(schema, str) else schema}
            for media, schema in content.items()
        },
    }


_LINE: Json = {"type": "string"}
# What no service of a port gets to see: malformed HTTP, a head that is too large or late.
_NOT_HTTP = {_TEXT: _LINE}
_ALSO_TEXT = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


# What refuses a request with spans, whatever is in it.
_REFUSALS: Mapping[HTTPStatus, tuple[str, Mapping[str, str]]] = {
    HTTPStatus.BAD_REQUEST: ("Malformed.", {}),
    HTTPStatus.FORBIDDEN: ("From a web page, or for another host.", {}),
    HTTPStatus.NOT_FOUND: ("The upstream is not enabled in this sidecar.", {}),
    HTTPStatus.REQUEST_TIMEOUT: ("The head or the body did not arrive in time.", {}),
    HTTPStatus.CONFLICT: (f"{ONLY_ACCOUNT_HEADER} names another account.", {}),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("Too large: send fewer spans per request.", {}),
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: ("Another Content-Type or Content-Encoding.", {}),
    HTTPStatus.TOO_MANY_REQUESTS: (
        "No room, or too many requests wait on this connection; nothing was accepted.",
        _RETRY,
    ),
    HTTPStatus.SERVICE_UNAVAILABLE: ("Stopping, or a ninth account.", _RETRY),
}


def _name(key: str, status: HTTPStatus) -> str:
    """Return the name of a shared response, such as `ErrorConflict`."""
    return ("Error" if status is HTTPStatus.FORBIDDEN else key) + "".join(
        word.title() for word in status.phrase.split()
    )


def _shared_responses() -> dict[str, Json]:
    """Return the responses that several operations have, by name."""
    made = {}
    for key in ("Detail", "Error"):  # a 403 always has `error`
        for status, (text, headers) in _REFUSALS.items():
            content: dict[str, Any] = {_JSON: key}
            if status in _ALSO_TEXT:
                content |= _NOT_HTTP
            made[_name(key, status)] = _response(text, content, headers)
    text = "On any path but /spans and /spans/{id}: a method that is not in this document."
    made["MethodNotAllowed"] = _response(text, {_JSON: "Error", _TEXT: _LINE}, _ALLOW)
    for name, (text, headers) in {
        "AdminBadRequest": (
            "Malformed HTTP, or a parameter that is wrong or missing: the text names it.",
            _SECURITY,
        ),
        "AdminRequestTimeout": ("The head or the body did not arrive in time.", _SECURITY),
        "AdminTooManyRequests": ("Too many requests wait on this connection.", _SECURITY),
        "AdminInternalServerError": ("A bug: see the log.", _SECURITY),
        "AdminServiceUnavailable": (
            "Too many requests wait for expensive pages.",
            _SECURITY | _RETRY,
        ),
    }.items():
        made[name] = _response(text, _NOT_HTTP, headers)
    return made


def _refer(key: str, *statuses: HTTPStatus) -> dict[str, Json]:
    """Return references to shared responses, by status."""
    return {
        str(status.value): {"$ref": f"#/components/responses/{_name(key, status)}"}
        for status in statuses
    }


_ALWAYS = (
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)


def _either(*names: str) -> Json:
    return {"anyOf": [{"$ref": REF + name} for name in names]}


def _in_order(responses: Mapping[str, Json]) -> dict[str, Json]:
    return dict(sorted(responses.items()))


def _post_events() -> Json:
    many: Json = {"type": "array", "minItems": 1, "items": {"$ref": REF + "Event"}}
    lines = "".join(json.dumps(event) + "\n" for event in (_START, _END))
    return {
        "operationId": "postEvents",
        "tags": ["events"],
        "summary": "Accept START and END events for every enabled upstream.",
        "description": "The valid events of a request are accepted together, the others are listed "
        "in `rejected`. Sending an event again is harmless.",
        "parameters": _parameters("Encoding", "AgentKey", "Key", "Account", "OnlyAccount"),
        "requestBody": {
            "required": True,
            "content": {
                _JSON: {
                    "schema": {"oneOf": [{"$ref": REF + "Event"}, many]},
                    "examples": {
                        "start": {"summary": "A START", "value": _START},
                        "end": {"summary": "Its END", "value": _END},
                        "several": {"summary": "Both in one request", "value": [_START, _END]},
                    },
                },
                _NDJSON: {
                    "schema": {"type": "string", "description": "One event per line."},
                    "examples": {"lines": {"summary": "One event per line", "value": lines}},
                },
            },
        },
        "responses": _in_order(
            {
                **_refer("Error", *_ALWAYS, HTTPStatus.CONFLICT),
                "202": _response(
                    "At least one event was accepted; log `rejected`.", {_JSON: "Accepted"}
                ),
                "400": _response(
                    "No valid event: `error` and `rejected` say why. Or no account.",
                    {_JSON: _either("Accepted", "Error"), **_NOT_HTTP},
                ),
            }
        ),
    }


def _batch(name: str) -> Json:
    return {
        "operationId": name,
        "tags": ["sdk"],
        "summary": "Accept spans as the SGP SDK sends them, for SGP and OTLP.",
        "description": "The good items are accepted even if others are refused. PUT and POST do "
        "the same thing.",
        "parameters": _parameters("Encoding", "AgentKey", "Key", "Account", "OnlyAccount"),
        "requestBody": {
            "required": True,
            "content": {
                _JSON: {
                    "schema": {"$ref": REF + "Batch"},
                    "examples": {"one": {"summary": "One span", "value": {"items": [_ITEM]}}},
                }
            },
        },
        "responses": _in_order(
            {
                **_refer("Detail", *_ALWAYS, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
                "200": _response("Every item was accepted.", {_JSON: "CreatedList"}),
                "400": _response(
                    "As 422, if every bad item is bad because of an id. Or no account.",
                    {_JSON: _either("Problems", "Detail"), **_NOT_HTTP},
                ),
                "422": _response(
                    "Some items are bad, and the good ones were accepted; or it is no batch.",
                    {_JSON: "Problems"},
                ),
            }
        ),
    }


def _agentex(name: str, schema: str, value: Json) -> Json:
    return {
        "operationId": name,
        "tags": ["sdk"],
        "parameters": _parameters("Encoding", "AgentKey"),
        "requestBody": {
            "required": True,
            "content": {
                _JSON: {
                    "schema": {"$ref": REF + schema},
                    "examples": {"one": {"summary": "One span", "value": value}},
                }
            },
        },
        "responses": _in_order(
            {
                **_refer("Detail", *_ALWAYS, HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND),
                "200": _response("Accepted: the span.", {_JSON: "AgentexRow"}),
                "422": _response("A field is wrong or missing.", {_JSON: "Unprocessable"}),
            }
        ),
    }


def _post_span() -> Json:
    summary = "Accept a span as the Agentex SDK sends it, for Agentex only."
    return {"summary": summary, **_agentex("postSpan", "AgentexSpan", _START["span"])}


def _patch_span() -> Json:
    end = {key: value for key, value in _END["span"].items() if key != "id"}
    made = _agentex("patchSpan", "AgentexEnd", end)
    made["parameters"].insert(
        0,
        {
            "name": "id",
            "in": "path",
            "required": True,
            "description": "The span's id, percent-encoded.",
            "schema": {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES},
        },
    )
    return {"summary": "Accept the END of a span, for Agentex only.", **made}


def _flush() -> Json:
    left: Json = {
        "type": "object",
        "required": ["left"],
        "properties": {
            "left": {
                "type": "object",
                "description": "Writes that are not settled, by upstream.",
                "additionalProperties": {"type": "integer", "minimum": 1},
            },
        },
    }
    waiting = "Too many requests wait, for a flush or on this connection."
    return {
        "operationId": "flush",
        "tags": ["events"],
        "summary": "Deliver what was accepted so far without delay, and wait for it.",
        "parameters": [
            {
                "name": "wait_s",
                "in": "query",
                "description": "How long to wait, in seconds.",
                "schema": {
                    "type": "number",
                    "minimum": 0,
                    "maximum": MAX_WAIT_S,
                    "default": DEFAULT_WAIT_S,
                },
            },
            {
                "name": "until",
                "in": "query",
                "description": "With `disk`, what is on the spool's disk is not left.",
                "schema": {"const": "disk"},
            },
        ],
        "responses": _in_order(
            {
                "200": _response("Nothing is left.", {_JSON: left}),
                "202": _response("The wait is over, and this is left.", {_JSON: left}),
                **_refer("Error", HTTPStatus.BAD_REQUEST, *_ALWAYS[:2]),
                "429": _response(waiting, {_JSON: "Error", **_NOT_HTTP}, _RETRY),
                "503": _response("Stopping.", {_JSON: "Error"}, _RETRY),
            }
        ),
    }


def _readyz() -> Json:
    """Return `/readyz`, the only path that is on both ports."""
    responses = {
        "200": _response("It accepts events.", {_TEXT: _LINE}),
        "400": _response("Malformed HTTP.", _NOT_HTTP),
        "403": _response("Agents' port: from a web page, or for another host.", {_JSON: "Error"}),
        "408": _response("The head or the body did not arrive in time.", _NOT_HTTP),
        "429": _response("Too many requests wait on this connection.", _NOT_HTTP),
        # The admin port's has no Retry-After: whoever probes has an interval.
        "503": _response("It does not accept events (yet).", {_JSON: "Error", _TEXT: _LINE}),
    }
    path: Json = {"servers": [_AGENTS, _ADMIN]}
    for method in ("get", "head"):
        path[method] = {
            "operationId": f"{method}Readyz",
            "tags": ["operate"],
            "summary": "Whether the agents' port accepts events; independent of the upstreams.",
            "responses": responses,
        }
    return path


def _admin_paths() -> dict[str, Json]:
    after = {
        "name": "after",
        "in": "query",
        "description": "Return the samples from this number on.",
        "schema": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1},
    }
    id_ = {
        "name": "id",
        "in": "query",
        "required": True,
        "description": "The id of a span or a trace.",
        "schema": {"type": "string", "minLength": 1},
    }
    html: Json = {"type": "string"}
    return {
        "/": _admin("statusPage", "The status page.", {"text/html": html}),
        "/livez": _admin("livez", "Whether the process runs its loop.", {_TEXT: _LINE}),
        "/metrics": _admin("metrics", "Metrics for Prometheus.", {_TEXT: _LINE}, turn=True),
        "/status": _admin("status", "Everything about this sidecar.", {_JSON: "Status"}, turn=True),
        "/status/history": _admin(
            "history", "The last 15 minutes.", {_JSON: "History"}, after, turn=True
        ),
        "/explain": _admin(
            "explain", "What happened to a span or a trace.", {_JSON: "Explanation"}, id_, turn=True
        ),
        "/debug": _admin(
            "debug", "What only `sidecar debug` shows.", {_JSON: {"type": "object"}}, turn=True
        ),
    }


def _admin(
    name: str, summary: str, content: Mapping[str, Any], *parameters: Json, turn: bool = False
) -> Json:
    """Return a path of the admin port; with `turn`, a page that takes turns with the agents."""
    shared = [
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
    ]
    if turn:
        shared.append(HTTPStatus.SERVICE_UNAVAILABLE)
    responses = {"200": _response(summary, content, _SECURITY), **_refer("Admin", *shared)}
    path: Json = {"servers": [_ADMIN]}
    for method in ("get", "head"):
        operation: Json = {
            "operationId": name if method == "get" else f"{name}Head",
            "tags": ["operate"],
            "summary": summary,
            "responses": responses,
        }
        if parameters:
            operation["parameters"] = list(parameters)
        path[method] = operation
    return path


def text() -> str:
    """Return the document as the committed file has it."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())

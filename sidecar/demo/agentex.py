"""A stand-in for the Agentex spans API, as measured in docs/upstreams.md (A1 to A6).

Serves POST, PATCH and GET on spans. It refuses whatever the real server refuses, with the
same status and body shape. This includes the 500s after which the row is stored anyway.
"""

import uuid
from typing import Unpack
from urllib.parse import parse_qs, unquote

import msgspec

from sidecar.demo.agentex_checks import (
    JSONS,
    TEXTS,
    TIMES,
    Row,
    check_storable,
    detail,
    dump,
    invalid,
    message,
    unhandled,
    unknown,
    validated,
)
from sidecar.demo.bodies import digest_of, parse_time, survey
from sidecar.demo.stand_in import Answer, Options, Recorded, Refusal, StandIn

DEPTH_MAX = 254
PAGE_MAX = 1000
REQUIRED = ("trace_id", "name", "start_time")

_HEALTHY = Answer(200, b'{"status":"ok"}')
_EXISTS = "Item already exists. Please check all unique constraints and try again."
_SHORT = Answer(200, b"{}")


class _Light(msgspec.Struct):
    id: str = ""
    end_time: str | None = None
    input: msgspec.Raw = msgspec.Raw()


_LIGHT = msgspec.json.Decoder(_Light)


class AgentexStandIn(StandIn):
    """Agentex. `tasks`: the known task ids, or None to accept any; `api_key`: the agent's.

    `spans` holds rows as sent (responses show times in UTC), `raw` the last body written to each,
    `poisoned` the ids of rows that can no longer be read.
    """

    def __init__(self, *, tasks: set[str] | None = None, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.tasks = tasks
        self.spans: dict[str, Row] = {}
        self.raw: dict[str, bytes] = {}
        self.poisoned: set[str] = set()

    def reply(self, request: Recorded) -> Answer:  # noqa: PLR0911 (a routing table)
        """Route and apply the request (docs/upstreams.md A1, A2, A3, A5)."""
        path = unquote(request.path)  # before routing: an id with a slash can't be addressed
        if path == "/healthz":
            return _HEALTHY if request.method == "GET" else detail(405, "Method Not Allowed")
        self._authenticate(request)
        if path == "/spans/":
            location = f"http://{request.headers.get('Host', '')}/spans"
            return Answer(307, headers={"Location": location})
        span_id = path.removeprefix("/spans/")
        match request.method, path == "/spans":
            case _, False if span_id == path or "/" in span_id:
                return detail(404, "Not Found")
            case "POST", True:
                return self._create(request)
            case "GET", True:
                return self._list(request)
            case "GET", False:
                return self._shown(self._existing(span_id))
            case "PATCH", False:
                return self._update(span_id, request)
        return detail(405, "Method Not Allowed")

    def reply_lightly(self, request: Recorded) -> Answer:
        """Count the write, and check only whether the span exists.

        With `max_spans`, a PATCH is always taken: its span may be one that was forgotten.
        """
        if request.method == "GET":
            return detail(405, "Method Not Allowed")  # nothing is stored that could be shown
        span = _LIGHT.decode(request.body)
        if request.method == "POST":
            if span.id in self.writes:
                return message(400, _EXISTS)
        else:
            span.id = unquote(request.path.removeprefix("/spans/"))
            if span.id not in self.writes and not self.max_spans:
                return unknown(span.id)
        if span.input:
            self.digests[span.id] = digest_of(span.input)
        self.wrote(span.id, complete=span.end_time is not None)
        return _SHORT

    def _authenticate(self, request: Recorded) -> None:
        if request.headers.get("x-agent-identity"):
            raise Refusal(detail(401, "Agent Unauthorized"))
        key = request.headers.get("x-agent-api-key", "")  # empty counts as absent
        if key and key != self.api_key:
            raise Refusal(detail(401, "Agent Unauthorized"))
        if not key and self.api_key is not None:
            raise Refusal(detail(401, "Unauthorized"))

    def _create(self, request: Recorded) -> Answer:
        sent = validated(request, REQUIRED)
        row = {name: sent.get(name) for name in (*TEXTS, *TIMES, *JSONS)}
        if row["id"] is None:
            row["id"] = str(uuid.uuid4())
        check_storable(row)
        if row["id"] in self.spans:
            return message(400, _EXISTS)
        self._check_task(row)
        return self._stored(row, sent, request)

    def _update(self, span_id: str, request: Recorded) -> Answer:
        sent = validated(request, ())
        sent = {k: v for k, v in sent.items() if k != "id" and v is not None}
        old = self._existing(span_id)
        check_storable(sent)
        row = old | sent
        if "data" in sent and old["data"]:
            # Copied from the real server, including its errors for lists.
            merged = old["data"].copy()
            try:
                merged.update(sent["data"])
            except (AttributeError, ValueError, TypeError) as error:
                return unhandled(f"{type(error).__name__}: {error}")
            row["data"] = merged
        self._check_task(sent)
        return self._stored(row, sent, request)

    def _stored(self, row: Row, sent: Row, request: Recorded) -> Answer:
        """Store, then build the response, in this order: a response that fails leaves the row."""
        span_id = row["id"]
        self.spans[span_id] = row
        self.poisoned.discard(span_id)
        surveys = [survey(row[name]) for name in JSONS]
        if not all(found.encodes and found.depth <= DEPTH_MAX for found in surveys):
            self.poisoned.add(span_id)
        if self.keep_bodies:
            self.raw[span_id] = request.body
        self.wrote(span_id, complete=sent.get("end_time") is not None)
        return self._shown(row) if self.echo or span_id in self.poisoned else _SHORT

    def _existing(self, span_id: str) -> Row:
        if span_id not in self.spans:
            raise Refusal(unknown(span_id))
        return self.spans[span_id]

    def _check_task(self, values: Row) -> None:
        task = values.get("task_id")
        if task is not None and self.tasks is not None and task not in self.tasks:
            text = (
                "Invalid input resulted in constraint violation: insert or update on table "
                '"spans" violates foreign key constraint "fk_spans_task_id_tasks" '
                f"[parameters: {tuple(values.values())!r}]"
            )
            raise Refusal(message(500, text))

    def _list(self, request: Recorded) -> Answer:
        query = {k: v[-1] for k, v in parse_qs(request.query, keep_blank_values=True).items()}
        try:
            limit, page = int(query.get("limit", 50)), int(query.get("page_number", 1))
        except ValueError:
            limit = page = 0
        if not 1 <= limit <= PAGE_MAX or page < 1:
            return invalid([{"type": "int_parsing", "loc": ("query", "limit")}])
        trace = query.get("trace_id")
        rows = [row for row in self.spans.values() if not trace or row["trace_id"] == trace]
        rows.sort(key=lambda row: parse_time(row["start_time"]), reverse=True)
        return self._shown(rows[(page - 1) * limit : page * limit])

    def _shown(self, shown: Row | list[Row]) -> Answer:
        for row in shown if isinstance(shown, list) else [shown]:
            if row["id"] in self.poisoned:
                return unhandled(
                    "PydanticSerializationError: Circular reference detected (depth exceeded), or "
                    "'utf-8' codec can't encode character: surrogates not allowed"
                )
        body = [_rendered(row) for row in shown] if isinstance(shown, list) else _rendered(shown)
        return Answer(200, dump(body))


def _rendered(row: Row) -> Row:
    times = {
        name: None
        if row[name] is None
        else parse_time(row[name]).isoformat().replace("+00:00", "Z")
        for name in TIMES
    }
    return row | times

"""A stand-in for SGP's span upsert, as documented in docs/upstreams.md S1.4.

`PUT /v5/spans/batch` stores and echoes all items, or stores none and says why. Where the
documents allow two readings, this takes the one that is harder on a client: a repeated item
replaces the whole row, and a late open item replaces a complete row. Credential redaction is not
imitated.
"""

import json
import uuid
from typing import Any, NoReturn, Unpack

import msgspec

from sidecar.demo.bodies import digest_of, encodes, parse_time, survey
from sidecar.demo.stand_in import Answer, Options, Recorded, Refusal, StandIn

ITEMS_MAX = 1000
ID_MAX = 256
TEXTS = ("id", "trace_id", "name", "parent_id", "group_id")
TIMES = ("start_timestamp", "end_timestamp")
OBJECTS = ("input", "output", "expected", "metadata")
# Not imported from the sink: a shared list would hide an error in the sink's.
SPAN_TYPES = frozenset(
    "TEXT_INPUT TEXT_OUTPUT COMPLETION_INPUT COMPLETION KB_RETRIEVAL KB_INPUT RERANKING "  # noqa: SIM905
    "EXTERNAL_ENDPOINT PROMPT_ENGINEERING DOCUMENT_INPUT MAP_REDUCE DOCUMENT_SEARCH "
    "DOCUMENT_PROMPT CUSTOM CODE_EXECUTION DATA_MANIPULATION EVALUATION FILE_RETRIEVAL "
    "KB_ADD_CHUNK KB_MANAGEMENT GUARDRAIL OUTPUT_GUARDRAIL TRACER AGENT_TRACER AGENT_WORKFLOW "
    "STANDALONE".split()
)
ENUMS = {"status": frozenset({"SUCCESS", "ERROR", "CANCELED"}), "type": SPAN_TYPES}
REQUIRED = ("name", "start_timestamp", "trace_id")
IDENTITY = ("trace_id", "id", "parent_id", "group_id")

Key = tuple[str, str]
Row = dict[str, Any]

_SHORT = Answer(200, b'{"object":"list","items":[]}')


class _LightItem(msgspec.Struct):
    id: str
    end_timestamp: str | None = None
    input: msgspec.Raw = msgspec.Raw()


class _LightBatch(msgspec.Struct):
    items: list[_LightItem]


_LIGHT = msgspec.json.Decoder(_LightBatch)


class SgpStandIn(StandIn):
    """SGP. `prefix` precedes the path, as `/public` does in clusters.

    `spans` holds rows by (trace_id, id); `history` and `writes` are by id. `second_rows` counts
    spans sent again that start on another UTC day: the real store would keep both rows forever.
    """

    keepalive_s = 75.0

    def __init__(
        self, *, account_id: str | None = None, prefix: str = "", **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        self.account_id = account_id
        self.prefix = prefix
        self.spans: dict[Key, Row] = {}
        self.second_rows = 0
        self._traces: dict[str, set[str]] = {}  # the traces that know a span id

    def reply(self, request: Recorded) -> Answer:
        """Apply the request (docs/upstreams.md S1.4)."""
        headers = request.headers
        for header, expected in (
            ("x-api-key", self.api_key),
            ("x-selected-account-id", self.account_id),
        ):
            if expected is not None and headers.get(header) != expected:
                _refuse(401, "Unauthorized")
        if request.path != f"{self.prefix}/v5/spans/batch":
            _refuse(404, "Not Found")
        if request.method != "PUT":
            _refuse(405, "Method Not Allowed")
        batch = self._collapsed([_item(n, item) for n, item in enumerate(_items(request))])
        self._check_parents(batch)
        for key, row in batch.items():
            self._store(key, row)
        if not self.echo:
            return _SHORT
        added = {
            "object": "span",
            "account_id": self.account_id or "account",
            "created_by": {"id": "stand-in", "type": "service_account"},
        }
        echo = {"object": "list", "items": [row | added for row in batch.values()]}
        return Answer(200, json.dumps(echo, separators=(",", ":")).encode())

    def reply_lightly(self, request: Recorded) -> Answer:
        """Count the writes."""
        items = _LIGHT.decode(request.body).items
        for item in items:
            if item.input:
                self.digests[item.id] = digest_of(item.input)
            self.wrote(item.id, complete=item.end_timestamp is not None)
        self.duplicates_in_batch += len(items) - len({item.id for item in items})
        return _SHORT

    def _collapsed(self, rows: list[Row]) -> dict[Key, Row]:
        """Keep one item per (trace_id, id): a complete one, else the last."""
        batch: dict[Key, Row] = {}
        for row in rows:
            key = row["trace_id"], row["id"]
            before = batch.get(key)
            if before is not None and "end_timestamp" in before and "end_timestamp" not in row:
                continue
            batch[key] = row
        self.duplicates_in_batch += len(rows) - len(batch)
        return batch

    def _check_parents(self, batch: dict[Key, Row]) -> None:
        """Refuse (409) a parent in another trace, and a cycle; an unknown parent is fine."""
        in_batch: dict[str, set[str]] = {}  # the traces of each span id in this batch
        for trace, id_ in batch:
            in_batch.setdefault(id_, set()).add(trace)
        checked: set[Key] = set()  # no cycle among these or their ancestors
        for start, row in batch.items():
            parent_id = row.get("parent_id", "")
            known = in_batch.get(parent_id, set()) | self._traces.get(parent_id, set())
            if parent_id and known and start[0] not in known:
                _refuse(409, f"parent of span {start[1]} belongs to another trace")
            path: set[Key] = set()
            key: Key | None = start
            while key is not None and key not in checked:
                if key in path:
                    _refuse(409, f"span {start[1]} is its own ancestor")
                path.add(key)
                parent = (batch.get(key) or self.spans.get(key) or {}).get("parent_id")
                key = (key[0], parent) if parent else None
            checked |= path

    def _store(self, key: Key, row: Row) -> None:
        before = self.spans.get(key)
        if before is not None:
            days = {parse_time(r["start_timestamp"]).date() for r in (before, row)}
            self.second_rows += len(days) - 1
        self.spans[key] = row
        self._traces.setdefault(key[1], set()).add(key[0])
        self.wrote(key[1], complete="end_timestamp" in row)


def _items(request: Recorded) -> list[Any]:
    if request.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
        _refuse(422, "Input should be a valid dictionary")
    try:
        body = json.loads(request.body, parse_constant=_not_json)
    except (ValueError, RecursionError):
        _refuse(422, "JSON decode error")
    items = body.get("items") if isinstance(body, dict) else None
    if not isinstance(items, list):
        _refuse(422, [{"type": "list_type", "loc": ["body", "items"]}])
    if len(items) > ITEMS_MAX:
        _refuse(422, [{"type": "too_long", "loc": ["body", "items"]}])
    return items


def _not_json(constant: str) -> NoReturn:
    raise ValueError(constant)


def _item(position: int, item: object) -> Row:
    """Return the item's known fields as a row. An optional field may be absent, but not null."""
    if not isinstance(item, dict):
        _invalid(position, "", item)
    for name in REQUIRED:
        if name not in item:
            _invalid(position, name, item)
    row: Row = {}
    for name in (*TEXTS, *TIMES, *OBJECTS, *ENUMS):
        if name in item:
            row[name] = item[name]
            if not _fits(name, item[name]):
                _invalid(position, name, item[name])
    row.setdefault("id", str(uuid.uuid4()))
    if "end_timestamp" in row:
        start, end = (parse_time(row[name]) for name in TIMES)
        if end < start:
            _invalid(position, "end_timestamp", row["end_timestamp"])
    _check_identity(position, row)
    return row


def _check_identity(position: int, row: Row) -> None:
    for name in IDENTITY:
        text = row.get(name, "")
        if "\0" in text or not encodes(text):
            _refuse(400, f"items[{position}].{name} has a NUL byte or is not UTF-8")
    for name in ("id", "group_id"):
        if len(row.get(name, "").encode()) > ID_MAX:
            _refuse(400, f"items[{position}].{name} is longer than {ID_MAX} bytes")


def _fits(name: str, value: object) -> bool:
    if name in OBJECTS:
        return isinstance(value, dict) and survey(value).finite
    if not isinstance(value, str):
        return False
    if name in ENUMS:
        return value in ENUMS[name]
    if name in ("id", "group_id"):
        return len(value) <= ID_MAX
    if name in TIMES:
        try:
            parse_time(value)
        except ValueError:
            return False
    return True


def _invalid(position: int, name: str, value: object) -> NoReturn:
    loc = ["body", "items", position, name]
    _refuse(422, [{"type": "value_error", "loc": loc, "input": value}])


def _refuse(status: int, detail: object) -> NoReturn:
    raise Refusal(Answer(status, json.dumps({"detail": detail}).encode()))

"""The schemas of docs/openapi.json: what the requests and responses of both ports look like.

They come from the structs that the code decodes and encodes, and for `/status` from the tables of
docs/status.md, which a test holds to the code. What a struct does not say (lengths, times, what an
END must have) is added here, with the rule of docs/api.md that it stands for.
"""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from sidecar.listener.routes.agentex import Unprocessable
from sidecar.listener.routes.agentex import _Body as AgentexBody
from sidecar.listener.routes.ingest import Accepted
from sidecar.listener.routes.sgp import _STATUSES, CreatedList, Problems
from sidecar.sinks.sgp import SPAN_TYPES
from sidecar.spans.span import WireSpan
from sidecar.spans.validation import MAX_ID_BYTES, MAX_REFERENCE_BYTES
from sidecar.telemetry.outcomes import SinkState

Json: TypeAlias = dict[str, Any]

REF = "#/components/schemas/"
_STATUS_PAGE = Path(__file__).parents[1] / "docs" / "status.md"
_TYPES = {"list": "array"}  # docs/status.md and JSON Schema call it differently
_ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \| (.*) \|$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"[A-Z]+")

# Rules of docs/api.md, in the order of its table of fields. JSON Schema counts characters where the
# rule counts bytes of UTF-8, so these bounds allow a little more: see the descriptions.
_NOT_EMPTY = {"minLength": 1}  # "required strings, not empty"
_NO_NUL = {"pattern": "^[^\\u0000]*$"}  # "no NUL character"
_ID = {  # "at most 256 bytes of UTF-8"
    **_NOT_EMPTY,
    **_NO_NUL,
    "maxLength": MAX_ID_BYTES,
    "description": f"At most {MAX_ID_BYTES} bytes of UTF-8.",
}
_REFERENCE = {  # "at most 1,024 bytes of UTF-8"
    "maxLength": MAX_REFERENCE_BYTES,
    "description": f"At most {MAX_REFERENCE_BYTES} bytes of UTF-8.",
}
_TIME = {  # "RFC 3339, or ISO 8601 in the extended form"
    **_NOT_EMPTY,
    "format": "date-time",
    "description": "RFC 3339, or ISO 8601 in the extended form. Without an offset it is UTC. The "
    "UTC is in the years 1 to 9999.",
}
_END_TIME = {
    **_TIME,
    "description": "Not before the start. Otherwise as the start.",
}
_PAYLOAD = REF + "Payload"
# "an object, an array of objects, or null; nested at most 200 levels deep"
_PAYLOAD_SCHEMA: Json = {
    "anyOf": [
        {"type": "object"},
        {"type": "array", "items": {"type": "object"}},
        {"type": "null"},
    ],
    "description": "An object, an array of objects, or null; nested at most 200 levels deep. The "
    "bytes are forwarded as they are. In an END, null means: as in the START.",
}
_FIELDS: Mapping[str, Json] = {
    "id": _ID,
    "trace_id": {**_NOT_EMPTY, **_NO_NUL, **_REFERENCE},
    "name": _NOT_EMPTY,
    "start_time": _TIME,
    "end_time": _END_TIME,
    "parent_id": {**_NO_NUL, **_REFERENCE},
    "task_id": _REFERENCE,
}
_PAYLOADS = ("input", "output", "data")


def components() -> dict[str, Json]:
    """Return all schemas by name."""
    made = _responses(Accepted, CreatedList, Problems, Unprocessable)
    start = _span(WireSpan, "Span", "A span as its START has it.")
    start["properties"]["end_time"]["description"] = "Ignored in a START."
    del start["properties"]["end_time"]["format"], start["properties"]["end_time"]["minLength"]
    ended = _ended(_span(WireSpan, "EndedSpan", "A span as its END has it."))
    post = _span(AgentexBody, "AgentexSpan", "Without `end_time` it is a START.")
    # "Without an `id` the sidecar generates a UUID"
    post["properties"]["id"]["description"] += " Without it, the sidecar generates a UUID."
    patch = _ended(_span(AgentexBody, "AgentexEnd", "The END of the span in the path."))
    # "an `id` in the body is ignored"
    patch["properties"]["id"] = {"type": ["string", "null"], "description": "Ignored."}
    row = _span(WireSpan, "AgentexRow", "The span, with null where nothing is set.", limits=False)
    row["required"] = list(row["properties"])
    made |= {each["title"]: each for each in (start, ended, post, patch, row)}
    return {
        "Event": {
            "title": "Event",
            "description": "A START or an END of a span.",
            "oneOf": [{"$ref": REF + "Start"}, {"$ref": REF + "End"}],
            "discriminator": {
                "propertyName": "event_type",
                "mapping": {"start": REF + "Start", "end": REF + "End"},
            },
        },
        "Start": _event("start", "Span"),
        "End": _event("end", "EndedSpan"),
        **made,
        "Payload": {"title": "Payload", **_PAYLOAD_SCHEMA},
        "SgpItem": _sgp_item(),
        "Batch": {
            "title": "Batch",
            "type": "object",
            "properties": {"items": {"type": "array", "items": {"$ref": REF + "SgpItem"}}},
            "required": ["items"],
        },
        "Error": _text_body("Error", "error"),
        "Detail": _text_body("Detail", "detail"),
        "Status": _documented("/status"),
        "History": _documented("/status/history"),
        "Explanation": _explanation(),
    }


def _responses(*structs: type[msgspec.Struct]) -> dict[str, Json]:
    """Return the schemas of response bodies; members with a default are always there, too."""
    schemas = msgspec.json.schema_components(structs, ref_template=REF + "{name}")[1]
    for schema in schemas.values():
        required = set(schema.get("required", ()))
        for name, member in schema["properties"].items():
            if "default" in member:
                required.add(name)
                del member["default"]
        schema["required"] = [name for name in schema["properties"] if name in required]
    return {name: _plain(schema) for name, schema in schemas.items()}


def _plain(schema: Json) -> Json:
    """Write "a string or null" as a list of types."""
    for member in schema["properties"].values():
        kinds = [each.get("type") for each in member.get("anyOf", ()) if len(each) == 1]
        if kinds and len(kinds) == len(member["anyOf"]):
            del member["anyOf"]
            member["type"] = kinds
    return schema


def _span(
    struct: type[msgspec.Struct], title: str, description: str, *, limits: bool = True
) -> Json:
    """Return the schema of a struct with the fields of a span, and the rules for its fields."""
    fields = msgspec.structs.fields(struct)
    # msgspec has no schema for the default of a Raw.
    shown = [
        (each.name, Any if each.type is msgspec.Raw else each.type)
        if each.required
        else (each.name, Any if each.type is msgspec.Raw else each.type, None)
        for each in fields
    ]
    schema = _plain(msgspec.json.schema(msgspec.defstruct(title, shown))["$defs"][title])
    schema["description"] = description
    for name, member in schema["properties"].items():
        member.pop("default", None)
        if name in _PAYLOADS:
            member["$ref"] = _PAYLOAD
        elif limits and name in _FIELDS:
            member.update(deepcopy(_FIELDS[name]))
    return schema


def _ended(schema: Json) -> Json:
    """Require `end_time`: "required in an `end`", and in a PATCH."""
    schema["properties"]["end_time"]["type"] = "string"
    schema["required"].append("end_time")
    return schema


def _event(kind: str, span: str) -> Json:
    return {
        "title": kind.title(),
        "type": "object",
        "properties": {
            "event_type": {"type": "string", "const": kind},
            "span": {"$ref": REF + span},
        },
        "required": ["event_type", "span"],
    }


def _sgp_item() -> Json:
    """Return the rules of docs/api.md for an item: the code reads it member by member."""
    text = {"type": "string"}
    optional = {"type": ["string", "null"]}
    members: dict[str, Json] = {
        "trace_id": {**text, **_FIELDS["trace_id"]},
        "name": {**text, **_NOT_EMPTY},
        "start_timestamp": {**text, **_TIME},
        "parent_id": {**optional, **_FIELDS["parent_id"]},
        "id": {**optional, **_ID},
        "group_id": {
            **optional,
            **_NO_NUL,
            "maxLength": MAX_ID_BYTES,
            "description": _ID["description"],
        },
        "end_timestamp": {**optional, **_END_TIME},
        "input": {"$ref": _PAYLOAD},
        "output": {"$ref": _PAYLOAD},
        "metadata": {"$ref": _PAYLOAD},
        "expected": {"type": ["object", "null"]},
        "status": {"enum": [msgspec.json.decode(each) for each in _STATUSES]},
        "type": {**optional, "examples": sorted(SPAN_TYPES)},
    }
    members["id"]["description"] += " Without it, the sidecar generates a UUID."
    members["end_timestamp"]["description"] += " Without it, the span is open."
    members["type"]["description"] = "Forwarded as CUSTOM where SGP does not know it."
    return {
        "title": "SgpItem",
        "description": "A span as the SGP SDK sends it. Other members are forwarded unchanged.",
        "type": "object",
        "properties": deepcopy(members),
        "required": ["trace_id", "name", "start_timestamp"],
    }


def _text_body(title: str, key: str) -> Json:
    return {
        "title": title,
        "description": "What is wrong, and what to do.",
        "type": "object",
        "properties": {key: {"type": "string"}},
        "required": [key],
    }


def _documented(heading: str) -> Json:
    """Return the schema of a response whose keys are a table of docs/status.md."""
    page = _STATUS_PAGE.read_text(encoding="utf-8")
    table = page.split(f"\n## {heading}\n")[1].partition("\n## ")[0]
    root: Json = {"type": "object"}
    for path, kinds, means in _ROW.findall(table):
        *parents, name = path.replace("[]", ".[]").split(".")
        at = root
        for each in parents:
            at = _inside(at, each)
        words = [_TYPES.get(word, word) for word in kinds.strip().split(" or ")]
        schema: Json = {"type": words if len(words) > 1 else words[0], "description": means}
        _put(at, name, schema, is_required=not means.startswith("SGP only"))
    if heading == "/status":
        sink = _inside(_inside(root, "sinks"), "SINK")["properties"]
        sink["state"]["enum"] = [state.value for state in SinkState]
    return root | {"title": heading.rpartition("/")[2].title()}


def _inside(schema: Json, name: str) -> Json:
    if name == "[]":
        found: Json = schema["items"]
    elif _PLACEHOLDER.fullmatch(name):
        found = schema["additionalProperties"]
    else:
        found = schema["properties"][name]
    return found


def _put(schema: Json, name: str, member: Json, *, is_required: bool) -> None:
    if name == "[]":
        schema["items"] = member
    elif _PLACEHOLDER.fullmatch(name):
        schema["additionalProperties"] = member
    else:
        schema.setdefault("properties", {})[name] = member
        if is_required:
            schema.setdefault("required", []).append(name)


def _explanation() -> Json:
    """Return what docs/api.md says of `/explain`."""
    text: Json = {"type": "string"}
    number: Json = {"type": "number"}
    count: Json = {"type": "integer", "minimum": 0}
    known: Json = {"type": ["string", "null"]}
    looked: Json = {"type": ["boolean", "null"], "description": "Null if there is none."}
    waiting = {
        "type": ["object", "null"],
        "description": "What a write of the span waits for in memory.",
        "properties": {"waits_for": text, "failures": count, "next_attempt_s": number},
        "required": ["waits_for"],
    }
    sink = text | {"description": "Empty for the intake."}
    entry = {"at": text, "ago_s": number, "sink": sink, "what": text, "detail": text}
    letter = {"time": text, "sink": text, "reason": text, "status": count, "kind": text}
    letter["replayed"] = {"type": "boolean"}
    names: Json = {"type": ["array", "null"], "items": text}
    span = {
        "id": text,
        "trace_id": known,
        "account": known,
        "timeline": {"type": "array", "items": _object(entry | {"times": count, "text": text})},
        "left_off": count,
        "start": known | {"description": "Where its START is kept."},
        "lanes": {"type": "object", "additionalProperties": waiting},
        "on_disk": names | {"description": "The sinks for which it waits on disk only."},
        "dead_letters": {"type": "array", "items": _object(letter)},
        "summary": text,
    }
    remembered = {"decisions": count, "since": text, "span_s": number, "all": {"type": "boolean"}}
    searched = {"memory": {"type": "boolean"}, "spool": looked, "dead_letters": looked}
    members = {
        "id": text,
        "found_by": {"enum": ["span", "trace", None]},
        "text": text,
        "remembered": _object(remembered),
        "searched": _object(searched),
        "spans": {"type": "array", "items": _object(span)},
        "left_off": count,
    }
    return {"title": "Explanation", **_object(members)}


def _object(members: Mapping[str, Json], required: Iterable[str] | None = None) -> Json:
    names = list(members if required is None else required)
    return {"type": "object", "properties": deepcopy(dict(members)), "required": names}

"""What a span is in OTLP: its ids, times, status, link and attributes (docs/otlp.md). Pure.

Only `data` is looked into, one level deep, and the members of an SGP SDK's item. `input` and
`output` become attributes as they are. Nothing here can fail for a span that the listener accepted.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from math import isfinite
from typing import NamedTuple, TypeAlias

import msgspec

from sidecar.spans.span import Span

# JSON text, which is an attribute as it is. Parts of it are not copied.
Json: TypeAlias = bytes | memoryview
Value: TypeAlias = str | bool | int | float | Json
Attributes: TypeAlias = dict[str, Value]
Members: TypeAlias = Mapping[str, memoryview]

KINDS = {  # of OpenInference, by the span types in docs/upstreams.md S2.1
    "COMPLETION": "LLM",
    "KB_RETRIEVAL": "RETRIEVER",
    "DOCUMENT_SEARCH": "RETRIEVER",
    "FILE_RETRIEVAL": "RETRIEVER",
    "RERANKING": "RERANKER",
    "EXTERNAL_ENDPOINT": "TOOL",
    "CODE_EXECUTION": "TOOL",
    "DATA_MANIPULATION": "TOOL",
    "KB_ADD_CHUNK": "TOOL",
    "KB_MANAGEMENT": "TOOL",
    "PROMPT_ENGINEERING": "PROMPT",
    "DOCUMENT_PROMPT": "PROMPT",
    "AGENT_TRACER": "AGENT",
    "AGENT_WORKFLOW": "AGENT",
    "GUARDRAIL": "GUARDRAIL",
    "OUTPUT_GUARDRAIL": "GUARDRAIL",
    "EVALUATION": "EVALUATOR",
}
# Some agents name the kind itself.
_OWN_KINDS = frozenset(KINDS.values()) | {"EMBEDDING", "CHAIN"}
_KIND = "openinference.span.kind"
_OTHER_KIND = "CHAIN"
_MIME_TYPE = "application/json"
# Members of an SGP SDK's item that are not payloads. Others may be content, and stay with SGP.
_ITEM_MEMBERS = (
    "type",
    "status",
    "group_id",
    "application_variant_id",
    "application_interaction_id",
)
# What `data`, and rather `data.usage`, says of tokens (docs/upstreams.md S2.2); later names win.
_PROMPT = "llm.token_count.prompt", "gen_ai.usage.input_tokens"
_COMPLETION = "llm.token_count.completion", "gen_ai.usage.output_tokens"
_CACHED = ("llm.token_count.prompt_details.cache_read",)
_TOKENS = {
    "prompt_tokens": _PROMPT,
    "input_tokens": _PROMPT,
    "completion_tokens": _COMPLETION,
    "output_tokens": _COMPLETION,
    "total_tokens": ("llm.token_count.total",),
    "cached_tokens": _CACHED,
    "cached_input_tokens": _CACHED,
    "reasoning_tokens": ("llm.token_count.completion_details.reasoning",),
}
_MODEL_MEMBERS = "model", "model_name"
_MODEL_NAMES = "llm.model_name", "gen_ai.request.model"

# Readers take a time as a signed number of nanoseconds: up to the year 2262.
MAX_NANOS = 2**63 - 1
_INT64 = range(-(2**63), 2**63)
_MAX_DIGITS = 20
_MAX_PREFIXES = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FRACTION = re.compile(r"\.([0-9]+)")
_TRACE_ID = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SPAN_ID = re.compile(r"[0-9a-fA-F]{16}")
_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8

_QUOTE, _TRUE, _NULL = b'"tn'  # first bytes of JSON values
_NONE: Members = {}
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)


class Mapped(NamedTuple):
    """A span as OTLP has it.

    Ids are bytes, `parent_id` and the link's ids may be empty; times are nanoseconds since 1970.
    `error` is the status's message, None if the status is unset.
    """

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    name: str
    start: int
    end: int
    error: str | None
    link: tuple[bytes, bytes] | None
    attributes: Attributes


def mapped(span: Span, account_id: str = "") -> Mapped:
    """What a complete span is in OTLP; `account_id` is its account's, if known."""
    trace_id, id_ = span.key[:2]
    parent_id, start, end = span.parent_id, span.start_time, span.end_time or span.start_time
    started = nanos(start)
    ended = max(started, nanos(end))  # the listener compares microseconds only
    attributes: Attributes = {"agentex.trace_id": trace_id, "agentex.span_id": id_}
    if parent_id:
        attributes["agentex.parent_id"] = parent_id
    if span.task_id:
        attributes["agentex.task_id"] = _clean(span.task_id)
    if account_id:
        attributes["agentex.account_id"] = account_id
    if not (0 < started < MAX_NANOS and 0 < ended < MAX_NANOS):
        attributes |= {"agentex.start_time": start, "agentex.end_time": end}
    if span.input:
        attributes |= {"input.value": span.input, "input.mime_type": _MIME_TYPE}
    if span.output:
        attributes |= {"output.value": span.output, "output.mime_type": _MIME_TYPE}
    item, members, error = _NONE, _NONE, None
    if span.sdk is not None:
        item = _members(b"{%b}" % span.sdk.extra)
        _add_item(item, attributes)
    if span.data or item:
        members = _members(span.data)
        _add_kind(members, item, attributes)
        error = _error(members, item, attributes)
        _add_model(members, attributes)
        _add_members(members, attributes)
        if not members and span.data[:1] == b"[":
            attributes["data"] = span.data
    attributes.setdefault(_KIND, _OTHER_KIND)
    return Mapped(
        trace_id_bytes(trace_id),
        span_id_bytes(trace_id, id_),
        span_id_bytes(trace_id, parent_id) if parent_id else b"",
        _clean(span.name),
        started,
        ended,
        error,
        _link(members) or _link(item),
        attributes,
    )


def trace_id_bytes(text: str) -> bytes:
    """The 16 bytes of a trace's id: 32 hex digits, with a UUID's dashes or without, or hashed."""
    if _TRACE_ID.fullmatch(text) and any(found := bytes.fromhex(text.replace("-", ""))):
        return found
    return sha256(text.encode()).digest()[:_TRACE_ID_BYTES]


def span_id_bytes(trace_id: str, id_: str) -> bytes:
    """The 8 bytes of a span's id: 16 hex digits, or a hash with its trace's id."""
    if _SPAN_ID.fullmatch(id_) and any(found := bytes.fromhex(id_)):
        return found
    return sha256(f"{trace_id}\0{id_}".encode()).digest()[:_SPAN_ID_BYTES]


def nanos(text: str) -> int:
    """A time's nanoseconds since 1970, from 0 to `MAX_NANOS`; further digits are cut off."""
    instant = datetime.fromisoformat(text)
    since = (instant if instant.tzinfo else instant.replace(tzinfo=UTC)) - _EPOCH
    seconds = since.days * 86400 + since.seconds
    # The parser keeps only six digits.
    fraction = _FRACTION.search(text)
    below = int(fraction[1][:9].ljust(9, "0")) if fraction else 0
    return min(max(0, seconds * 1_000_000_000 + below), MAX_NANOS)


def _members(json: Json) -> Members:
    """The members of an object, the last of equal ones; none of any other value."""
    if json[:1] != b"{":
        return _NONE
    return {name: memoryview(raw) for name, raw in _MEMBERS.decode(json).items()}


def _add_item(item: Members, attributes: Attributes) -> None:
    for name in _ITEM_MEMBERS:
        if name in item and (value := _value(item[name])) is not None:
            attributes[f"sgp.{name}"] = value


def _add_kind(members: Members, item: Members, attributes: Attributes) -> None:
    type_ = _text_in(item, "type") or _text_in(members, "__span_type__")
    if type_:
        attributes[_KIND] = type_ if type_ in _OWN_KINDS else KINDS.get(type_, _OTHER_KIND)


def _error(members: Members, item: Members, attributes: Attributes) -> str | None:
    """The status's message, None without an error; its type becomes an attribute."""
    error = members.get("__error__", b"")
    if error[:1] != b"{" and _text_in(item, "status") != "ERROR":
        return None
    told = _members(error)
    type_ = _text_in(told, "type") or _text_in(members, "error_type")
    if type_:
        attributes["error.type"] = type_
    return _text_in(told, "message") or _text_in(members, "error_message") or type_


def _add_model(members: Members, attributes: Attributes) -> None:
    model = next((text for name in _MODEL_MEMBERS if (text := _text_in(members, name))), "")
    if model:
        attributes |= dict.fromkeys(_MODEL_NAMES, model)
    for place in (members, _members(members.get("usage", b""))):
        for name, names in _TOKENS.items():
            if name in place and (count := _count(place[name])) is not None:
                attributes |= dict.fromkeys(names, count)


def _count(json: memoryview) -> int | None:
    """A number of tokens; None if it is none."""
    value = _value(json)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value < _INT64.stop else None


def _add_members(members: Members, attributes: Attributes) -> None:
    """Each member of `data` under its own name, or a longer one if that is taken or empty."""
    tried: dict[str, int] = {}  # how often a name was taken, of members that differ only in NUL
    for member, json in members.items():
        value = _value(json)
        if value is None:
            continue
        clean = name = _clean(member)
        number = tried.get(clean, 0) if clean != member else 0
        if number:
            name = _longer(clean, number)
        while not name or name in attributes or (name != member and name in members):
            number += 1
            name = _longer(clean, number)
        if clean != member:
            tried[clean] = number
        attributes[name] = value


def _longer(name: str, number: int) -> str:
    """The name to try after `number` others; short, however many members have it."""
    return "data." * number + name if number <= _MAX_PREFIXES else f"data.{number}.{name}"


def _value(json: memoryview) -> Value | None:
    """The attribute for a JSON value; None for null, which OTLP has no value for."""
    first = json[0]
    if first == _QUOTE:
        return _clean(_TEXT.decode(json))
    if first in b"{[":
        return json
    if first in b"tf":
        return first == _TRUE
    return None if first == _NULL else _number(bytes(json).decode())


def _number(text: str) -> Value:
    """A number as it is, or its text where OTLP's numbers can't hold it."""
    if text.lstrip("-").isdigit():
        fits = len(text) <= _MAX_DIGITS and int(text) in _INT64
        return int(text) if fits else text
    number = float(text)
    return number if isfinite(number) else text


def _text_in(members: Members, name: str) -> str:
    """A member that is a string, else ""."""
    json = members.get(name, b"")
    return _clean(_TEXT.decode(json)) if json[:1] == b'"' else ""


def _link(members: Members) -> tuple[bytes, bytes] | None:
    """The ids of the span that an APM tool has of the same work."""
    trace_id, span_id = _text_in(members, "obs_trace_id"), _text_in(members, "obs_span_id")
    if not (_TRACE_ID.fullmatch(trace_id) and _SPAN_ID.fullmatch(span_id)):
        return None
    found = bytes.fromhex(trace_id.replace("-", "")), bytes.fromhex(span_id)
    return found if all(map(any, found)) else None


def _clean(text: str) -> str:
    """Without NUL characters, which databases behind OTLP refuse, with all that came with them."""
    return text.replace("\0", "\ufffd") if "\0" in text else text

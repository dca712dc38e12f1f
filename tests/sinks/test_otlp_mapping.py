"""What spans are in OTLP (docs/otlp.md), as OpenTelemetry's own package reads it."""

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message

from sidecar.http.messages import Request
from sidecar.listener.routes.sgp import SgpRoute
from sidecar.sinks.otlp_mapping import KINDS, MAX_NANOS, mapped, nanos
from sidecar.sinks.otlp_message import Encoder
from sidecar.spans.decode import decode
from sidecar.spans.span import Span, from_row, to_row
from tests.support.any_json import json_values, objects
from tests.support.otlp import Attributes, attributes, spans_in
from tests.support.spans import END_TIME, START_TIME, make_event, make_span

UUID = "97008c14-e5e1-4a5f-8e1a-6c650a876779"
LINK = {"obs_trace_id": "a" * 32, "obs_span_id": "b" * 16}
UNUSUAL = '{"a":1e400,"a":-0,"b":-0.0,"c":1E5,"":"\\u0000","d\\u0000":1, "e" : [ 1 ] }'
PAGE = Path(__file__).parents[2] / "docs" / "otlp.md"
ENCODER = Encoder({"service.name": "agent", "k8s.pod.name": "pod-1"}, "scope", "1.2.3")


def message_of(span: Span, account_id: str = "") -> Message:
    """The only span of a request with `span`."""
    body = b"".join(ENCODER.parts([mapped(span, account_id)]))
    (message,) = spans_in(ExportTraceServiceRequest.FromString(body))
    return message


def attributes_of(**fields: Any) -> Attributes:
    """The attributes of a span, without those that every span has."""
    if "data" in fields and not isinstance(fields["data"], bytes):
        fields["data"] = json.dumps(fields["data"]).encode()
    found = attributes(message_of(make_span(**({"input": b"", "output": b""} | fields))).attributes)
    ids = {"agentex.trace_id": "t1", "agentex.span_id": "s1", "openinference.span.kind": "CHAIN"}
    assert found.keys() >= ids.keys()
    return {name: value for name, value in found.items() if ids.get(name) != value}


def item_of(**members: Any) -> Span:
    """The span of an item that SGP's SDK sends."""
    item = {"id": "s1", "trace_id": "t1", "name": "turn"}
    times = {"start_timestamp": START_TIME, "end_timestamp": END_TIME}
    body = json.dumps({"items": [item | times | members]}).encode()
    request = Request("PUT", "/v5/spans/batch", "/v5/spans/batch", {})
    (span,) = SgpRoute().decode(request, body, 0.0).spans
    return span


# The rules of docs/otlp.md once more, over Python's own parser.


class Number(str):
    """A JSON number, as it is written."""

    __slots__ = ()


def hashed(text: str, size: int) -> bytes:
    """The first bytes of a text's SHA-256."""
    return hashlib.sha256(text.encode()).digest()[:size]


def expected_value(value: object) -> object:
    """A scalar attribute of a member of `data`; None if it is no scalar, or null."""
    if not isinstance(value, Number):
        return value.replace("\0", "\ufffd") if isinstance(value, str) else value
    if set(value) <= set("-0123456789"):
        whole = int(value) if len(value) < 40 else 2**64
        return whole if -(2**63) <= whole < 2**63 else str(value)
    return float(value) if abs(float(value)) != float("inf") else str(value)


def check_data(sent: bytes, message: Message) -> None:
    """Every member of `data` is an attribute under its own name, or a longer one."""
    found = attributes(message.attributes)
    read = json.loads(sent or b"null", parse_int=Number, parse_float=Number)
    if isinstance(read, list):
        assert found["data"] == sent.decode()
        read = {}
    for name, value in (read or {}).items():
        cleaned = name.replace("\0", "\ufffd")
        names = [each for each in (f"{'data.' * n}{cleaned}" for n in range(4)) if each in found]
        if value is None:
            continue
        if isinstance(value, dict | list):
            found_texts = [str(found[each]) for each in names]
            assert any(text in sent.decode() and same(text, value) for text in found_texts)
        else:
            kept = [found[each] for each in names]
            expected = expected_value(value)
            assert any((type(k), k) == (type(expected), expected) for k in kept), (name, value)


def same(text: str, value: object) -> bool:
    """Whether `text` is `value` as JSON."""
    try:
        return bool(json.loads(text, parse_int=Number, parse_float=Number) == value)
    except ValueError:
        return False


ids = st.one_of(
    st.uuids().map(str),
    st.text("0123456789abcdefABCDEF", min_size=16, max_size=16),
    st.text("0123456789abcdefABCDEF", min_size=32, max_size=32),
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=60),
)
meanings = st.fixed_dictionaries(
    {},
    optional={
        "__error__": json_values | st.fixed_dictionaries({"type": st.text(), "message": st.text()}),
        "__span_type__": json_values | st.sampled_from([*KINDS, "STANDALONE", "LLM"]),
        "model": json_values,
        "usage": json_values | st.fixed_dictionaries({"input_tokens": json_values}),
        "total_tokens": json_values,
        "obs_trace_id": json_values | st.just("a" * 32),
        "obs_span_id": json_values | st.just("b" * 16),
        "input.value": json_values,
        "agentex.span_id": json_values,
        "data.input.value": json_values,
        "big": st.integers(2**63 - 2, 2**64),
    },
)
datas = st.builds(lambda a, b: a | b, objects, meanings) | st.lists(objects) | st.none()
texts = st.builds(
    lambda value, ascii_, indent: json.dumps(value, ensure_ascii=ascii_, indent=indent),
    datas,
    st.booleans(),
    st.sampled_from([None, 1]),
)


def check_common(span: Span, message: Message) -> None:
    """What holds for every span: ids, name, payloads, data; and that readers can take it."""
    found = attributes(message.attributes)
    assert (found["agentex.trace_id"], found["agentex.span_id"]) == (span.trace_id, span.id)
    assert len(message.trace_id) == 16
    assert len(message.span_id) == 8
    assert any(message.trace_id)
    assert any(message.span_id)
    assert len(message.parent_span_id) == (8 if span.parent_id else 0)
    assert found.get("agentex.parent_id") == span.parent_id
    assert message.name == span.name.replace("\0", "\ufffd")
    assert message.kind == Message.SPAN_KIND_INTERNAL
    for name, payload in (("input", span.input), ("output", span.output)):
        if payload:
            assert found[f"{name}.value"] == payload.decode()
            assert found[f"{name}.mime_type"] == "application/json"
    check_data(span.data, message)


@given(id_=ids, trace_id=ids, parent_id=ids | st.none(), name=st.text(min_size=1), data=texts)
@example(
    "a", "0" * 32, "0" * 16, "\0", '{"a":1e400,"a":-0,"b":-0.0,"c":1E5,"":"\\u0000","d\\u0000":1}'
)
def test_any_span_becomes_a_message(
    id_: str, trace_id: str, parent_id: str | None, name: str, data: str
) -> None:
    """Whatever an agent sends, OpenTelemetry's package reads it, with nothing missing."""
    event = make_event(
        id_, kind="end", trace_id=trace_id, parent_id=parent_id, name=name,
        input={"messages": [name]}, output="HERE", data="HERE",
    )  # fmt: skip
    body = json.dumps(event).replace('"HERE"', data).encode()
    (span,) = decode(body, 0.0).spans
    message = message_of(span)
    check_common(span, message)
    assert message == message_of(from_row(to_row(span), 0.0))  # it comes back from the spool


@given(data=texts, members=objects, status=st.sampled_from(["SUCCESS", "ERROR", "CANCELED", None]))
def test_any_item_of_the_sgp_sdk_becomes_a_message(
    data: str, members: dict[str, Any], status: str | None
) -> None:
    """Members that we don't know may be anything, and may be content: they stay with SGP."""
    names = {"id", "trace_id", "name", "input", "output", "metadata", "status", "type", "group_id"}
    times = {"start_timestamp", "end_timestamp", "parent_id", "expected"}
    others = {f"x{name}": value for name, value in members.items() if name not in names | times}
    span = item_of(status=status, metadata=json.loads(data), input={"q": 1}, **others)
    message = message_of(span)
    check_common(span, message)
    found = attributes(message.attributes)
    assert found.get("sgp.status") == status
    assert not [name for name in found if name.startswith("sgp.x")]
    if status == "ERROR":
        assert message.status.code == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (UUID, UUID.replace("-", "")),
        (UUID.upper(), UUID.replace("-", "")),
        (UUID.replace("-", ""), UUID.replace("-", "")),
        # printf '%s' TEXT | sha256sum | cut -c1-32
        ("trace-1", "17fe6f303311c0b164b937e419518c1f"),
        ("0" * 32, "84e0c0eafaa95a34c293f278ac52e45c"),
        ("00000000-0000-0000-0000-000000000000", "12b9377cbe7e5c94e8a70d9d23929523"),
        ("9700-8c14e5e1-4a5f-8e1a-6c650a876779", "3aff01ecb5749f8c5abb4593a44ee9d5"),
    ],
)
def test_trace_ids(text: str, expected: str) -> None:
    """What is a trace id already stays one; any other text is hashed."""
    assert message_of(make_span(trace_id=text)).trace_id.hex() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b7ad6b7169203331", "b7ad6b7169203331"),
        ("B7AD6B7169203331", "b7ad6b7169203331"),
        # printf '%s\0%s' trace-1 TEXT | sha256sum | cut -c1-16
        ("span-1", "3f2bfd0c24376bfd"),
        ("root", "1616491058112262"),
    ],
)
def test_span_ids(text: str, expected: str) -> None:
    """A parent's id is made as its own span makes it, so the tree is the same."""
    message = message_of(make_span(text, trace_id="trace-1", parent_id=text))
    assert (message.span_id.hex(), message.parent_span_id.hex()) == (expected, expected)


def test_ids_of_zeros_are_hashed() -> None:
    """Readers refuse them, whatever an agent means by them."""
    message = message_of(make_span("0" * 16, trace_id="t", parent_id="0" * 16))
    assert message.span_id == message.parent_span_id == hashed(f"t\0{'0' * 16}", 8)


@given(
    seconds=st.integers(-62_000_000_000, 253_000_000_000),
    fraction=st.text("0123456789", max_size=12),
    minutes=st.integers(-14 * 60, 14 * 60) | st.none(),
)
@example(253_402_300_799 - 50_400, "999999999", 0)
@example(-1, "5", None)
def test_times_are_exact_to_the_nanosecond(
    seconds: int, fraction: str, minutes: int | None
) -> None:
    """Whatever the offset is; what a signed number of nanoseconds can't hold is cut off."""
    zone = UTC if minutes is None else timezone(timedelta(minutes=minutes))
    text = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).astimezone(zone)
    head, tail = text.isoformat()[:19], "Z" if minutes is None else text.isoformat()[19:]
    expected = seconds * 10**9 + int((fraction + "0" * 9)[:9])
    sent = head + ("." + fraction if fraction else "") + tail
    assert nanos(sent) == min(max(expected, 0), MAX_NANOS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02 03:04Z", 1767323040_000000000),
        ("2026-01-02T03:04:05", 1767323045_000000000),
        ("2026-01-02T03:04:05.5Z", 1767323045_500000000),
        ("2026-01-02T03:04:05.1234567899Z", 1767323045_123456789),
        ("2026-01-02T05:04:05.123456789+02:00", 1767323045_123456789),
        ("0001-01-01T00:00:00+14:00", 0),
        ("9999-12-31T23:59:59.999999-14:00", MAX_NANOS),
    ],
)
def test_times_in_other_forms(text: str, expected: int) -> None:
    """Every form that the listener forwards is read."""
    assert nanos(text) == expected


EARLY, LATE = "1969-12-31T23:59:59Z", "9999-12-31T00:00:00Z"


@pytest.mark.parametrize(
    ("start", "end", "sent"),
    [(EARLY, LATE, (0, MAX_NANOS)), (START_TIME, LATE, (nanos(START_TIME), MAX_NANOS)),
     (EARLY, END_TIME, (0, nanos(END_TIME)))],
)  # fmt: skip
def test_a_time_that_does_not_fit_is_kept_as_text(
    start: str, end: str, sent: tuple[int, int]
) -> None:
    """Nobody has to guess why a span seems to begin in 1970."""
    message = message_of(make_span(start_time=start, end_time=end))
    assert (message.start_time_unix_nano, message.end_time_unix_nano) == sent
    found = attributes_of(start_time=start, end_time=end)
    assert found == {"agentex.start_time": start, "agentex.end_time": end}


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("0", 0),
        ("-0", 0),
        ("1.0", 1.0),
        ("1E2", 100.0),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("9223372036854775808", "9223372036854775808"),
        ("9" * 5000, "9" * 5000),
        ("1e400", "1e400"),
        ("-1e400", "-1e400"),
    ],
)
def test_numbers(number: str, value: object) -> None:
    """They keep their type, and what OTLP's numbers can't hold is the number's text."""
    (found,) = attributes_of(data=b'{"n":%b}' % number.encode()).values()
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("data", "message", "type_"),
    [
        ({"__error__": {"type": "ValueError", "message": "boom"}}, "boom", "ValueError"),
        ({"__error__": {"type": "ValueError", "message": ""}}, "ValueError", "ValueError"),
        ({"__error__": {"message": 5}}, "", None),
        ({"__error__": {}}, "", None),
        ({"__error__": {}, "error_type": "T", "error_message": "m"}, "m", "T"),
        ({"__error__": "boom"}, None, None),
        ({"__error__": None}, None, None),
        ({"error_message": "m"}, None, None),
        ([{"__error__": {"message": "boom"}}], None, None),
    ],
)
def test_status(data: object, message: str | None, type_: str | None) -> None:
    """It is an error where SGP shows one, with the agent's own message, and else unset."""
    found = message_of(make_span(data=json.dumps(data).encode()))
    assert (found.status.code, found.status.message) == (0 if message is None else 2, message or "")
    assert attributes(found.attributes).get("error.type") == type_


def test_status_of_an_item() -> None:
    """SGP's SDK says it itself, and the error in its metadata."""
    failed = item_of(status="ERROR", metadata={"error_type": "T", "error_message": "m"})
    message = message_of(failed)
    assert (message.status.code, message.status.message) == (2, "m")
    assert message_of(item_of(status="ERROR")).status.code == 2
    assert message_of(item_of(status="SUCCESS")).status.code == 0


def test_kinds_are_those_of_the_page() -> None:
    """docs/otlp.md has the table of kinds, in full."""
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    kinds = {
        type_.strip("` ,"): row[2].strip("` ")
        for row in rows
        if row[2].strip("` ") in set(KINDS.values())
        for type_ in row[1].split("`, `")
    }
    assert kinds == KINDS


@pytest.mark.parametrize(
    ("type_", "kind"),
    [*KINDS.items(), ("STANDALONE", "CHAIN"), ("x", "CHAIN"), (None, "CHAIN"), ("EMBEDDING",) * 2],
)
def test_kind(type_: str | None, kind: str) -> None:
    """It comes from the span's type, whichever SDK sent it."""
    data = json.dumps({"__span_type__": type_}).encode()
    sent = [make_span(data=data), make_span(data=b'{"openinference.span.kind":"CHAIN"}')]
    found = [attributes(message_of(span).attributes)["openinference.span.kind"] for span in sent]
    assert found == [kind, "CHAIN"]
    if type_ in KINDS:
        item = attributes(message_of(item_of(type=type_)).attributes)
        assert (item["openinference.span.kind"], item["sgp.type"]) == (kind, type_)


def test_an_agents_own_attributes_are_kept() -> None:
    """`data` may have the conventions' names already: nothing else is known, so they stand."""
    data = {"openinference.span.kind": "TOOL", "llm.model_name": "m", "input.value": "text"}
    found = attributes(message_of(make_span(input=b"", data=json.dumps(data).encode())).attributes)
    assert found.items() >= data.items()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"input_tokens": 5, "output_tokens": 6}, {"prompt": 5, "completion": 6}),
        ({"usage": {"prompt_tokens": 5, "completion_tokens": 0}}, {"prompt": 5, "completion": 0}),
        ({"usage": {"prompt_tokens": 5, "input_tokens": 6}}, {"prompt": 6}),
        ({"usage": {"prompt_tokens": 5, "input_tokens": None}}, {"prompt": 5}),
        ({"usage": {"prompt_tokens": 5}, "input_tokens": 6}, {"prompt": 5}),
        ({"usage": {"total_tokens": 7.0}}, {"total": 7}),
        ({"usage": {"cached_tokens": 3}}, {"prompt_details.cache_read": 3}),
        ({"usage": {"reasoning_tokens": 4}}, {"completion_details.reasoning": 4}),
        ({"usage": {"input_tokens": -1, "output_tokens": True, "total_tokens": "7"}}, {}),
        ({"usage": {"input_tokens": 2**63, "output_tokens": 1.5}}, {}),
        ({"usage": [{"input_tokens": 5}]}, {}),
    ],
)
def test_tokens(data: dict[str, Any], expected: dict[str, int]) -> None:
    """Counts are told by OpenInference's names and GenAI's; what is no count is not told."""
    found = attributes_of(data=data)
    start = "llm.token_count."
    assert {k.removeprefix(start): v for k, v in found.items() if start in k} == expected
    genai = {"gen_ai.usage.input_tokens": "prompt", "gen_ai.usage.output_tokens": "completion"}
    assert [found.get(name) for name in genai] == [expected.get(name) for name in genai.values()]


@pytest.mark.parametrize(
    ("data", "model"),
    [
        ({"model": "m"}, "m"),
        ({"model_name": "m"}, "m"),
        ({"model": "m", "model_name": "other"}, "m"),
        ({"model": {"name": "m"}, "model_name": ""}, None),
    ],
)
def test_model(data: dict[str, Any], model: str | None) -> None:
    """The model is told by both conventions' names."""
    found = attributes_of(data=data)
    assert {found.get("llm.model_name"), found.get("gen_ai.request.model")} == {model}


@pytest.mark.parametrize(
    ("changed", "linked"),
    [
        ({}, True),
        ({"obs_trace_id": UUID}, True),
        ({"obs_trace_id": "0" * 32}, False),
        ({"obs_span_id": "0" * 16}, False),
        ({"obs_span_id": "b" * 15}, False),
        ({"obs_span_id": None}, False),
        ({"obs_trace_id": ["a" * 32]}, False),
    ],
)
def test_link(changed: dict[str, Any], linked: bool) -> None:
    """Only two whole ids of another tool's span make a link; an item may have them beside."""
    ids_ = LINK | changed
    from_data = message_of(make_span(data=json.dumps(ids_).encode()))
    from_item = message_of(item_of(**ids_))
    for message in (from_data, from_item):
        assert len(message.links) == linked
        for link in message.links:
            assert link.trace_id.hex() == str(ids_["obs_trace_id"]).replace("-", "")
            assert link.span_id.hex() == ids_["obs_span_id"]


def test_names_that_only_nul_tells_apart() -> None:
    """Each has its value, under a name that stays short however many there are."""
    names = ["x" + "".join(chance) for chance in product(("\0", "\ufffd"), repeat=9)]
    found = attributes_of(data=json.dumps(dict.fromkeys(names, 7)).encode())
    mine = [name for name, value in found.items() if value == 7]
    assert len(mine) == 2**9
    assert max(map(len, mine)) <= 10 + 8 * len("data.")


def test_an_end_is_not_before_its_start() -> None:
    """Also where they differ by less than the microsecond that the listener compares."""
    second = "2026-01-01T00:00:00"
    span = make_span(start_time=f"{second}.0000009Z", end_time=f"{second}.0000001Z")
    message = message_of(span)
    assert message.end_time_unix_nano == message.start_time_unix_nano


def test_a_name_that_is_taken_gets_longer() -> None:
    """No name is there twice, and nothing is lost."""
    data = b'{"input.value":1,"data.input.value":2,"":3,"a\\u0000":4,"a\\ufffd":5,"dup":1,"dup":2}'
    found = attributes_of(input=b"{}", data=data)
    assert found == {
        "input.value": "{}",
        "input.mime_type": "application/json",
        "data.data.input.value": 1,
        "data.input.value": 2,
        "data.": 3,
        "data.a\ufffd": 4,
        "a\ufffd": 5,
        "dup": 2,
    }


def test_ids_beside_the_spans_own() -> None:
    """A task and an account are attributes, where they are known."""
    found = attributes(message_of(make_span(task_id="k\0", parent_id="p"), "acc").attributes)
    assert found["agentex.task_id"] == "k\ufffd"
    assert (found["agentex.parent_id"], found["agentex.account_id"]) == ("p", "acc")


def test_data_as_deep_and_as_large_as_the_listener_takes() -> None:
    """Only its first level is read."""
    deep = b'{"a":' * 199 + b"1" + b"}" * 199
    large = json.dumps({f"{n}": "x" * 1000 for n in range(3000)}).encode()
    body = json.dumps(make_event(kind="end", input="DEEP", data="LARGE"))
    body_ = body.encode().replace(b'"DEEP"', deep).replace(b'"LARGE"', large)
    (span,) = decode(body_, 0.0).spans
    found = attributes(message_of(span).attributes)
    assert found["input.value"] == deep.decode()
    assert len(found) == 3000 + 5
    (span,) = decode(json.dumps(make_event(kind="end", data="DEEP")).encode()
                     .replace(b'"DEEP"', deep), 0.0).spans  # fmt: skip
    assert attributes(message_of(span).attributes)["a"] == deep[5:-1].decode()


def test_payloads_are_not_copied_before_they_are_joined() -> None:
    """The parts of a body have the agent's own bytes in them."""
    span = make_span(input=b'{"q":1}', output=b'{"a":2}', data=b'{"list":[1]}')
    parts = ENCODER.parts([mapped(span)])
    assert any(part is span.input for part in parts)
    assert any(part is span.output for part in parts)
    assert memoryview(span.data)[8:11] in [part for part in parts if isinstance(part, memoryview)]


def test_a_request_has_one_resource_and_one_scope() -> None:
    """All spans of a request come from this pod; a request without spans is empty."""
    spans = [mapped(make_span(str(n))) for n in range(3)]
    request = ExportTraceServiceRequest.FromString(b"".join(ENCODER.parts(spans)))
    (resource,) = request.resource_spans
    (scope,) = resource.scope_spans
    expected = {"service.name": "agent", "k8s.pod.name": "pod-1"}
    assert attributes(resource.resource.attributes) == expected
    assert (scope.scope.name, scope.scope.version) == ("scope", "1.2.3")
    assert [found["agentex.span_id"] for found in _attributes(scope.spans)] == ["0", "1", "2"]
    assert ENCODER.parts([]) == []


def _attributes(spans: Iterable[Message]) -> list[Attributes]:
    return [attributes(span.attributes) for span in spans]

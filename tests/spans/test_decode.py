"""Decoding one event: every rule of docs/api.md, and errors that name the rule."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.spans.decode import MalformedBody, decode
from sidecar.spans.span import SPAN_OVERHEAD, Span, WireSpan, from_row, to_row
from tests.support.any_json import objects
from tests.support.spans import END_TIME, START_TIME, make_event, make_span

# Must never appear in an error text.
CONTENT = "this is a prompt"


def take(event: object) -> Span:
    """The span of an event that must be valid."""
    spans, rejected = decode(orjson.dumps(event), 7.0)
    assert rejected == []
    assert len(spans) == 1
    return spans[0]


def error(event: object) -> str:
    """The error text of an event that must be rejected."""
    spans, rejected = decode(orjson.dumps(event), 7.0)
    assert spans == []
    assert len(rejected) == 1
    return rejected[0].error


def having(field: str, value: object, kind: str = "start") -> dict[str, Any]:
    """An event with this field set in its span."""
    event = make_event(kind=kind)
    event["span"][field] = value
    return event


def with_input(raw: bytes) -> bytes:
    """A START whose input is `raw`."""
    return orjson.dumps(make_event(input="HERE")).replace(b'"HERE"', raw)


def test_a_start_becomes_an_open_span() -> None:
    """Every field of docs/api.md is kept, and the time of acceptance is set."""
    span = take(make_event("a", parent_id="p", task_id="k", input={"q": 1}, output={}, data={}))
    assert (span.id, span.trace_id, span.name) == ("a", "t1", "turn")
    assert (span.parent_id, span.task_id) == ("p", "k")
    assert (span.start_time, span.end_time) == (START_TIME, None)
    assert (span.input, span.output, span.data) == (b'{"q":1}', b"{}", b"{}")
    assert span.accepted_at == 7.0
    assert span.size == SPAN_OVERHEAD + len(b'{"q":1}{}{}')
    assert span.kind == "open"


def test_an_end_becomes_a_complete_span() -> None:
    """An END has an end time, and absent fields are empty."""
    span = take(make_event(kind="end", parent_id=None, input=None))
    assert (span.end_time, span.kind) == (END_TIME, "complete")
    assert (span.parent_id, span.task_id) == (None, None)
    assert (span.input, span.output, span.data) == (b"", b"", b"")


def test_other_members_are_ignored() -> None:
    """Unknown fields are ignored, and so is the end time of a START."""
    assert take(make_event(end_time=END_TIME, status="x") | {"extra": [1]}).kind == "open"


@pytest.mark.parametrize("field", ["id", "trace_id", "name", "start_time"])
@pytest.mark.parametrize("value", ["", None, 5, [CONTENT], ...])
def test_required_fields(field: str, value: object) -> None:
    """Absent, null, empty or not a string: rejected, and the error names the field."""
    event = make_event(kind="end", input={"text": CONTENT})
    event["span"][field] = value
    if value is ...:
        del event["span"][field]
    text = error(event)
    assert "span" in text
    assert field in text
    assert CONTENT not in text


@pytest.mark.parametrize("field", ["parent_id", "task_id", "end_time"])
def test_optional_fields_are_strings_or_null(field: str) -> None:
    """A number in place of a string is rejected."""
    assert f"span.{field}" in error(having(field, 5))


def test_a_nul_elsewhere_is_accepted() -> None:
    """A NUL in the name or in a payload is not for the agent to fix."""
    span = take(make_event(name="a\0b", task_id="\0", input={"a": "\0"}))
    assert (span.name, span.task_id, span.input) == ("a\0b", "\0", b'{"a":"\\u0000"}')


@pytest.mark.parametrize("event_type", ["START", "", "update", "end "])
def test_event_types(event_type: str) -> None:
    """Only `start` and `end` are events."""
    text = error(make_event() | {"event_type": event_type})
    assert text == 'event_type must be "start" or "end"'


@pytest.mark.parametrize("event", [{}, {"event_type": "start"}, {"span": {}}, 5, "x", None, True])
def test_json_that_is_not_an_event(event: object) -> None:
    """Any other JSON value is rejected."""
    assert error(event)


def test_an_end_needs_its_end_time() -> None:
    """An END without an end time is rejected."""
    text = 'span.end_time is required in an "end" event'
    assert error(make_event(kind="end", end_time=None)) == text


@pytest.mark.parametrize("field", ["input", "output", "data"])
@pytest.mark.parametrize("value", [1, 1.5, True, False, CONTENT, "", [1], [{}, CONTENT], [[{}]]])
def test_payloads_of_a_wrong_shape(field: str, value: object) -> None:
    """A payload is an object, an array of objects, or null; errors never repeat content."""
    text = error(having(field, value))
    assert text.startswith(f"span.{field} must ")
    assert CONTENT not in text


@pytest.mark.parametrize("field", ["input", "output", "data"])
def test_nesting_is_limited(field: str) -> None:
    """201 levels are rejected; so are far more, instead of crashing the process."""
    value: Any = {}
    for _ in range(199):
        value = {"a": value}
    assert take(having(field, value))
    assert error(having(field, {"a": value})) == (
        f"span.{field} is nested more than 200 levels deep"
    )
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    body = orjson.dumps(having(field, "HERE")).replace(b'"HERE"', deep)
    with pytest.raises(MalformedBody, match="nested"):
        decode(body, 0.0)


@pytest.mark.parametrize("many", [False, True])
def test_an_end_that_repeats_its_start(many: bool) -> None:
    """Equal payloads are stored once; different ones are validated as usual."""
    start = make_span("a", complete=False, input=b'{"q":1}', data=b'{"d":1}')
    deep: Any = {}
    for _ in range(200):
        deep = {"a": deep}
    fields = {"input": {"q": 1}, "output": {"a": 2}, "data": {"d": 2}}
    good, bad = (make_event(id_, kind="end", **fields) for id_ in ("a", "a"))
    bad["span"]["data"] = deep
    spans, rejected = decode(
        orjson.dumps([good, bad] if many else good),
        7.0,
        started=lambda key: start if key == ("t1", "a") else None,
    )
    assert spans[0].input is start.input
    assert (spans[0].output, spans[0].data) == (b'{"a":2}', b'{"d":2}')
    assert spans[0].size == SPAN_OVERHEAD + len(b'{"q":1}{"a":2}{"d":2}')
    assert [r.error for r in rejected] == ["span.data is nested more than 200 levels deep"] * many


@pytest.mark.parametrize(
    "raw",
    [
        b'{"n":123456789012345678901234567890,"f":1e400,"g":-0.0,"h":1E+2,"i":0.10000000000000000055}',
        b'{"z":1,"a":2,"z":3}',
        rb'{"e":"\u00e9\/\b\f\n\r\t\"\\","p":"\ud83d\ude00"}',
        '{"t":"é漢\u2028😀\x7f"}'.encode(),
        b'{ "a" :\t[ 1 ,\r\n2 ] }',
        b'[ {"a":1},\n{} ]',
        b"[]",
        b"{}",
    ],
)
def test_payloads_are_the_agents_own_bytes(raw: bytes) -> None:
    """Big numbers, duplicate keys, escapes, order and inner whitespace are preserved."""
    spans, rejected = decode(with_input(b" \n" + raw + b" \t"), 0.0)
    assert rejected == []
    assert [raw] == [span.input for span in spans]


@given(objects | st.lists(objects) | st.none(), st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_any_json_comes_out_as_it_went_in(payload: Any, ascii_: bool, indent: Any) -> None:  # noqa: ANN401
    """Bytes leave unchanged whichever encoder wrote them, in all three payloads."""
    raw = json.dumps(payload, ensure_ascii=ascii_, indent=indent).encode()
    body = orjson.dumps(make_event(input="HERE", output="HERE", data="HERE"))
    (span,) = decode(b"[%b]" % body.replace(b'"HERE"', raw), 0.0).spans
    expected = b"" if payload is None else raw
    assert (span.input, span.output, span.data) == (expected, expected, expected)


@given(st.text(min_size=1), st.none() | st.text(), objects)
def test_a_span_survives_its_own_json(name: str, task: str | None, payload: Any) -> None:  # noqa: ANN401
    """`from_row` restores what `to_row` writes, and any JSON parser reads the same span."""
    span = make_span(name=name, task_id=task, data=json.dumps(payload).encode(), output=b"")
    raw = to_row(span)
    assert to_row(from_row(raw, 0.0)) == raw
    read = json.loads(raw)
    assert set(read) == {*WireSpan.__struct_fields__}
    assert (read["name"], read["task_id"]) == (name, task)
    assert (read["data"], read["output"]) == (payload, None)


def test_a_long_name_is_counted() -> None:
    """Memory is bounded whichever field is large (D4)."""
    body = orjson.dumps(make_event(name="n" * 100_000))
    (span,) = decode(body, 0.0).spans
    assert span.size >= 100_000

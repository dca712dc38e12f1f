"""Decoding whole bodies: arrays, NDJSON, partly invalid ones, and what is not JSON."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.spans.decode import Decoded, MalformedBody, decode
from tests.support.spans import make_event

CONTENT = "this is a prompt"
GOOD = orjson.dumps(make_event("good"))
# A broken event, a part of its error text, and its id if that can be decoded.
BROKEN: list[tuple[bytes, str, str | None]] = [
    (orjson.dumps(make_event("bad", name="")), "span.name is empty", "bad"),
    (
        orjson.dumps(make_event("bad", trace_id=5)),
        "span.trace_id: Expected `str`, got `int`",
        "bad",
    ),
    (
        orjson.dumps(make_event("bad", kind="end", end_time=None)),
        "span.end_time is required",
        "bad",
    ),
    (orjson.dumps({"event_type": "start"}), "missing required field `span`", None),
    (
        orjson.dumps(make_event("bad", input=[CONTENT])),
        "span.input must contain only objects",
        "bad",
    ),
    (b"17", "Expected `object`, got `int`", None),
    (b"null", "Expected `object`, got `null`", None),
    (b'"%b"' % CONTENT.encode(), "Expected `object`, got `str`", None),
]


def ids(decoded: Decoded) -> list[str]:
    """Ids of the accepted spans."""
    return [span.id for span in decoded.spans]


def body_of(events: list[bytes], ndjson: bool) -> bytes:
    """One body with these events."""
    return b"\n".join(events) if ndjson else b"[%b]" % b",".join(events)


@pytest.mark.parametrize("ndjson", [False, True])
@pytest.mark.parametrize(("broken", "text", "id_"), BROKEN)
def test_valid_events_next_to_broken_ones_are_accepted(
    broken: bytes, text: str, id_: str | None, ndjson: bool
) -> None:
    """A broken event is rejected with index, id and reason; its neighbors are accepted."""
    decoded = decode(body_of([GOOD, broken, GOOD, broken], ndjson), 0.0, ndjson=ndjson)
    assert ids(decoded) == ["good", "good"]
    assert [rejection.position for rejection in decoded.rejected] == [1, 3]
    for rejection in decoded.rejected:
        assert rejection.id == id_
        assert text in rejection.error
        assert CONTENT not in rejection.error


@pytest.mark.parametrize("ndjson", [False, True])
@given(kinds=st.lists(st.integers(-1, len(BROKEN) - 1), max_size=12))
def test_every_event_is_accepted_or_rejected(kinds: list[int], ndjson: bool) -> None:
    """Good and broken events in any order: each is accounted for at its own position."""
    events = [
        orjson.dumps(make_event(str(at))) if kind < 0 else BROKEN[kind][0]
        for at, kind in enumerate(kinds)
    ]
    decoded = decode(body_of(events, ndjson), 0.0, ndjson=ndjson)
    assert ids(decoded) == [str(at) for at, kind in enumerate(kinds) if kind < 0]
    assert [r.position for r in decoded.rejected] == [at for at, k in enumerate(kinds) if k >= 0]


def test_one_line_of_ndjson_that_is_not_json() -> None:
    """In NDJSON, a line that is not JSON costs only its own event."""
    half = GOOD[:40]
    decoded = decode(b"\n".join([GOOD, half, GOOD]), 0.0, ndjson=True)
    assert ids(decoded) == ["good", "good"]
    assert [(rejection.position, rejection.id) for rejection in decoded.rejected] == [(1, None)]
    assert decoded.rejected[0].error.startswith("not JSON: ")


def test_whitespace_between_lines() -> None:
    """Empty lines, carriage returns and a trailing newline are not events."""
    body = b"\n" + GOOD + b"\r\n\r\n  \n" + GOOD + b"\n\n"
    assert ids(decode(body, 0.0, ndjson=True)) == ["good", "good"]
    decoded = decode(b"\n\n" + GOOD + b"\r\n17\n", 0.0, ndjson=True)
    assert [rejection.position for rejection in decoded.rejected] == [1]


@pytest.mark.parametrize(
    "blank",
    [
        b"",
        b" ",
        b"\r\n\t " * 15,
        b" " * 64,
        b"\n" * 999,
    ],
)
def test_whitespace_around_a_body(blank: bytes) -> None:
    """Whitespace before and after an object or an array is ignored."""
    assert ids(decode(blank + GOOD + blank, 0.0)) == ["good"]
    assert ids(decode(blank + b"[%b , %b ]" % (GOOD, GOOD) + blank, 0.0)) == ["good", "good"]


@pytest.mark.parametrize("body", [b"[]", b"[ ]"])
def test_an_empty_array_has_no_events(body: bytes) -> None:
    """Nothing is accepted and nothing rejected."""
    assert decode(body, 0.0) == Decoded([], [])


@pytest.mark.parametrize("body", [b"", b"\n", b" \r\n"])
def test_ndjson_without_a_line_has_no_events(body: bytes) -> None:
    """A body of blank lines is the same as an empty array."""
    assert decode(body, 0.0, ndjson=True) == Decoded([], [])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        GOOD[:-1],
        GOOD + b"}",
        GOOD + b"\n" + GOOD,
        b"[%b" % GOOD,
        b"[%b,]" % GOOD,
        b"[%b %b]" % (GOOD, GOOD),
        b"[" * 100_000,
        b"prompt",
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf" + GOOD,
        GOOD.replace(b"good", b"\xed\xa0\x80"),
        GOOD.replace(b"good", b"\xc0\x80"),
        GOOD.replace(b"good", b"a\nb"),
        GOOD.replace(b"good", rb"\x41"),
    ],
)
def test_what_is_not_json(body: bytes) -> None:
    """The whole body is malformed, and the error text does not repeat it."""
    with pytest.raises(MalformedBody) as caught:
        decode(body, 0.0)
    known = ("not JSON", "the body is not valid UTF-8", "nested", "the body is empty")
    assert str(caught.value).startswith(known)
    assert "prompt" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["NaN", "Infinity", "-Infinity", "01", "1.", ".5", "+1", "1e", "-", "tru", "'a'", "0x1", "1 2"],
)
def test_what_only_some_parsers_accept_is_not_json(value: str) -> None:
    """Payloads are checked, though never parsed: upstream, a bad one would cost a whole batch."""
    body = orjson.dumps(make_event(data={"v": "HERE"})).replace(b'"HERE"', value.encode())
    with pytest.raises(MalformedBody):
        decode(body, 0.0)


@given(st.binary(max_size=6), st.integers(0, 60), st.integers(0, 6))
@example(b"\\ud800", 2, 0)
@example(b'":[{', 5, 3)
def test_mutated_content_is_json_or_rejected(junk: bytes, at: int, cut: int) -> None:
    """A strict parser also accepts every payload that was accepted here."""
    raw = rb'{"a": [1, 2.5, null, true], "t": "\u00e9 \ud83d\ude00 \" \\", "o": {"k": {}}}'
    mutated = raw[:at] + junk + raw[at + cut :]
    body = orjson.dumps(make_event(input="HERE")).replace(b'"HERE"', mutated)
    try:
        spans = decode(body, 0.0).spans
    except MalformedBody:
        return
    for span in spans:
        for payload in (span.input, span.output, span.data):
            value = json.loads(payload or b"null", parse_constant=pytest.fail)
            # encode() raises on a lone surrogate.
            assert json.dumps(value, ensure_ascii=False).encode()


@pytest.mark.parametrize("ndjson", [False, True])
def test_lone_surrogates_are_repaired(ndjson: bool) -> None:
    """They become U+FFFD anywhere in a body; neighboring events keep their bytes."""
    broken = GOOD.replace(b'"good"', rb'"x\ud800"').replace(
        b"}}", rb',"data":{"\uDc00":"\ud83d"}}}'
    )
    twin = GOOD.replace(b"}}", rb',"input":{"p":"\ud83d\ude00","b":"\\ud800"}}}')
    decoded = decode(body_of([broken, twin], ndjson), 0.0, ndjson=ndjson)
    assert decoded.rejected == []
    assert ids(decoded) == ["x\ufffd", "good"]
    assert decoded.spans[0].data == rb'{"\ufffd":"\ufffd"}'
    assert decoded.spans[1].input == rb'{"p":"\ud83d\ude00","b":"\\ud800"}'


@pytest.mark.parametrize(
    "ndjson",
    [True, False],
)
def test_one_event_nested_beyond_any_parser(ndjson: bool) -> None:
    """An event nested too deep for the parser costs only itself."""
    deep: Any = orjson.dumps(make_event("deep", data="HERE"))
    deep = deep.replace(b'"HERE"', b'{"a":' * 20_000 + b"1" + b"}" * 20_000)
    decoded = decode(body_of([GOOD, deep, GOOD], ndjson), 0.0, ndjson=ndjson)
    assert ids(decoded) == ["good", "good"]
    assert "nested" in decoded.rejected[0].error


def test_one_line_that_is_not_utf8() -> None:
    """An NDJSON line that is not UTF-8 costs only its own event."""
    bad = GOOD.replace(b"good", b"b\xffd")
    assert ids(decode(b"\n".join([GOOD, bad, GOOD]), 0.0, ndjson=True)) == ["good", "good"]


def test_a_line_that_is_not_utf8_does_not_affect_repairs() -> None:
    """Lone surrogates in the other lines are still replaced."""
    bad, half = GOOD.replace(b"good", b"b\xffd"), GOOD.replace(b"good", rb"x\ud800")
    decoded = decode(b"\n".join([bad, half]), 0.0, ndjson=True)
    assert ids(decoded) == ["x\ufffd"]
    assert [rejection[:3] for rejection in decoded.rejected] == [(0, None, "not valid UTF-8")]


def test_a_small_span_does_not_keep_a_large_body() -> None:
    """Payloads are copies, not views into the body."""
    large = orjson.dumps(make_event("large", input={"p": "x" * 10_000}))
    small = orjson.dumps(make_event("small", input={"q": 1}))
    span = decode(b"[%b,%b]" % (large, small), 0.0).spans[1]
    assert type(span.input) is bytes
    assert len(span.input) == len(b'{"q":1}')

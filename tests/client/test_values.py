"""Whatever an agent puts into a span becomes JSON that the sidecar takes."""

import dataclasses
import enum
import json
import math
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import NoReturn
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_sidecar_client import Span, encoders
from trace_sidecar_client.encoders import Encoder, default_encoder, sdk_encoder, with_depth_limit
from trace_sidecar_client.events import encode_event
from trace_sidecar_client.values import MAX_NESTING, encode, encode_payload, json_dumps

from sidecar.spans.decode import decode


class Color(enum.Enum):
    """A plain enum."""

    RED = "red"


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: int
    seen: set[int]


class Model:
    """What a pydantic model looks like from outside."""

    __pydantic_serializer__ = object()

    def model_dump(self) -> dict[str, object]:
        """Its fields."""
        return {"inner": b"raw"}


class Silent:
    """Its `repr` raises."""

    def __repr__(self) -> str:
        raise RuntimeError("secret")


class BadMapping(dict[str, int]):
    """A dict whose own methods raise."""

    def items(self) -> NoReturn:
        raise RuntimeError("secret")

    def __iter__(self) -> NoReturn:
        raise RuntimeError("secret")


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = {"a": [value]}
    return value


def cycle() -> dict[str, object]:
    value: dict[str, object] = {"name": "c"}
    value["self"] = [value]
    return value


ENCODERS = [default_encoder(), sdk_encoder(), Encoder(default_encoder().dumps), Encoder(json_dumps)]
ODD = [
    (math.nan, None),
    (-math.inf, None),
    (b"text", "text"),
    (b"\xff\xfe", "//4="),
    ({7}, [7]),
    (frozenset({"a"}), ["a"]),
    (datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), "2026-01-02T03:04:05.678901+00:00"),
    (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (Decimal("1.50"), "1.50"),
    (Color.RED, "red"),
    (Path("/tmp/x"), "/tmp/x"),  # noqa: S108 - only a name
    (timedelta(seconds=90), "0:01:30"),
    (Model(), {"inner": "raw"}),
    (Point(1, {2}), {"x": 1, "seen": [2]}),
    ("a\ud800b", "a\ufffdb"),
    ("\ud83d\ude00", "\U0001f600"),
    (2**70, 2**70),
    ({1: 2, None: 3}, {"1": 2, "null": 3}),
    ({False: 2, 1.5: 3}, {"false": 2, "1.5": 3}),
    ((1, [2]), [1, [2]]),
    (OrderedDict(a=1), {"a": 1}),
    (BadMapping(a=1), {"a": 1}),
    (Silent(), "<Silent: RuntimeError>"),
    (10**5000, "<int: ValueError>"),
    (cycle(), {"name": "c", "self": ["<cycle>"]}),
    (int, "<class int>"),
    (len, "<function len>"),
]


@pytest.mark.parametrize("encoder", ENCODERS, ids=["any", "model", "by field", "json"])
@pytest.mark.parametrize(("value", "expected"), ODD, ids=[repr(type(v)) for v, _ in ODD])
def test_an_odd_value_has_one_plain_form_and_costs_no_neighbour(
    encoder: Encoder, value: object, expected: object
) -> None:
    """The form does not depend on the encoder at hand, and what is beside it arrives unchanged."""
    made = json.loads(
        encode_payload({"before": [1.5, "x"], "odd": value, "after": {"k": None}}, encoder.dumps)
    )
    assert made == {"before": [1.5, "x"], "odd": expected, "after": {"k": None}}


def test_an_iterator_is_not_consumed() -> None:
    """A generator is the agent's: reading it here would take its items away."""
    generator = iter(deque([1, 2]))
    encode_payload({"stream": generator}, default_encoder().dumps)
    assert list(generator) == [1, 2]


@pytest.mark.parametrize("encoder", ENCODERS, ids=["any", "model", "by field", "json"])
@pytest.mark.parametrize("levels", [99, 101, 120, 400, 5000])
def test_deep_values_are_cut_where_the_sidecar_would_refuse_them(
    encoder: Encoder, levels: int
) -> None:
    """However deep, one span is taken with its neighbours' fields."""
    span = Span("s", "t", "n", datetime.now(UTC), input={"deep": nested(levels)}, data={"k": "v"})
    decoded = decode(encode_event("start", span, encoder), 0.0)
    assert decoded.rejected == []
    assert decoded.spans[0].data == b'{"k":"v"}'
    assert decoded.spans[0].input.count(b"{") == (100 if levels == 99 else pytest.approx(50, abs=2))


def test_brackets_in_texts_are_not_levels() -> None:
    """A prompt full of braces is forwarded as it is."""
    text = '{"[\\' * 5000
    assert json.loads(encode([text], json_dumps)) == [text]
    assert json.loads(encode([(text,)], default_encoder().dumps)) == [[text]]


def test_a_large_flat_payload_is_left_to_the_fast_encoder() -> None:
    """Many objects side by side are not deep."""
    rows = {"rows": [{"id": n, "tags": ["a"], "none": None} for n in range(1000)]}
    assert encode(rows, default_encoder().dumps) == default_encoder().dumps(rows)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": 1}, b'{"a":1}'),
        ([{"a": 1}], b'[{"a":1}]'),
        ([], b"[]"),
        (None, b"null"),
        ("text", b'{"value":"text"}'),
        (0, b'{"value":0}'),
        ([1, {"a": 1}], b'{"items":[1,{"a":1}]}'),
        ({1}, b'{"items":[1]}'),
        ((1, 2), b'{"items":[1,2]}'),
    ],
)
def test_a_payload_is_an_object_objects_or_null(value: object, expected: bytes) -> None:
    """What the sidecar would refuse is wrapped."""
    assert encode_payload(value, default_encoder().dumps) == expected


def test_the_agents_own_encoder_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without orjson and pydantic, the standard library does."""
    monkeypatch.setitem(sys.modules, "orjson", None)
    monkeypatch.setitem(sys.modules, "pydantic_core", None)
    monkeypatch.setattr(encoders, "default_encoder", default_encoder.__wrapped__)
    assert default_encoder.__wrapped__() == sdk_encoder.__wrapped__() == Encoder(json_dumps)


def chained(link: Callable[[object], object], levels: int, value: object = "end") -> object:
    """Such links, one inside the other, around `value`."""
    for _ in range(levels):
        value = link(value)
    return value


class Wrapper:
    """What a pydantic model looks like from outside, with anything inside."""

    __pydantic_serializer__ = object()

    def __init__(self, value: object) -> None:
        self._value = value

    def model_dump(self) -> dict[str, object]:
        """Its field."""
        return {"a": self._value}


LINKS: dict[str, Callable[[object], object]] = {
    "dict": lambda value: {"a": value},
    "list": lambda value: [value],
    "cons cell": lambda value: (1, value),
    "dict subclass": lambda value: OrderedDict(a=value),
    "dataclass": lambda value: Point(1, value),  # type: ignore[arg-type]
    "object": Wrapper,
}


@pytest.mark.parametrize("levels", [100, 149, 199, 200, 201, 230, 252, 260])
@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
def test_no_kind_of_nesting_gets_past_the_limit(
    link: Callable[[object], object], levels: int
) -> None:
    """As a whole or by field: what arrives is uncut up to 200 levels, and never deeper."""
    texts = {}
    for encoder in (default_encoder(), Encoder(default_encoder().dumps)):
        span = Span("s", "t", "n", datetime.now(UTC), input={"deep": chained(link, levels - 1)})
        line = encode_event("start", span, encoder)
        assert decode(line, 0.0).rejected == []
        texts[encoder] = json.loads(line)["span"]["input"]
    first, second = texts.values()
    assert first == second
    assert ("end" in str(first)) == (levels <= MAX_NESTING)


def test_an_encoder_without_a_limit_of_its_own_is_not_trusted_with_whole_events() -> None:
    """Nor is one whose limit is below the sidecar's."""
    shallow = default_encoder().dumps
    assert with_depth_limit(lambda value: b"") is None
    assert (
        with_depth_limit(lambda value: shallow(chained(lambda inner: [inner], 150, value))) is None
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.text(st.characters(categories=["Cs", "Cc", "Lu"]))
    | st.binary()
    | st.datetimes()
    | st.uuids()
    | st.decimals()
    | st.complex_numbers()
    | st.sampled_from([Color.RED, Point(1, {2}), int, ...])
    | st.builds(Silent)
    | st.builds(Model)
    | st.builds(object)
    | st.builds(cycle),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.floats() | st.none() | st.binary(), inner)
        | st.frozensets(st.integers())
        | st.builds(deque, st.lists(inner))
    ),
    max_leaves=20,
)
TEXT = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20)


@pytest.mark.parametrize("encoder", ENCODERS, ids=["any", "model", "by field", "json"])
@given(name=TEXT, fields=st.tuples(ANYTHING, ANYTHING, ANYTHING))
def test_anything_in_is_an_event_that_the_sidecar_takes(
    encoder: Encoder, name: str, fields: tuple[object, object, object]
) -> None:
    """Every value gives one line of valid JSON in UTF-8 that the sidecar's decoder accepts."""
    span = Span("s", "t", name, datetime.now(UTC))
    span.input, span.output, span.data = fields
    line = encode_event("end", span, encoder)
    assert b"\n" not in line
    assert decode(line, 0.0, ndjson=True).rejected == []


@pytest.mark.parametrize("encoder", ENCODERS, ids=["any", "model", "by field", "json"])
@given(value=st.dictionaries(st.text(), JSON))
def test_json_arrives_as_it_is(encoder: Encoder, value: dict[str, object]) -> None:
    """What JSON can say arrives unchanged, but for NaN and infinities, which become null."""

    def plain(part: object) -> object:
        if isinstance(part, float) and not math.isfinite(part):
            return None
        if isinstance(part, list):
            return [plain(item) for item in part]
        if isinstance(part, dict):
            return {key: plain(item) for key, item in part.items()}
        return part

    assert json.loads(encode_payload(value, encoder.dumps)) == plain(value)


@given(value=st.dictionaries(st.text(), JSON))
def test_whole_or_by_field_an_event_says_the_same(value: dict[str, object]) -> None:
    """The encoding of all at once is faster, and nothing else."""
    span = Span("s", "t", "n", datetime.now(UTC), "parent", "task")
    span.input, span.output, span.data = {"q": value}, [value, {}], value
    span.end()
    made = [
        json.loads(encode_event(kind, span, encoder))
        for kind in ("start", "end")
        for encoder in (default_encoder(), Encoder(default_encoder().dumps))
    ]
    assert made[0] == made[1]
    assert made[2] == made[3]


def test_times_are_utc_and_an_end_is_never_before_its_start() -> None:
    """A wall clock that was set back, a naive time and a missing end all give a valid END."""
    start = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001 - an SDK may give one without an offset
    span = Span("s", "t", "n", start)
    span.end_time = datetime(2026, 1, 1, tzinfo=UTC)
    made = json.loads(encode_event("end", span, default_encoder()))["span"]
    assert made["start_time"] == "2026-01-02T03:04:05"
    assert made["end_time"] == "2026-01-02T03:04:05+00:00"
    span.end_time = None
    assert decode(encode_event("end", span, default_encoder()), 0.0).rejected == []

"""Whatever an agent puts into a span becomes JSON that the sidecar accepts."""

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
from trace_sidecar_client.budget import MAX_NESTING
from trace_sidecar_client.encoders import Encoder, default_encoder, json_encoder
from trace_sidecar_client.events import encode_event
from trace_sidecar_client.values import encode_payload

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
    """Looks like a pydantic model."""

    __pydantic_serializer__ = object()

    def model_dump(self) -> dict[str, object]:
        """The fields."""
        return {"inner": b"raw"}


class Silent:
    """An object whose `repr` raises."""

    def __repr__(self) -> str:
        raise RuntimeError("secret")


class BadMapping(dict[str, int]):
    """A dict whose overridden methods raise."""

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


ENCODERS = [default_encoder(), json_encoder]
UNUSUAL = [
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


@pytest.mark.parametrize("encoder", ENCODERS, ids=["orjson", "json"])
@pytest.mark.parametrize(("value", "expected"), UNUSUAL, ids=[repr(type(v)) for v, _ in UNUSUAL])
def test_an_unusual_value_has_one_form_and_leaves_its_neighbours_alone(
    encoder: Encoder, value: object, expected: object
) -> None:
    """Every encoder gives the same form, and the values beside it arrive unchanged."""
    value = {"before": [1.5, "x"], "unusual": value, "after": {"k": None}}
    made = json.loads(encode_payload(value, encoder).raw)
    assert made == {"before": [1.5, "x"], "unusual": expected, "after": {"k": None}}


def test_an_iterator_is_not_consumed() -> None:
    """Reading a generator would take its items from the agent."""
    generator = iter(deque([1, 2]))
    encode_payload({"stream": generator}, default_encoder())
    assert list(generator) == [1, 2]


@pytest.mark.parametrize("encoder", ENCODERS, ids=["orjson", "json"])
@pytest.mark.parametrize("levels", [99, 101, 120, 400, 5000])
def test_values_nested_too_deep_are_truncated(encoder: Encoder, levels: int) -> None:
    """The sidecar accepts the span at any depth, and its other fields arrive whole."""
    span = Span("s", "t", "n", datetime.now(UTC), input={"deep": nested(levels)}, data={"k": "v"})
    decoded = decode(encode_event("start", span, encoder), 0.0)
    assert decoded.rejected == []
    assert decoded.spans[0].data == b'{"k":"v"}'
    assert decoded.spans[0].input.count(b"{") == (100 if levels == 99 else pytest.approx(50, abs=2))


def test_brackets_in_strings_are_not_nesting() -> None:
    """A prompt full of braces is forwarded unchanged."""
    text = '{"[\\' * 5000
    for encoder in ENCODERS:
        assert json.loads(encode_payload({"a": (text,)}, encoder).raw) == {"a": [text]}
        assert json.loads(encode_payload({"a": (text,), "b": {1}}, encoder).raw)["a"] == [text]


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
def test_a_payload_is_an_object_an_array_of_objects_or_null(value: object, expected: bytes) -> None:
    """A value that the sidecar would reject is wrapped in an object."""
    assert encode_payload(value, default_encoder()).raw == expected


def test_the_standard_library_is_the_last_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without orjson, `json` encodes everything."""
    monkeypatch.setitem(sys.modules, "orjson", None)
    assert encoders._fastest() is json_encoder


def chained(link: Callable[[object], object], levels: int, value: object = "end") -> object:
    """Nest `value` in `levels` applications of `link`."""
    for _ in range(levels):
        value = link(value)
    return value


class Wrapper:
    """Looks like a pydantic model with one field."""

    __pydantic_serializer__ = object()

    def __init__(self, value: object) -> None:
        self._value = value

    def model_dump(self) -> dict[str, object]:
        """The field."""
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
def test_every_kind_of_nesting_is_limited(link: Callable[[object], object], levels: int) -> None:
    """Values arrive whole up to 200 levels and truncated beyond, with every encoder."""
    texts = {}
    for encoder in ENCODERS:
        span = Span("s", "t", "n", datetime.now(UTC), input={"deep": chained(link, levels - 1)})
        line = encode_event("start", span, encoder)
        assert decode(line, 0.0).rejected == []
        texts[encoder] = json.loads(line)["span"]["input"]
    first, second = texts.values()
    assert first == second
    assert ("end" in str(first)) == (levels <= MAX_NESTING)


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


@pytest.mark.parametrize("encoder", ENCODERS, ids=["orjson", "json"])
@given(name=TEXT, fields=st.tuples(ANYTHING, ANYTHING, ANYTHING))
def test_the_sidecar_accepts_every_event(
    encoder: Encoder, name: str, fields: tuple[object, object, object]
) -> None:
    """Any values give one line of valid UTF-8 JSON that the sidecar's decoder accepts."""
    span = Span("s", "t", name, datetime.now(UTC))
    span.input, span.output, span.data = fields
    line = encode_event("end", span, encoder)
    assert b"\n" not in line
    assert decode(line, 0.0, ndjson=True).rejected == []


@pytest.mark.parametrize("encoder", ENCODERS, ids=["orjson", "json"])
@given(value=st.dictionaries(st.text(), JSON))
def test_json_values_arrive_unchanged(encoder: Encoder, value: dict[str, object]) -> None:
    """Values with a JSON form arrive unchanged; NaN and infinities become null."""

    def plain(part: object) -> object:
        if isinstance(part, float) and not math.isfinite(part):
            return None
        if isinstance(part, list):
            return [plain(item) for item in part]
        if isinstance(part, dict):
            return {key: plain(item) for key, item in part.items()}
        return part

    assert json.loads(encode_payload(value, encoder).raw) == plain(value)


@given(value=ANYTHING)
def test_every_encoder_gives_the_same_values(value: object) -> None:
    """Which encoder an agent has changes the cost of a span, never what it says.

    Nor does it matter how many parts a value has, nor whether it has an odd one.
    """
    for whole in (value, {"v": value, "many": [*range(100)]}, {"v": [value], "odd": "\ud800"}):
        made = [json.loads(encode_payload(whole, encoder).raw) for encoder in ENCODERS]
        assert made[0] == made[1]

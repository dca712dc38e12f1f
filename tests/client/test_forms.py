"""Objects of libraries that the client doesn't know arrive as numbers, lists and objects.

Stand-ins have what the real classes have, and nothing else.
"""

import array
import json
import math
from collections import ChainMap, UserDict, UserList, UserString, deque
from collections.abc import Callable
from datetime import UTC, datetime
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from trace_sidecar_client.encoders import Encoder, default_encoder, json_encoder
from trace_sidecar_client.values import encode_payload

ENCODERS = pytest.mark.parametrize(
    "encoder", [default_encoder(), json_encoder], ids=["orjson", "json"]
)


class Dtype:
    """NumPy's or PyTorch's type of numbers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind = {"datetime64[ns]": "M"}.get(name, "f")

    def __str__(self) -> str:
        return self.name


class Array:
    """An array of any number of dimensions, which counts what is converted."""

    converted = 0

    def __init__(self, shape: tuple[int, ...], dtype: str = "float32") -> None:
        self.shape = shape
        self.dtype = Dtype(dtype)

    def tolist(self) -> Any:  # noqa: ANN401 - as in NumPy
        """Nested lists of zeros; a number if there is no dimension."""
        Array.converted += math.prod(self.shape)
        value: Any = 0.5
        for size in reversed(self.shape):
            value = [value] * size
        return value

    def astype(self, _: type) -> "Texts":
        """As text."""
        return Texts(self.shape)

    def __getitem__(self, index: slice | tuple[slice, ...]) -> "Array":
        slices = index if isinstance(index, tuple) else (index,)
        sizes = zip(slices, self.shape, strict=True)
        return Array(tuple(len(range(size)[each]) for each, size in sizes), str(self.dtype))


class Texts(Array):
    """Dates as text."""

    def tolist(self) -> Any:  # noqa: ANN401 - as above
        """The dates."""
        return ["2026-01-02"] * self.shape[0] if self.shape else "2026-01-02"


class LongDouble:
    """A number without a form of its own: `tolist` gives itself."""

    shape = ()
    dtype = Dtype("longdouble")

    def tolist(self) -> "LongDouble":
        """No conversion."""
        return self

    def __float__(self) -> float:
        return 2.5


class Frame:
    """A pandas data frame."""

    def __init__(self, rows: int, columns: int) -> None:
        self.shape = (rows, columns)

    @property
    def iloc(self) -> Any:  # noqa: ANN401 - as in pandas
        """Rows and columns by position."""

        class Part:
            def __getitem__(_, index: tuple[slice, slice]) -> Frame:  # noqa: N805
                rows, columns = map(range, self.shape)
                return Frame(len(rows[index[0]]), len(columns[index[1]]))

        return Part()

    def to_dict(self, orient: str) -> list[dict[str, float]]:
        """The rows."""
        assert orient == "records"
        return [{f"c{n}": 1.5 for n in range(self.shape[1])}] * self.shape[0]


class OldModel:
    """A model of pydantic 1."""

    __fields__: ClassVar[dict[str, object]] = {}

    def __init__(self, value: object) -> None:
        self.value = value

    def dict(self) -> dict[str, object]:
        """The fields."""
        return {"value": self.value}


class Attrs:
    """A class made by attrs."""

    __attrs_attrs__ = (SimpleNamespace(name="x"), SimpleNamespace(name="gone"))

    def __init__(self) -> None:
        self.x = {1}


class Struct:
    """A msgspec struct."""

    __struct_fields__ = ("x",)
    x = b"raw"


class Liar:
    """Claims to have and to be everything."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - anything
        return self

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return dict

    def __repr__(self) -> str:
        return "liar"


class Number(float):
    """NumPy's `float64` is a subclass like this one."""


class Text(str):
    """A subclass of `str` with methods of its own."""

    __slots__ = ()

    def __str__(self) -> str:
        return "wrong"


FORMS: list[tuple[object, object]] = [
    (Array(()), 0.5),
    (Array((2, 3)), [[0.5] * 3] * 2),
    (Array((0,)), []),
    (Array((2,), "datetime64[ns]"), ["2026-01-02"] * 2),
    (Array((), "datetime64[ns]"), "2026-01-02"),
    (LongDouble(), 2.5),
    (Number(1.5), 1.5),
    (Number("nan"), None),
    (Text("right"), "right"),
    (Frame(2, 1), [{"c0": 1.5}] * 2),
    (OldModel([OldModel(1)]), {"value": [{"value": 1}]}),
    (Attrs(), {"x": [1], "gone": None}),
    (Struct(), {"x": "raw"}),
    (deque([1, {2}]), [1, [2]]),
    (range(3), [0, 1, 2]),
    (array.array("d", [1.5]), [1.5]),
    ({"a": 1}.keys(), ["a"]),
    ({"a": 1}.values(), [1]),
    ({"a": 1}.items(), [["a", 1]]),
    (UserDict(a=1), {"a": 1}),
    (MappingProxyType({"a": 1}), {"a": 1}),
    (ChainMap({"a": 1}, {"b": 2}), {"a": 1, "b": 2}),
    (UserList([1]), [1]),
    (UserString("text"), "text"),
    (bytearray(b"text"), "text"),
    (memoryview(b"abcd")[::2], "ac"),
    (ValueError("why"), "ValueError('why')"),
    (Liar(), "liar"),
]


@ENCODERS
@pytest.mark.parametrize(("value", "form"), FORMS, ids=[type(v).__name__ for v, _ in FORMS])
def test_an_object_arrives_as_what_it_holds(encoder: Encoder, value: object, form: object) -> None:
    """With either encoder, beside a part that only the slow way can encode."""
    assert json.loads(encode_payload({"v": value}, encoder).raw) == {"v": form}
    made = json.loads(encode_payload({"v": value, "odd": "\ud800"}, encoder).raw)
    assert made == {"v": form, "odd": "\ufffd"}


KEYS: list[tuple[object, str]] = [
    (1, "1"),
    (2**70, str(2**70)),
    (1.5, "1.5"),
    (None, "null"),
    (True, "true"),
    (b"k", "k"),
    (("a", 1), "('a', 1)"),
    (Text("right"), "right"),
    (math.nan, "null"),
    (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
    ("\ud800", "\ufffd"),
    (Array(()), "0.5"),
]


@ENCODERS
@pytest.mark.parametrize(("key", "text"), KEYS, ids=[repr(type(key)) for key, _ in KEYS])
def test_any_key_has_a_text(encoder: Encoder, key: object, text: str) -> None:
    """The text is that of the key's value, whichever way encodes the dict."""
    assert json.loads(encode_payload({key: 1}, encoder).raw) == {text: 1}
    made = json.loads(encode_payload({"in": [{key: {2}, "odd": "\ud800"}]}, encoder).raw)
    assert made == {"in": [{text: [2], "odd": "\ufffd"}]}


@ENCODERS
@pytest.mark.parametrize(
    ("make", "shape", "cells"),
    [
        (lambda: Array((3_000_000,)), [3_000_000], 1000),
        (lambda: Array((1024, 1024, 3)), [1024, 1024, 3], 243),
        (lambda: Array((1, 5_000_000)), [1, 5_000_000], 31),
    ],
)
def test_a_large_array_is_cut_before_it_is_converted(
    encoder: Encoder, make: Callable[[], Array], shape: list[int], cells: int
) -> None:
    """Its shape, its type and its first numbers are kept."""
    Array.converted = 0
    made = json.loads(encode_payload({"v": make()}, encoder).raw)["v"]
    assert made["shape"] == shape
    assert made["dtype"] == "float32"
    assert Array.converted == cells
    assert str(made["head"]).count("0.5") == cells


@ENCODERS
def test_a_large_table_is_cut_before_it_is_converted(encoder: Encoder) -> None:
    """Its shape and its first rows are kept."""
    made = json.loads(encode_payload({"v": Frame(1_000_000, 10)}, encoder).raw)["v"]
    assert made["shape"] == [1_000_000, 10]
    assert len(made["head"]) == 100


@ENCODERS
def test_integer_keys_stay_with_the_encoder(encoder: Encoder) -> None:
    """They are ordinary, so a dict with thousands of them is encoded in one piece."""
    value = {"scores": {number: {"n": number} for number in range(5000)}}
    calls = 0

    def counting(part: object, form: Callable[[object], object]) -> bytes:
        nonlocal calls
        calls += 1
        return encoder(part, form)

    made = json.loads(encode_payload(value, counting).raw)
    assert made["scores"]["4999"] == {"n": 4999}
    assert calls == 1

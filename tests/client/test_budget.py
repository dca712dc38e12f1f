"""A value that is too large, too slow or unbounded costs a bounded time, and not its span."""

import dataclasses
import json
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import pytest
from trace_sidecar_client import forms
from trace_sidecar_client.budget import MAX_BYTES
from trace_sidecar_client.encoders import Encoder, default_encoder, json_encoder
from trace_sidecar_client.values import encode_payload

# Ten times what the largest of these values should take.
HANG_S = 20.0
ENCODERS = pytest.mark.parametrize(
    "encoder", [default_encoder(), json_encoder], ids=["orjson", "json"]
)


def doubled(link: Callable[[object, object], object]) -> object:
    """A small graph that is 67 million leaves as a tree."""
    value: object = 1
    for _ in range(26):
        value = link(value, value)
    return value


@dataclasses.dataclass
class Pair:
    """A dataclass of two."""

    a: object
    b: object


class Items(list[Any]):
    """A subclass of a list."""


class PairModel:
    """Looks like a pydantic model, which converts itself as a whole."""

    def __init__(self, a: object, b: object) -> None:
        self.a, self.b = a, b

    def model_dump(self) -> dict[str, object]:
        """All of the fields."""
        parts = {"a": self.a, "b": self.b}
        return {k: v.model_dump() if isinstance(v, PairModel) else v for k, v in parts.items()}


class Endless(Mapping[str, int]):
    """A mapping without an end."""

    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            yield str(number)
            number += 1

    def __len__(self) -> int:
        return 1


SHARED = "a page " * 100_000
LARGE: dict[str, Callable[[], object]] = {
    "lists in a graph": lambda: doubled(lambda a, b: [a, b]),
    "tuples in a graph": lambda: doubled(lambda a, b: (a, b)),
    "dicts in a graph": lambda: doubled(lambda a, b: {"a": a, "b": b}),
    "subclasses in a graph": lambda: doubled(lambda a, b: Items([a, b])),
    "dict subclasses in a graph": lambda: doubled(lambda a, b: OrderedDict(a=a, b=b)),
    "dataclasses in a graph": lambda: doubled(Pair),
    "models in a graph": lambda: doubled(PairModel),
    "deques in a graph": lambda: doubled(lambda a, b: deque([a, b])),
    "33 MB of text": lambda: "x" * 33_000_000,
    "33 MB of quotes": lambda: '"' * 33_000_000,
    "33 MB of bytes": lambda: b"\xff" * 33_000_000,
    "a large memoryview": lambda: memoryview(bytearray(33_000_000)),
    "text that grows as JSON": lambda: "\x01" * 8_000_000,
    "a long list": lambda: list(range(5_000_000)),
    "a large set": lambda: set(range(5_000_000)),
    "a long range": lambda: range(10**12),
    "a large dict": lambda: {number: number for number in range(2_000_000)},
    "the same text many times": lambda: [SHARED] * 1000,
    "a key that is shared": lambda: [{SHARED: 1}] * 1000,
    "a long line of objects": lambda: [Pair(1, number) for number in range(200_000)],
    "large text deep inside": lambda: {"m": [{"c": [{"text": "y\n" * 10_000_000}]}, {"r": 1}]},
    "a mapping without end": Endless,
}


@ENCODERS
@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE.keys())
def test_a_large_value_is_cut_and_its_neighbors_arrive(
    encoder: Encoder, make: Callable[[], object]
) -> None:
    """The beginning is kept, within the limit; the members before and after it are whole."""
    value = {"question": "why?", "large": make(), "last": [1, {"a": None}]}
    started = time.monotonic()
    raw = encode_payload(value, encoder).raw
    assert time.monotonic() - started < HANG_S
    assert len(raw) <= MAX_BYTES
    made = json.loads(raw)
    assert made["question"] == "why?"
    assert made["last"] == [1, {"a": None}]
    assert made["large"]


@ENCODERS
def test_a_marker_says_how_large_the_value_was(encoder: Encoder) -> None:
    """Text and lists keep their beginning, followed by what they had in all."""
    made = json.loads(encode_payload({"a": "x" * 9_000_000, "b": 1}, encoder).raw)
    assert made["a"].startswith("xxxxx")
    assert made["a"].endswith("x...<9000000 characters>")
    made = json.loads(encode_payload(["x" * 1000] * 10_000, encoder).raw)["items"]
    kept = len(made) - 1
    assert 0 < kept < 10_000
    assert made[-1] == f"<{10_000 - kept} more items>"


@ENCODERS
def test_a_list_of_objects_that_is_cut_remains_valid(encoder: Encoder) -> None:
    """The sidecar takes an array only if it has nothing but objects."""
    made = json.loads(encode_payload([{"t": "x" * 1000}] * 20_000, encoder).raw)
    assert list(made) == ["items"]
    odd = [{"t": "\ud800"}, {"t": "x"}] * 1000
    made = json.loads(encode_payload(odd, encoder).raw)
    assert made == [{"t": "\ufffd"}, {"t": "x"}] * 1000


@ENCODERS
def test_a_value_just_within_the_limit_arrives_whole(encoder: Encoder) -> None:
    """Nothing is cut below 8 MiB, with or without a part that needs a form of its own."""
    whole = {"a": "x" * (MAX_BYTES - 100)}
    assert json.loads(encode_payload(whole, encoder).raw) == whole
    odd = {"rows": [{"n": number, "t": "x" * 200} for number in range(20_000)]}
    odd["rows"][15_000]["t"] = "\ud800"
    odd["rows"][16_000]["t"] = {1}
    odd["rows"][17_000]["n"] = 2**70
    made = json.loads(encode_payload(odd, encoder).raw)
    odd["rows"][15_000]["t"] = "\ufffd"
    odd["rows"][16_000]["t"] = [1]
    assert made == odd


class Slow:
    """An object whose `repr` takes long."""

    calls = 0

    def __repr__(self) -> str:
        Slow.calls += 1
        time.sleep(2 * forms.SLOW_SECONDS)
        return "slow"


@ENCODERS
def test_a_slow_class_is_not_called_again(encoder: Encoder) -> None:
    """One slow `repr` is paid for once, not for each instance and each event."""
    forms._avoided.clear()
    Slow.calls = 0
    value = {"slow": [Slow() for _ in range(100)], "after": 1}
    for _ in range(2):
        made = json.loads(encode_payload(value, encoder).raw)
        assert made["after"] == 1
        assert made["slow"][-1] == "<Slow: TooSlow>"
    assert Slow.calls == 1


class Raising:
    """An object whose `repr` raises."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __repr__(self) -> NoReturn:
        raise self._error


@ENCODERS
@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit(), RecursionError(), MemoryError()])
def test_what_an_object_raises_stays_inside(encoder: Encoder, error: BaseException) -> None:
    """Even a `repr` that exits costs only its own value."""
    made = json.loads(encode_payload({"a": Raising(error), "b": [1]}, encoder).raw)
    assert made == {"a": f"<Raising: {type(error).__name__}>", "b": [1]}


class Interrupted:
    """An object during whose `repr` the user presses Ctrl-C once."""

    pressed = False

    def __repr__(self) -> str:
        if self.pressed:
            return "text"
        self.pressed = True
        raise KeyboardInterrupt


PLACES: dict[str, Callable[[object], object]] = {
    "a member": lambda value: {"a": value},
    "a key": lambda value: {value: 1},
    "beside an odd part": lambda value: {"odd": "\ud800", "a": value},
    "in something too large": lambda value: {"large": "x" * 9_000_000, "a": value},
}


@ENCODERS
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_the_users_interrupt_passes(encoder: Encoder, place: Callable[[object], object]) -> None:
    """Ctrl-C is not for the client to swallow, wherever it arrives; the next call works."""
    value = place(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        encode_payload(value, encoder)
    assert b"text" in encode_payload(value, encoder).raw

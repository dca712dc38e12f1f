"""A START and an END say what the span held at that moment."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from trace_sidecar_client import Span, repeats
from trace_sidecar_client.encoders import Encoder, Form, default_encoder, json_encoder
from trace_sidecar_client.events import encode_event

from sidecar.spans.decode import decode

TEXT = "a long prompt " * 1000


def span_of(value: object, number: int = 0) -> Span:
    return Span(f"s{number}", "t", "n", datetime.now(UTC), input=value)


def input_of(line: bytes) -> object:
    return json.loads(line)["span"]["input"]


def test_times_are_valid_whatever_the_span_has() -> None:
    """A clock that was set back, a naive time and a missing end time all give a valid END."""
    start = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001 - an SDK may give one without an offset
    span = Span("s", "t", "n", start)
    span.end_time = datetime(2026, 1, 1, tzinfo=UTC)
    made = json.loads(encode_event("end", span, default_encoder()))["span"]
    assert made["start_time"] == "2026-01-02T03:04:05"
    assert made["end_time"] == "2026-01-02T03:04:05+00:00"
    span.end_time = None
    assert decode(encode_event("end", span, default_encoder()), 0.0).rejected == []


class Counting:
    """An encoder that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, value: object, form: Form) -> bytes:
        self.calls += 1
        return json_encoder(value, form)


@pytest.mark.parametrize(
    "value", [{"p": TEXT}, {"rows": [{"t": TEXT, "n": 1.5}, ("a", None)]}, [{"q": TEXT}], {1: TEXT}]
)
def test_an_unchanged_value_is_encoded_once(value: object) -> None:
    """The END repeats the START's bytes, and is complete."""
    encoder = Counting()
    span = span_of(value)
    start = encode_event("start", span, encoder)
    calls = encoder.calls
    end = encode_event("end", span, encoder)
    assert encoder.calls == calls
    assert input_of(end) == input_of(start)


class Opaque:
    """An object with a form that changes."""

    def __init__(self) -> None:
        self.text = "before"

    def __repr__(self) -> str:
        return self.text


def _set(value: dict[str, Opaque], text: str) -> None:
    value["object"].text = text


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "a new member": (dict, lambda value: value.update(more=1)),
    "a removed member": (lambda: {"a": 1}, lambda value: value.pop("a")),
    "an item deep inside": (lambda: {"a": [{"b": [1]}]}, lambda v: v["a"][0]["b"].append(2)),
    "an equal number of another type": (lambda: {"a": 1}, lambda value: value.update(a=True)),
    "an equal float": (lambda: {"a": 1}, lambda value: value.update(a=1.0)),
    "the sign of zero": (lambda: {"a": 0.0}, lambda value: value.update(a=-0.0)),
    "a bytearray": (lambda: {"a": bytearray(b"x" * 70_000)}, lambda v: v["a"].__setitem__(0, 65)),
    "bytes for text": (lambda: {"a": b"\xff"}, lambda value: value.update(a="\xff")),
    "an object's state": (lambda: {"object": Opaque()}, lambda value: _set(value, "after")),
    "a set": (lambda: {"a": {1}}, lambda value: value["a"].add(2)),
    "text of the same length": (lambda: {"a": "x"}, lambda value: value.update(a="y")),
}


@pytest.mark.parametrize("encoder", [default_encoder(), json_encoder], ids=["orjson", "json"])
@pytest.mark.parametrize(("make", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_an_end_has_what_changed_since_the_start(
    encoder: Encoder, make: Callable[[], Any], change: Callable[[Any], Any]
) -> None:
    """The START's bytes are only used again for what is the same in every respect."""
    value = {"prompt": TEXT, **make()}
    span = span_of(value)
    start = encode_event("start", span, encoder)
    change(value)
    end = encode_event("end", span, encoder)
    assert repr(input_of(end)) != repr(input_of(start))
    assert input_of(end) == input_of(encode_event("start", span_of(value, 1), encoder))


def test_what_is_kept_for_open_spans_is_bounded() -> None:
    """Spans that never end, and large values, do not add up; their ENDs are still complete."""
    repeats._open.clear()
    spans = [span_of({"p": TEXT}, number) for number in range(200)]
    spans.append(span_of({"p": "x" * 1_000_000}, 200))
    for span in spans:
        encode_event("start", span, json_encoder)
    kept = sum(
        2 * len(each.raw) for payloads in repeats._open.values() for each in payloads.values()
    )
    assert 0 < kept <= repeats._MAX_SPANS * repeats._MAX_BYTES
    assert len(repeats._open) <= repeats._MAX_SPANS
    assert all(input_of(encode_event("end", span, json_encoder)) == span.input for span in spans)
    assert not repeats._open


def test_a_long_name_is_cut() -> None:
    """A name of 33 MB, which no sidecar takes, does not cost the span."""
    span = Span("s", "t", "n" * 33_000_000, datetime.now(UTC))
    line = encode_event("start", span, default_encoder())
    assert len(line) < 100_000
    assert decode(line, 0.0).rejected == []

"""The ids of a span: how long they may be, and what they may contain (docs/api.md)."""

import orjson
import pytest

from sidecar.spans.decode import decode
from tests.support.spans import make_event


def error(field: str, value: str) -> str | None:
    """The error of an event with this field; None if it is accepted."""
    event = make_event()
    event["span"][field] = value
    spans, rejected = decode(orjson.dumps(event), 0.0)
    assert len(spans) + len(rejected) == 1
    return rejected[0].error if rejected else None


@pytest.mark.parametrize(
    ("field", "limit"), [("id", 256), ("trace_id", 1024), ("parent_id", 1024), ("task_id", 1024)]
)
@pytest.mark.parametrize("character", ["i", "é", "漢", "😀"])
def test_the_length_of_an_id(field: str, limit: int, character: str) -> None:
    """The limit counts bytes of UTF-8, not characters; one more byte is too many."""
    count, rest = divmod(limit, len(character.encode()))
    longest = character * count + "i" * rest
    assert error(field, longest) is None
    assert error(field, longest + "i") == f"span.{field} is longer than {limit} bytes"


@pytest.mark.parametrize("field", ["id", "trace_id", "parent_id"])
def test_no_nul_in_ids(field: str) -> None:
    """A NUL is rejected where no upstream can store it and no repair would be correct."""
    assert error(field, "a\0b") == f"span.{field} contains a NUL character"

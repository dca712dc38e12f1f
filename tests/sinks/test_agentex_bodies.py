"""The bodies that the Agentex sink sends and reads."""

import itertools
import json
from typing import Any

import pytest

from sidecar.sinks.agentex_bodies import patch_body, repaired, stored_span, without_data
from tests.sinks.scripted_agentex import added
from tests.support.spans import END_TIME, START_TIME, make_span

MEMBERS: dict[str, Any] = {
    "id": "s1",
    "trace_id": "t1",
    "task_id": None,
    "input": {"id": "no", "trace_id": "no"},
    "data": [{"id": "no"}],
}
NAMES = ["s1", "", "träce 日本 😀", 'a"b\\c/d', "\x00\x1f\n\u2028", "\\", '","trace_id":"t2']


def identity(body: bytes) -> tuple[str, str] | None:
    """Whose span a response shows, if that is known."""
    found = stored_span(body)
    return None if found is None else found.key


def dumped(members: dict[str, Any], **options: Any) -> bytes:
    """The members as JSON."""
    return json.dumps(members, **options).encode()


# Whose span it is.


def test_the_ids_of_a_whole_body() -> None:
    """In any order of its members, and whatever its payloads contain."""
    for order in itertools.permutations(MEMBERS.items()):
        assert identity(dumped(dict(order))) == ("t1", "s1")


def test_the_ids_of_a_body_that_is_cut_off() -> None:
    """They come first: wherever it is cut after them, they are found, and before it, nothing is."""
    body = dumped(MEMBERS)
    known = body.index(b', "task_id"')
    for size in range(len(body)):
        assert identity(body[:size]) == (None if size < known else ("t1", "s1"))


@pytest.mark.parametrize("layout", [(",", ":"), (", ", ": "), ("\n\t,\r ", " :\t")])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_ids_are_texts(layout: tuple[str, str], ascii_only: bool) -> None:
    """Escaped or not; in a body that is whole, and in one that is cut off."""
    for id_, trace_id in itertools.product(NAMES, NAMES):
        body = dumped(
            {"id": id_, "trace_id": trace_id, "name": "turn"},
            separators=layout,
            ensure_ascii=ascii_only,
        )
        for read in (body, b"\n " + body, body[:-1], body[:-6]):
            assert identity(read) == (trace_id, id_)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b"[]",
        b'"id"',
        b"<html><title>id</title></html>",
        bytes(range(256)),
        b'{"id":"s1"}',
        b'{"trace_id":"t1"}',
        b'{"id":1,"trace_id":"t1"}',
        b'{"id":"s1","trace_id":null}',
        b'{"id":"s1","name":"turn","trace_id":"t1"',  # cut off, and in another order
        b'{"trace_id":"t1","id":"s1"',
        b'{"span":{"id":"s1","trace_id":"t1"}}',
        b'[{"id":"s1","trace_id":"t1"}]',
        b'{"id":"s1","trace_id":"t1',
        b'{"id":"\xff","trace_id":"t1","name":',
        b'{"id":"\\ud800","trace_id":"t1","name":',
        b'{"id":"\\x","trace_id":"t1","name":',
        b'{"id":"\\ud800","trace_id":"t1"}',
        b'{"id":"s1","trace_id":"t\xff"}',
    ],
)
def test_a_body_without_ids(body: bytes) -> None:
    """It has none, or none that can be read."""
    assert identity(body) is None


@pytest.mark.parametrize("bracket", [b"[", b'{"a":'])
def test_a_hostile_body_is_no_bug(bracket: bytes) -> None:
    """However deep it is nested: an exception would end the process; ids before it are found."""
    head = b'{"id":"s1","trace_id":"t1","input":'
    assert identity((head + bracket * 8192)[:8192]) == ("t1", "s1")
    assert identity((b'{"input":' + bracket * 8192)[:8192]) is None


def test_a_whole_body_that_is_too_deep() -> None:
    """It is JSON, but it may not be decoded: ids are found at least where they come first."""
    deep = b"[" * 4000 + b"]" * 4000
    assert identity(b'{"id":"s1","trace_id":"t1","input":%b}' % deep) == ("t1", "s1")
    assert identity(b'{"input":%b,"id":"s1","trace_id":"t1"}' % deep) in {None, ("t1", "s1")}


# What a PATCH says.


def test_a_patch_has_no_nulls() -> None:
    """The server would leave these fields unchanged; payloads keep their bytes."""
    assert patch_body(make_span(input=b"", output=b'{ "o":1e400}')) == (
        b'{"trace_id":"t1","name":"turn","start_time":"%b","end_time":"%b","output":{ "o":1e400}}'
        % (START_TIME.encode(), END_TIME.encode())
    )
    span = make_span("s", name="ü\n", parent_id="p", task_id="k", data=b"[]")
    assert list(json.loads(patch_body(span)).items()) == [
        ("trace_id", "t1"),
        ("name", "ü\n"),
        ("start_time", START_TIME),
        ("end_time", END_TIME),
        ("parent_id", "p"),
        ("task_id", "k"),
        ("input", {"q": 1}),
        ("output", {"a": 2}),
        ("data", []),
    ]


def test_a_supplement_says_only_what_it_adds() -> None:
    """Its payloads, and whose they are; name and times are stored already."""
    body = patch_body(added(input=b"", parent_id="p", task_id="k", name="\0"))
    ids = {"trace_id": "t1", "parent_id": "p", "task_id": "k"}
    assert json.loads(body) == {**ids, "data": {"d": 1}}
    body = patch_body(added(input=b'{"i":1}', output=b"[]", data=b""))
    assert json.loads(body) == {"trace_id": "t1", "input": {"i": 1}, "output": []}


def test_a_write_without_its_data() -> None:
    """The write itself is not changed: other lanes share it."""
    span = make_span(data=b'{"d":1}')
    assert "data" not in json.loads(patch_body(without_data(span)))
    assert span.data == b'{"d":1}'


# What the server can't store.


def test_what_can_be_stored_is_not_copied() -> None:
    """It is the same object."""
    span = make_span(task_id="k")
    assert repaired(span) is span


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", {"task_id": "k\0"}),
        (b"{}", {"task_id": "k\0"}),
        (b'{"d":1}', {"task_id": "k\0", "d": 1}),
        (b"[ ]", [{"task_id": "k\0"}]),
        (b'[{"d":1} ]', [{"d": 1}, {"task_id": "k\0"}]),
    ],
)
def test_a_nul_in_a_text_column(data: bytes, expected: object) -> None:
    """It is replaced in a name; a task id with one is moved into `data`, an object or a list."""
    span = make_span(name="a\0b", task_id="k\0", data=data)
    stored = repaired(span)
    assert (stored.name, stored.task_id, json.loads(stored.data)) == ("a\ufffdb", None, expected)
    assert (span.name, span.task_id, span.data) == ("a\0b", "k\0", data)


@pytest.mark.parametrize(
    ("rest", "ended", "lacks"),
    [
        (b'"end_time":null,"input":{},"output":null,"data":null}', False, 6),
        (b'"end_time":"2026-01-02T03:04:06Z","input":null,"output":[],"data":{}}', True, 1),
        (b'"end_time":"2026-01-02T03:04:06Z","input":{"a":1},"output":{},"data":{}}', True, 0),
        (b'"end_time":null,"input":{"text":"cut', False, 7),
        (
            b'"end_time":"2026-01-02T03:04:06Z","input":{"\\"end_time\\":null":1,"text":"cut',
            True,
            0,
        ),
        (b'"name":"cut', True, 0),
    ],
)
def test_what_a_stored_span_lacks(rest: bytes, ended: bool, lacks: int) -> None:
    """Nulls, as bits; if the end is missing, an open span may lack everything, another nothing."""
    found = stored_span(b'{"id":"s","trace_id":"t",' + rest)
    assert found == (("t", "s"), ended, lacks)

"""Raw JSON bytes: every check and repair against a model that parses the values."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.spans.raw_json import (
    MAX_NESTING,
    is_list_of_objects,
    is_utf8,
    replace_lone_surrogates,
    too_deep,
    with_members,
)

# Strings full of JSON syntax and lone surrogates.
texts = st.text(st.sampled_from('[]{}",:\\/u dD8fF09\ud800\udbff\udc00\udfff\U0001f600é\0\n'))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
members = st.dictionaries(texts.map(lambda key: "k" + key), values, max_size=4)


def lone_to_fffd(text: str) -> str:
    """`text` with each lone surrogate replaced by U+FFFD, character by character."""
    paired = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in paired)


def clean(value: Any) -> Any:  # noqa: ANN401
    """`value` with lone surrogates replaced, as `too_deep` gets it."""
    return json.loads(replace_lone_surrogates(json.dumps(value).encode()))


def depth(value: Any) -> int:  # noqa: ANN401
    """The model: nesting found by walking the value."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@given(st.binary() | st.text().map(str.encode))
def test_is_utf8_agrees_with_decode(body: bytes) -> None:
    """It agrees with `bytes.decode`."""
    try:
        body.decode()
    except UnicodeDecodeError:
        assert not is_utf8(body)
    else:
        assert is_utf8(body)


@pytest.mark.parametrize("around", [64 * 1024 - 1, 64 * 1024 - 2, 64 * 1024])
def test_is_utf8_at_the_edge_of_a_chunk(around: int) -> None:
    """A character split across chunks is valid, and half of one is not."""
    character = "\U0001f600".encode()
    assert is_utf8(b"x" * around + character)
    assert not is_utf8(b"x" * around + character[:-1])


@given(texts)
def test_lone_surrogates_in_a_string(text: str) -> None:
    """Only lone surrogates become U+FFFD; pairs and escaped backslashes stay."""
    raw = json.dumps(text).encode()
    assert json.loads(replace_lone_surrogates(raw)) == lone_to_fffd(text)


@given(st.lists(st.sampled_from([r"\ud83d", r"\uDE00", r"\\", r"\"", r"\n", "u", "d8", r"\u0041"])))
def test_lone_surrogates_between_escapes(parts: list[str]) -> None:
    """The same for strings made of escapes only, with hex digits in either case."""
    raw = '"' + "".join(parts) + '"'
    assert json.loads(replace_lone_surrogates(raw.encode())) == lone_to_fffd(json.loads(raw))


@given(values)
def test_nothing_changes_without_lone_surrogates(value: Any) -> None:  # noqa: ANN401
    """Without lone surrogates the bytes are unchanged; repairing twice changes nothing more."""
    raw = json.dumps(value).encode()
    once = replace_lone_surrogates(raw)
    assert replace_lone_surrogates(once) == once
    assert (once == raw) == (b"\\ufffd" not in once or b"\\ufffd" in raw)


@given(values.map(clean), st.integers(MAX_NESTING - 6, MAX_NESTING + 2), st.booleans())
def test_too_deep_agrees_with_a_walk(value: Any, levels: int, objects: bool) -> None:  # noqa: ANN401
    """It agrees with a walk over the value, whatever the strings contain."""
    for _ in range(levels):
        value = {"[{": value, "}]": "\\"} if objects else ["]", value, '"{']
    assert too_deep(json.dumps(value).encode()) == (depth(value) > MAX_NESTING)


@pytest.mark.parametrize("text", ["[" * 300, '"' * 300 + "{" * 300, "\\" * 301 + "[" * 300])
def test_brackets_in_strings_are_not_nesting(text: str) -> None:
    """Brackets in strings do not count, whatever quotes and backslashes surround them."""
    assert not too_deep(json.dumps({"text": text, text: [text]}).encode())


def test_the_limit_of_nesting() -> None:
    """200 levels are allowed, 201 are not; breadth does not count."""
    assert not too_deep(b"[" * 200 + b"]" * 200)
    assert too_deep(b"[" * 201 + b"]" * 201)
    assert too_deep(b'{"a":' * 201 + b"1" + b"}" * 201)
    assert not too_deep(b"[" + b"{}," * 1000 + b"[]]")


@pytest.mark.parametrize("inner", [b"1", b"[]", b"{}", b'"["', b'{"k":"\\n"}'])
@pytest.mark.parametrize("escapes", [0, 1, 100_000])
@pytest.mark.parametrize("blank", [b"", b"\n" + b" " * 300])
def test_the_limit_next_to_escapes(inner: bytes, escapes: int, blank: bytes) -> None:
    """The limit is exact whatever is innermost, how long the text is, and how it is indented."""
    text = b'{"t":"%b"},' % (rb"\n" * escapes)
    for levels in (MAX_NESTING, MAX_NESTING + 1):
        lists = levels - depth(json.loads(inner))
        raw = b"[" + text + blank + b"[" * (lists - 1) + inner + b"]" * lists
        assert too_deep(raw) == (levels > MAX_NESTING)


@pytest.mark.parametrize("levels", [900, 990, 994, 996, 998, 999])
def test_nesting_near_the_recursion_limit(levels: int) -> None:
    """What is nested as deep as a parser can follow is too deep, and no error."""
    assert too_deep(rb'{"\n":' * levels + b"1" + b"}" * levels)


@pytest.mark.parametrize(
    "count",
    [1, 5, 50, 500],
)
def test_nesting_hidden_by_a_duplicate_key(count: int) -> None:
    """The first of two equal keys counts as well, among any number of other members."""
    deep = b"[" * 250 + b"]" * 250
    others = b"".join(b',"k%d":1' % number for number in range(count))
    assert too_deep(b'{"a":%b,"a":1%b}' % (deep, others))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"[]", True),
        (b'[{},{"a":[1]}]', True),
        (b' [ { } , {"a":"]"} ] ', True),
        (b"[1]", False),
        (b"[{},null]", False),
        (b"[[{}]]", False),
        (b'["{}"]', False),
    ],
)
def test_is_list_of_objects(raw: bytes, expected: bool) -> None:
    """Only the items themselves count; an empty list is valid."""
    assert is_list_of_objects(raw) is expected


@given(members, members, members)
def test_with_members_is_a_merge(
    first: dict[str, Any], own: dict[str, Any], last: dict[str, Any]
) -> None:
    """The object's own members override `first`, and `last` overrides them."""
    one, raw, two = (json.dumps(part).encode() for part in (first, own, last))
    merged = with_members(raw, one[1:-1], two[1:-1])
    assert json.loads(merged) == json.loads(one) | json.loads(raw) | json.loads(two)


@pytest.mark.parametrize("raw", [b"", b"{}", b"{ \n }"])
def test_with_members_of_nothing(raw: bytes) -> None:
    """Empty bytes and an empty object get the new members without a stray comma."""
    assert with_members(raw, b'"a":1') == b'{"a":1}'
    assert with_members(raw, b'"a":1', b'"b":2') == b'{"a":1,"b":2}'
    assert json.loads(with_members(raw)) == {}


def test_with_members_keeps_the_bytes() -> None:
    """The object's own bytes are preserved."""
    raw = rb'{ "n" : 1e400, "n":123456789012345678901234567890, "t":"\u00e9\/" }'
    assert raw[1:-1].strip() in with_members(raw, b'"a":1', b'"b":2')

"""Checks and repairs on raw JSON bytes. No payload is ever parsed into Python objects.

`input`, `output` and `data` are customer data and are forwarded unchanged (big integers,
`1e400`, key order, duplicate keys, escapes). Every function is pure. Sources: docs/upstreams.md A1
(what makes a trace unreadable upstream), docs/api.md (what the listener accepts).
"""

import codecs
import re

import msgspec

MAX_NESTING = 200
# Bodies up to this size are checked in one call, larger ones in chunks.
_MAX_ONE_CALL_BYTES = 256 * 1024
_CHUNK_BYTES = 64 * 1024
# `_count` switches from find() to count() after this many brackets with fewer than this many bytes
# per bracket.
_MAX_FINDS, _BYTES_PER_FIND = 4, 250
_RAW_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_RAW_DICT = msgspec.json.Decoder(dict[str, msgspec.Raw])

# Escaped backslashes and valid pairs are consumed first, so only a lone surrogate can match the
# last alternative.
_SURROGATES = re.compile(
    rb"\\\\"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_STRING = re.compile(rb'"[^"]*"')
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"{}[]'))
# Neither structure, nor a backslash, nor a character that may follow one (RFC 8259, section 7).
_PLAIN_BYTES = bytes(set(_NOT_STRUCTURE) - set(rb"\/bfnrtu"))
_BRACES = bytes.maketrans(b"[]", b"{}")


def is_utf8(body: bytes) -> bool:
    """Whether `body` is valid UTF-8. A large body is checked without decoding a full copy."""
    if body.isascii():
        return True
    if len(body) <= _MAX_ONE_CALL_BYTES:
        try:
            body.decode()
        except UnicodeDecodeError:
            return False
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(body)
    try:
        for start in range(0, len(body), _CHUNK_BYTES):
            decoder.decode(view[start : start + _CHUNK_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def replace_lone_surrogates(raw: bytes) -> bytes:
    """Replace escaped lone surrogates with U+FFFD, and change nothing else.

    On the Agentex server, one such escape makes the whole trace unreadable (docs/upstreams.md A1).
    """
    if b"\\ud" not in raw and b"\\uD" not in raw:
        return raw
    return _SURROGATES.sub(lambda match: b"\\ufffd" if match[1] else match[0], raw)


def too_deep(raw: bytes, limit: int = MAX_NESTING) -> bool:
    """Whether arrays and objects are nested more than `limit` levels deep.

    At 255 levels or more, Agentex stores what it can never read back (docs/upstreams.md A1).
    """
    if len(raw) <= 2 * limit:
        return False
    openings = _count(raw, b"{", limit)
    if openings <= limit:
        openings += _count(raw, b"[", limit)
    return openings > limit and _is_deeper(raw, limit)


def _count(raw: bytes, bracket: bytes, limit: int) -> int:
    """Occurrences of `bracket` in `raw`: exact up to `limit`, then only a lower bound."""
    # Most prompts have few brackets. find() skips to the next one at memory speed, while count()
    # compares every byte; but one find() costs as much as `_BYTES_PER_FIND` bytes of count().
    found, at = 0, raw.find(bracket)
    while at >= 0:
        found += 1
        if found >= _MAX_FINDS and at < _BYTES_PER_FIND * found:
            return found + raw.count(bracket, at + 1)
        if found > limit:
            break
        at = raw.find(bracket, at + 1)
    return found


def _is_deeper(raw: bytes, limit: int) -> bool:
    # Remove escapes, then everything but quotes and brackets, then the strings. Two strings that
    # become adjacent merge into one, which is harmless: nothing structural was between them.
    bare = raw
    if b"\\" in raw:
        # translate() first: replace() takes twice as long per byte.
        bare = raw.translate(None, _PLAIN_BYTES).replace(b"\\\\", b"").replace(b'\\"', b"")
    bare = bare.translate(_BRACES, _NOT_STRUCTURE).replace(b'""', b"")
    if bare.count(b"{") <= limit:
        return False
    bare = _STRING.sub(b"", bare)
    for _ in range(limit):
        if not bare:
            return False
        bare = bare.replace(b"{}", b"")
    return bool(bare)


def is_list_of_objects(raw: bytes) -> bool:
    """Whether every item of the JSON array `raw` is an object."""
    return all(bytes(item)[:1] == b"{" for item in _RAW_LIST.decode(raw))


def with_members(raw: bytes, first: bytes = b"", last: bytes = b"") -> bytes:
    """The JSON object `raw` with members added before and after its own.

    `first` and `last` are members without braces (`"a":1,"b":2`). A reader keeps the last of two
    equal keys, so the object's own members override `first`, and `last` overrides them.
    """
    inside = raw[1:-1].strip() if raw else b""
    return b"{%b}" % b",".join(part for part in (first, inside, last) if part)


def merged(raw: bytes, update: bytes) -> bytes:
    """The JSON object `raw`, updated with the members of the JSON object `update`.

    Shallow, as the Agentex server merges `data` (docs/upstreams.md A2). Values keep their bytes.
    """
    members = _RAW_DICT.decode(raw) | _RAW_DICT.decode(update)
    return b"{%b}" % b",".join(
        msgspec.json.encode(name) + b":" + bytes(value) for name, value in members.items()
    )

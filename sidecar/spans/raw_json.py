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
# Above this size, `too_deep` does not indent: at 200 levels the result has 100 times as many bytes.
_MAX_INDENTED_BYTES = 128 * 1024
_DEEP_LINE = b"\n" + b" " * MAX_NESTING
_RAW_LIST = msgspec.json.Decoder(list[msgspec.Raw])

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


def too_deep(raw: bytes) -> bool:
    """Whether arrays and objects are nested more than `MAX_NESTING` levels deep.

    At 255 levels or more, Agentex stores what it can never read back (docs/upstreams.md A1).
    """
    if not (_is_frequent(raw, b"{") or _is_frequent(raw, b"[")):
        return False
    # Escapes are what takes time in `_is_deeper`, and in most text every line ends with one.
    if b"\\" in raw and len(raw) <= _MAX_INDENTED_BYTES:
        try:
            # In JSON, a line break is never inside a string. A value with this indentation is not
            # too deep, unless it is an array or object itself.
            if _DEEP_LINE not in msgspec.json.format(raw, indent=1):
                return False
        except RecursionError:
            return True
    return _is_deeper(raw)


def _is_frequent(raw: bytes, bracket: bytes) -> bool:
    """Whether `raw` has so many of `bracket` that it may be too deep."""
    at, left = raw.find(bracket), MAX_NESTING // 2
    while at >= 0 and left:
        at = raw.find(bracket, at + 1)
        left -= 1
    return at >= 0


def _is_deeper(raw: bytes) -> bool:
    # Remove escapes, then everything but quotes and brackets, then the strings. Two strings that
    # become adjacent merge into one, which is harmless: nothing structural was between them.
    bare = raw
    if b"\\" in raw:
        # translate() first: replace() takes twice as long per byte.
        bare = raw.translate(None, _PLAIN_BYTES).replace(b"\\\\", b"").replace(b'\\"', b"")
    bare = bare.translate(_BRACES, _NOT_STRUCTURE).replace(b'""', b"")
    bare = _STRING.sub(b"", bare)
    for _ in range(MAX_NESTING):
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

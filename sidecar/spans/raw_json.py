"""Raw JSON bytes: what is checked, and the few repairs, without ever building a value.

`input`, `output` and `data` are customers' bytes. They are forwarded as they came (big integers,
`1e400`, key order, duplicate keys, escapes), so everything here looks at bytes or changes bytes.
Every function is pure. Sources: docs/upstreams.md A1 and A6 (what poisons a trace upstream),
docs/api.md (what the listener promises to take).
"""

import codecs
import re

import msgspec

MAX_NESTING = 200
_CHUNK = 64 * 1024
_AT_ONCE = 256 * 1024
_FEW_BRACKETS, _BYTES_PER_FIND = 4, 250
_RAW_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_RAW_DICT = msgspec.json.Decoder(dict[str, msgspec.Raw])

# Left to right, an escaped backslash and a valid pair are stepped over, so that only a surrogate
# that stands alone is left for the last alternative.
_SURROGATES = re.compile(
    rb"\\\\"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_STRING = re.compile(rb'"[^"]*"')
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"{}[]'))
# Structure, backslashes, and all that may come behind one (RFC 8259, 7).
_NOR_ESCAPES = bytes(set(_NOT_STRUCTURE) - set(rb"\/bfnrtu"))
_BRACES = bytes.maketrans(b"[]", b"{}")


def is_utf8(body: bytes) -> bool:
    """Whether `body` is valid UTF-8; needs no memory of a large body's size."""
    if body.isascii():
        return True
    if len(body) <= _AT_ONCE:
        try:
            body.decode()
        except UnicodeDecodeError:
            return False
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(body)
    try:
        for start in range(0, len(body), _CHUNK):
            decoder.decode(view[start : start + _CHUNK])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def replace_lone_surrogates(raw: bytes) -> bytes:
    """Escapes of surrogates that have no partner become U+FFFD; all else stays.

    At the Agentex server one such escape makes the whole trace unreadable (docs/upstreams.md A1).
    """
    if b"\\ud" not in raw and b"\\uD" not in raw:
        return raw
    return _SURROGATES.sub(lambda match: b"\\ufffd" if match[1] else match[0], raw)


def too_deep(raw: bytes, limit: int = MAX_NESTING) -> bool:
    """Whether arrays and objects are nested more than `limit` levels deep.

    The Agentex server stores from level 255 on what it can never read again (docs/upstreams.md A1).
    """
    if len(raw) <= 2 * limit:
        return False
    openings = _count(raw, b"{", limit)
    if openings <= limit:
        openings += _count(raw, b"[", limit)
    return openings > limit and _is_deeper(raw, limit)


def _count(raw: bytes, bracket: bytes, most: int) -> int:
    """How often `bracket` is in `raw`; at least more than `most` when it is."""
    # Most prompts have few brackets: find() goes over them at memory speed, where count() looks at
    # every byte; but each find() costs as much as `_BYTES_PER_FIND` bytes of count().
    found, at = 0, raw.find(bracket)
    while at >= 0:
        found += 1
        if found >= _FEW_BRACKETS and at < _BYTES_PER_FIND * found:
            return found + raw.count(bracket, at + 1)
        if found > most:
            break
        at = raw.find(bracket, at + 1)
    return found


def _is_deeper(raw: bytes, limit: int) -> bool:
    # Escapes out, then all but quotes and brackets; then strings that hold none of these. Two
    # strings that become neighbours are one afterwards: nothing structural was between them.
    bare = raw
    if b"\\" in raw:
        # In what is left of it: replace() takes twice as long for a byte as translate().
        bare = raw.translate(None, _NOR_ESCAPES).replace(b"\\\\", b"").replace(b'\\"', b"")
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
    """Whether the JSON array `raw` holds objects only."""
    return all(bytes(item)[:1] == b"{" for item in _RAW_LIST.decode(raw))


def with_members(raw: bytes, first: bytes = b"", last: bytes = b"") -> bytes:
    """The JSON object `raw` with members put before and after its own.

    `first` and `last` are members without braces (`"a":1,"b":2`). A reader keeps the last of
    two equal keys, so `first` gives way to what the object says itself and `last` overrides it.
    """
    inside = raw[1:-1].strip() if raw else b""
    return b"{%b}" % b",".join(part for part in (first, inside, last) if part)


def merged(raw: bytes, over: bytes) -> bytes:
    """The members of the JSON object `raw`, and over them those of the object `over`.

    Shallow, as the Agentex server merges `data` (docs/upstreams.md A2); values stay as they came.
    """
    members = _RAW_DICT.decode(raw) | _RAW_DICT.decode(over)
    return b"{%b}" % b",".join(
        msgspec.json.encode(name) + b":" + bytes(value) for name, value in members.items()
    )

"""Decoding the beginning of a response's body."""

import gzip
import os
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from sidecar.http.encodings import decoded_head

BODY = b"".join(b'{"detail":"span %d"}' % number for number in range(500)) + os.urandom(500)
LIMIT = 10 * len(BODY)


def raw_deflate(body: bytes) -> bytes:
    """A deflate stream without the zlib header."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(body) + stream.flush()


each_encoding = pytest.mark.parametrize(
    ("encoding", "stream"),
    [
        ("gzip", gzip.compress(BODY)),
        ("x-gzip", gzip.compress(BODY[:700]) + gzip.compress(BODY[700:])),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
    ],
    ids=["gzip", "two members", "zlib", "raw deflate"],
)


@pytest.mark.parametrize("encoding", ["", "identity", " Identity , identity", ",", "\t"])
def test_without_an_encoding(encoding: str) -> None:
    """The body itself, up to the limit."""
    assert decoded_head(b"\x1f\x8bbody", encoding, 100) == b"\x1f\x8bbody"
    assert decoded_head(b"body", encoding, 3) == b"bod"


@each_encoding
def test_a_compressed_body(encoding: str, stream: bytes) -> None:
    """The name's case, spaces and `identity` beside it make no difference."""
    for name in (encoding, encoding.upper(), f" {encoding}\t", f"identity, {encoding} ,Identity,"):
        assert decoded_head(stream, name, LIMIT) == BODY
    for limit in (0, 1, 1000, len(BODY)):
        assert decoded_head(stream, encoding, limit) == BODY[:limit]


@each_encoding
def test_a_body_that_is_cut_off(encoding: str, stream: bytes) -> None:
    """Wherever it is cut, the result is the beginning of the body, and it grows with the input."""
    size = 0
    for end in range(len(stream) + 1):
        decoded = decoded_head(stream[:end], encoding, LIMIT)
        assert decoded is not None
        assert BODY.startswith(decoded)
        assert len(decoded) >= size
        size = len(decoded)
    assert size == len(BODY)


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)],
)
def test_a_bomb(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """No more is decoded than the limit: decoding takes little memory."""
    bomb = compress(bytes(50_000_000))
    tracemalloc.start()
    try:
        assert decoded_head(bomb, encoding, 8192) == bytes(8192)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "encoding",
    [
        "br",
        "zstd",
        "compress",
        "lzma",
        "gzip, gzip",
        "deflate,gzip",
        "gzip, br",
        "gzip;q=1",
        "\xff",
    ],
)
def test_an_encoding_that_is_not_understood(encoding: str) -> None:
    """Any other name, and any combination: not even an empty body is decoded."""
    assert decoded_head(gzip.compress(gzip.compress(BODY)), encoding, LIMIT) is None
    assert decoded_head(b"", encoding, LIMIT) is None


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b'{"detail":"not compressed"}'),
        ("gzip", zlib.compress(BODY)),
        ("gzip", gzip.compress(BODY) + b"surplus"),
        ("gzip", gzip.compress(BODY)[:-8] + bytes(8)),  # a wrong checksum
        ("deflate", b"\xff" * 100),
        ("deflate", zlib.compress(BODY) + b"surplus"),
    ],
)
def test_a_malformed_body(encoding: str, body: bytes) -> None:
    """It is not understood, even if its beginning can be decoded."""
    assert decoded_head(body, encoding, LIMIT) is None

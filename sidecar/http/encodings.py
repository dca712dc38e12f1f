"""Bounded decompression of bodies: incremental for requests, of the beginning for responses."""

import zlib

_HEADER_BYTES = 2


class Inflater:
    """Decompresses one body: `gzip`, with any number of members, or `deflate`.

    Raises `zlib.error` for malformed input.
    """

    def __init__(self, encoding: str) -> None:
        self._gzip = encoding == "gzip"
        self._stream: zlib._Decompress | None = None
        self._pending = b""

    def __call__(self, chunk: bytes, max_bytes: int) -> bytes:
        """Decompress `chunk` into at most `max_bytes`; input beyond that limit is discarded."""
        chunk, self._pending = self._pending + chunk, b""
        inflated = b""
        while chunk and len(inflated) < max_bytes:
            if self._stream is None or (self._stream.eof and self._gzip):
                if len(chunk) < _HEADER_BYTES:
                    self._pending = chunk
                    break
                self._stream = zlib.decompressobj(self._window(chunk))
            inflated += self._stream.decompress(chunk, max_bytes - len(inflated))
            chunk = self._stream.unused_data
            if self._stream.eof:
                if chunk and not self._gzip:
                    raise zlib.error("data after the end of the stream")
                # RFC 1952: a gzip file is a series of members; the next one begins here.
            else:
                break
        return inflated

    def _window(self, chunk: bytes) -> int:
        if self._gzip:
            return zlib.MAX_WBITS | 16
        # "deflate" means the zlib format (RFC 9110, 8.4.1.2), but some clients send raw deflate.
        is_zlib = chunk[0] & 0x0F == zlib.DEFLATED and int.from_bytes(chunk[:2]) % 31 == 0
        return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS

    @property
    def complete(self) -> bool:
        """Whether the compressed body has ended."""
        return self._stream is not None and self._stream.eof and not self._pending


def decoded_head(body: bytes, encoding: str, max_bytes: int) -> bytes | None:
    """The beginning of `body`, decoded: at most `max_bytes`, and no more is ever decoded.

    `body` may be cut off anywhere. `encoding` is the value of its Content-Encoding, or empty.
    Returns `None` if it is not understood: it is malformed, encoded more than once, or its encoding
    is neither `gzip` (or `x-gzip`) nor `deflate`.
    """
    names = [name.strip() for name in encoding.lower().split(",")]
    names = [name for name in names if name not in {"", "identity"}]
    if not names:
        return body[:max_bytes]
    if len(names) > 1 or names[0] not in {"gzip", "x-gzip", "deflate"}:
        return None
    try:
        return Inflater(names[0].removeprefix("x-"))(body, max_bytes)
    except zlib.error:
        return None

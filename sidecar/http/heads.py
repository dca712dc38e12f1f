"""Reads the heads of requests and writes those of responses.

llhttp has parsed a request's head before it comes here. What llhttp accepts and RFC 9112 does not
is refused, because two readers of such a request could disagree about it.
"""

from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time
from typing import NamedTuple

from sidecar.http.messages import Fields, Headers, Request, Response, StreamedResponse

MAX_HEAD_BYTES = 8192
_ONLY_ONCE = (b"host", b"transfer-encoding")
_SCHEMES = ("http", "https")
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_NO_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class BadRequest(Exception):
    """No service can take the request, and nothing after it can be read."""

    def __init__(self, error: str, status: int = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(error)
        self.status = status


def read_head(method: bytes, target: bytes, headers: Headers, version: str) -> Request:
    """The request with this method, target, headers and HTTP version; raises `BadRequest`."""
    if method == b"CONNECT":
        raise BadRequest("this server is not a proxy")
    if version != "1.0" and (version != "1.1" or b"host" not in headers):
        raise BadRequest("expected HTTP/1.1 with a Host, or HTTP/1.0")
    coding = headers.get(b"transfer-encoding")
    if coding is not None and (version == "1.0" or coding.strip().lower() != b"chunked"):
        raise BadRequest("Transfer-Encoding must be chunked")
    try:
        text = target.decode("ascii")
    except UnicodeDecodeError:
        raise BadRequest("malformed request target") from None
    if text[0] != "/":
        scheme, found, rest = text.partition("://")
        if not found or scheme.lower() not in _SCHEMES:
            raise BadRequest("malformed request target")
        # RFC 9112, 3.2.2: the host of an absolute target replaces the header.
        host, _, rest = rest.partition("/")
        headers[b"host"] = host.encode()
        text = "/" + rest
    return Request(method.decode(), text, text.partition("?")[0], headers)


def repeated(name: bytes, first: bytes, value: bytes) -> bytes:
    """The value of a header that is repeated; raises `BadRequest` if it must not be."""
    if name in _ONLY_ONCE:
        raise BadRequest(f"{name.decode()} is repeated")
    return first + (b"; " if name == b"cookie" else b", ") + value


def without_offer(method: bytes, target: bytes, headers: Headers, version: str) -> bytes:
    """The head of a request, without its offer to upgrade."""
    # Without `Upgrade` there is no offer; `Connection` can also ask to close.
    lines = [b"%b: %b" % each for each in headers.items() if each[0] != b"upgrade"]
    return b"\r\n".join([b"%b %b HTTP/%b" % (method, target, version.encode()), *lines, b"", b""])


class Framing(NamedTuple):
    """How the response to a request has to be written."""

    head_only: bool = False
    http_1_0: bool = False
    close: bool = False  # after the response


# Of almost every response.
PLAIN = Framing()


def whole(response: Response, framing: Framing) -> bytes:
    """The bytes of a whole response."""
    status, body, content_type, headers = response
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nDate: {_date(int(time()))}\r\n"
        f"{_lines(headers) if headers else ''}{_connection(framing)}\r\n"
    ).encode()
    return head if framing.head_only else head + body


def _connection(framing: Framing) -> str:
    if framing.close:
        return "Connection: close\r\n"
    return "Connection: keep-alive\r\n" if framing.http_1_0 else ""


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def streamed(response: StreamedResponse, framing: Framing) -> tuple[bytes, bool, bool]:
    """The head of a streamed response, whether its body is chunked, whether to close after it."""
    status, reason, headers, _ = response
    bodiless = framing.head_only or status in _NO_BODY
    has_length = any(name.lower() == "content-length" for name, _ in headers)
    chunked = not (bodiless or has_length or framing.http_1_0)
    close = framing.close or not (bodiless or has_length or chunked)
    lines = _lines(headers) + ("Transfer-Encoding: chunked\r\n" if chunked else "")
    lines += _connection(framing._replace(close=close))
    head = f"HTTP/1.1 {status} {reason}\r\n{lines}\r\n"
    return head.encode("utf-8", "surrogateescape"), chunked, close


def _lines(headers: Fields) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in headers])

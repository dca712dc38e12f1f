"""Reads the heads of requests.

llhttp has parsed a head before it comes here. What llhttp accepts and RFC 9112 does not is refused,
because two readers of such a request could disagree about it.
"""

from http import HTTPStatus

from sidecar.http.messages import Headers, Request

MAX_HEAD_BYTES = 8192
_ONLY_ONCE = (b"host", b"transfer-encoding")


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
        if not found or scheme.lower() not in {"http", "https"}:
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

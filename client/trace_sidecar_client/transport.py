"""HTTP connections to the sidecar. Every wait has a timeout, and every response a deadline.

It uses `http.client`, because a thread that posts to localhost needs none of the extras of aiohttp
and httpx: event loop, connection pool, retries, proxy settings from the environment.
"""

import http.client
import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from io import BufferedReader, RawIOBase
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from .responses import Response
from .settings import DEFAULT_URL

_MAX_RESPONSE_BYTES = 1 << 20
# No sidecar asks for more; a longer one would hold back spans for a mistake.
_MAX_RETRY_AFTER_S = 60.0
_MIN_TIMEOUT_S = 0.001  # 0 would make the socket one that never waits


class Unreachable(Exception):
    """The request got no response: connection refused or broken, or a timeout."""


class Credentials(NamedTuple):
    """The agent's own credentials. An empty one is read from the environment."""

    agent_api_key: str = ""
    sgp_api_key: str = ""
    sgp_account_id: str = ""

    def headers(self) -> dict[str, str]:
        """The headers that the sidecar relays. The agent sets `AGENT_API_KEY` when it registers."""
        pairs = (
            ("x-agent-api-key", self.agent_api_key, "AGENT_API_KEY"),
            ("x-api-key", self.sgp_api_key, "SGP_API_KEY"),
            ("x-selected-account-id", self.sgp_account_id, "SGP_ACCOUNT_ID"),
        )
        found = {name: given or os.environ.get(var, "") for name, given, var in pairs}
        return {name: value for name, value in found.items() if _is_header_value(value)}

    def __repr__(self) -> str:
        return "Credentials(***)"


def _is_header_value(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable()


class _Connection:
    """A connection that can tell whether its descriptor is still its own.

    Daemons close every descriptor with `os.closerange`. The number then belongs to whatever is
    opened next, which must not be written to, nor closed.
    """

    def __init__(self, host: str, port: int) -> None:
        self._http = http.client.HTTPConnection(host, port)
        self._identity: tuple[int, int] | None = None

    @property
    def sock(self) -> socket.socket | None:
        """The socket, while it is open."""
        return self._http.sock

    @property
    def is_own(self) -> bool:
        """Whether the connection is open, and nobody has closed it from outside."""
        return self.sock is not None and self._identity == _identity(self.sock)

    def post(
        self, path: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> http.client.HTTPResponse:
        """Send a request, and read the head of the response, which has `timeout_s` in all."""
        if self.sock is None:
            self._connect(timeout_s)
        deadline = time.monotonic() + timeout_s
        self._http.response_class = partial(_response, deadline=deadline)  # type: ignore[assignment]
        self._http.sock.settimeout(timeout_s)
        self._http.request("POST", path, body, headers)
        return self._http.getresponse()

    def _connect(self, timeout_s: float) -> None:
        # As bytes: for text, `getaddrinfo` imports a codec. A child that is forked meanwhile could
        # never finish that import.
        address: Any = (self._http.host.encode(), self._http.port)
        self._http.sock = sock = socket.create_connection(address, timeout_s)
        self._identity = _identity(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Close the connection, if it is open."""
        if self.sock is not None and not self.is_own:
            self.sock.detach()
        with suppress(OSError):
            self._http.close()


class _Timed:
    """A socket for `HTTPResponse`, which may read from it until `deadline`."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, mode: Literal["rb"]) -> BufferedReader:
        """The file that it reads."""
        return BufferedReader(_Reader(self._sock, self._sock.makefile(mode, 0), self._deadline))


class _Reader(RawIOBase):
    # A timeout of the socket is for one call, and a server that drips would be read for ever.
    def __init__(self, sock: socket.socket, raw: Any, deadline: float) -> None:  # noqa: ANN401
        self._sock, self._raw, self._deadline = sock, raw, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - as in the base
        self._sock.settimeout(max(self._deadline - time.monotonic(), _MIN_TIMEOUT_S))
        read: int = self._raw.readinto(buffer)
        if time.monotonic() > self._deadline:
            raise TimeoutError("the response takes too long")
        return read

    def close(self) -> None:
        self._raw.close()
        super().close()


def _response(
    sock: socket.socket, *, method: str | None = None, deadline: float
) -> http.client.HTTPResponse:
    return http.client.HTTPResponse(_Timed(sock, deadline), method=method)  # type: ignore[arg-type]


def _identity(sock: socket.socket) -> tuple[int, int] | None:
    try:
        status = os.fstat(sock.fileno())
    except OSError:
        return None
    return status.st_dev, status.st_ino


class Transport:
    """Posts to `<url>/v1/spans` over one connection that is kept open, from one thread at a time.

    Raises `ValueError` unless `url` is a plain HTTP URL.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"the sidecar's URL must look like {DEFAULT_URL}")
        host = parts.hostname
        self._host = host if host.isascii() else host.encode("idna").decode()
        self._port = parts.port or 80
        self._path = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._connection: _Connection | None = None

    @property
    def address(self) -> str:
        """The URL without what may be secret in it."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}{self._path}"

    def post(
        self, body: bytes, headers: Mapping[str, str], timeout_s: float = math.inf
    ) -> Response:
        """Send events, over the open connection if there is one. Raises `Unreachable`."""
        timeout_s = min(timeout_s, self._timeout_s)
        path = self._path + "/v1/spans"
        if self._connection is not None and self._connection.is_own:
            try:
                return self._exchange(self._connection, path, body, headers, timeout_s)
            except TimeoutError as error:
                self.close()
                raise _unreachable(error) from None
            except (OSError, http.client.HTTPException):
                pass  # the sidecar may have closed it while it was idle, which is not a failure
        self.close()
        self._connection = _Connection(self._host, self._port)
        try:
            return self._exchange(self._connection, path, body, headers, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise _unreachable(error) from None

    def post_apart(self, path_and_query: str, timeout_s: float) -> Response:
        """Send a request without a body, over a connection of its own. Raises `Unreachable`."""
        connection = _Connection(self._host, self._port)
        path = self._path + path_and_query
        try:
            return self._exchange(connection, path, b"", {"Connection": "close"}, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(error) from None
        finally:
            connection.close()

    def _exchange(
        self,
        connection: _Connection,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> Response:
        response = connection.post(path, body, headers, timeout_s)
        text = response.read(_MAX_RESPONSE_BYTES)
        retry_after_s = _parse_retry_after(response.headers.get("Retry-After", ""))
        if connection is self._connection and (response.will_close or not response.isclosed()):
            self.close()
        return Response(response.status, retry_after_s, text)

    def close(self) -> None:
        """Close the connection, if any."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def abandon(self) -> None:
        """Close the socket's descriptor in a forked child, and touch nothing else.

        The parent's thread may have held the reader's lock at the fork. Closing the reader in the
        child would then block forever.
        """
        connection = self._connection
        if connection is not None and connection.sock is not None and connection.is_own:
            with suppress(OSError):
                os.close(connection.sock.detach())


def _unreachable(error: Exception) -> Unreachable:
    # An HTTPException quotes what it received; an OSError says what the system said.
    return Unreachable(str(error) if isinstance(error, OSError) else type(error).__name__)


def _parse_retry_after(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return min(seconds, _MAX_RETRY_AFTER_S) if math.isfinite(seconds) and seconds > 0 else 0.0

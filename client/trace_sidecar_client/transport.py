"""One keep-alive HTTP connection to the sidecar, used by one thread. Every wait has a timeout.

It uses `http.client`, because a thread that posts to localhost needs none of the extras of aiohttp
and httpx: event loop, connection pool, retries, proxy settings from the environment.
"""

import http.client
import math
import os
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

DEFAULT_URL = "http://127.0.0.1:8318"
URL_VARIABLE = "TRACE_SIDECAR_URL"
_MAX_RESPONSE_BYTES = 1 << 20


class Response(NamedTuple):
    """A response from the sidecar. `retry_after_s` is 0 if it has no `Retry-After`."""

    status: int
    retry_after_s: float
    body: bytes


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


class Transport:
    """Posts to `<url>/v1/spans`. Raises `ValueError` unless `url` is a plain HTTP URL."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"the sidecar's URL must look like {DEFAULT_URL}")
        self._host = parts.hostname
        self._port = parts.port or 80
        self._path = parts.path.rstrip("/") + "/v1/spans"
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def post(self, body: bytes, headers: Mapping[str, str]) -> Response:
        """Send one request, over the open connection if there is one. Raises `Unreachable`."""
        if self._connection is not None:
            try:
                return self._post(self._connection, body, headers)
            except (OSError, http.client.HTTPException):
                # The sidecar may have closed it while it was idle, which is not a failure.
                self.close()
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        self._connection = connection
        try:
            return self._post(connection, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unreachable(type(error).__name__) from None

    def _post(
        self, connection: http.client.HTTPConnection, body: bytes, headers: Mapping[str, str]
    ) -> Response:
        connection.request("POST", self._path, body, headers)
        response = connection.getresponse()
        text = response.read(_MAX_RESPONSE_BYTES)
        retry_after_s = _parse_retry_after(response.headers.get("Retry-After", ""))
        if response.will_close or not response.isclosed():
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
        if self._connection is not None and self._connection.sock is not None:
            os.close(self._connection.sock.detach())


def _parse_retry_after(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0

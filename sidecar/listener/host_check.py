"""Restricts the agents' port to programs in the pod: requests from web pages are refused (D21)."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from sidecar.listener.refusals import Refusal
from sidecar.process.addresses import canonical_host, is_loopback

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::\d*)?", re.ASCII)
_MAX_CACHED_HOSTS = 256
# Neither repeats what the request says.
_FROM_A_PAGE = (
    "this request has an Origin, as those of web pages do: this port is for programs, which send "
    "none, and no setting changes that"
)
_UNKNOWN_HOST = (
    "this port is not known by the name in this request's Host: use localhost or 127.0.0.1, or add "
    "the name to listener.allowed_hosts (SIDECAR_LISTENER__ALLOWED_HOSTS)"
)


class HostCheck:
    """Recognizes web pages by `Origin` and `Host`.

    `hosts` are the names and addresses that a `Host` may have, besides those of loopback.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = frozenset(map(canonical_host, hosts))
        # Recent values of `Host` that are allowed.
        self.allowed: set[bytes | None] = {None}

    def refuse_browsers(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise `Refusal` for a request with an `Origin`, or with a `Host` that is not ours.

        It is for requests with an `Origin`, or with a `Host` that is not in `allowed` yet.
        """
        if b"origin" in headers:
            raise Refusal(HTTPStatus.FORBIDDEN, _FROM_A_PAGE, "not_ours")
        host = headers.get(b"host", b"")
        if not self._is_ours(host.decode("latin-1").strip()):
            raise Refusal(HTTPStatus.FORBIDDEN, _UNKNOWN_HOST, "not_ours")
        if len(self.allowed) < _MAX_CACHED_HOSTS:
            self.allowed.add(host)

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        return match is not None and (
            is_loopback(match[1]) or canonical_host(match[1]) in self._hosts
        )

"""Restricts the agents' port to programs in the pod: requests from web pages are refused (D21)."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from ipaddress import ip_address

from sidecar.listener.refusals import Refusal

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]@]+))(?::\d*)?")
_MAX_CACHED_HOSTS = 256


class HostCheck:
    """Recognizes web pages by `Origin` and `Host`; `hosts` are the addresses we listen on."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        # Recent values of `Host` that are allowed.
        self.allowed: set[bytes | None] = {None}

    def refuse_browsers(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise `Refusal` for a request with an `Origin`, or with a `Host` that is not ours.

        It is for requests with an `Origin`, or with a `Host` that is not in `allowed` yet.
        """
        host = headers.get(b"host", b"")
        if b"origin" in headers or not self._is_ours(host.decode("latin-1").strip()):
            error = "this port serves programs in the pod, not web pages"
            raise Refusal(HTTPStatus.FORBIDDEN, error, "not_ours")
        if len(self.allowed) < _MAX_CACHED_HOSTS:
            self.allowed.add(host)

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = (match[1] or match[2]).lower().removesuffix(".")
        if name == "localhost" or name in self._hosts:
            return True
        try:
            return ip_address(name).is_loopback
        except ValueError:
            return False

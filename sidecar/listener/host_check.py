"""Who may call the agents' port: programs in the pod, not web pages (D21)."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from ipaddress import ip_address

from sidecar.listener.body import Refusal

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]@]+))(?::\d*)?")
_MAX_HOSTS = 256


class HostCheck:
    """Tells programs from pages by their headers; `hosts` are those that we listen on."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._known: dict[str, bool] = {}

    def refuse_pages(self, headers: Mapping[str, str]) -> None:
        """Raise `Refusal` for a request with an `Origin`, or for a name that is not ours."""
        host = headers.get("Host")
        if "Origin" in headers or (host is not None and not self._knows(host)):
            error = "this port serves programs in the pod, not web pages"
            raise Refusal(HTTPStatus.FORBIDDEN, error, "not_ours")

    def _knows(self, host: str) -> bool:
        known = self._known.get(host)
        if known is None:
            known = self._is_ours(host)
            if len(self._known) < _MAX_HOSTS:
                self._known[host] = known
        return known

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

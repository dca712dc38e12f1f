"""Lets aiohttp's client open its connections as the sinks do: with the same dialer."""

from typing import TYPE_CHECKING

import aiohttp
from aiohttp.client_proto import ResponseHandler

from sidecar.http.client import TRUST_S
from sidecar.network.dialer import Dialer

if TYPE_CHECKING:
    import asyncio

    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.tracing import Trace


class Connector(aiohttp.BaseConnector):
    """Connections to the host of `dialer`, whatever a request's URL says.

    The agent decides how many requests run concurrently. An idle connection is dropped after
    `keepalive_s`, and none is used for longer than `max_age_s`. Raises `Unreachable`.
    """

    def __init__(self, dialer: Dialer, *, keepalive_s: float, max_age_s: float) -> None:
        super().__init__(limit=0, keepalive_timeout=keepalive_s)
        self._dialer = dialer
        self.max_age_s = max_age_s
        self.distrusted_at = float("-inf")

    async def _create_connection(
        self,
        req: "ClientRequest",  # noqa: ARG002
        traces: "list[Trace]",  # noqa: ARG002
        timeout: aiohttp.ClientTimeout,  # noqa: ARG002, ASYNC109 (the dialer has its own)
    ) -> ResponseHandler:
        protocol = _Connection(self, self._loop)
        try:
            await self._dialer.dial(protocol)
        except BaseException:
            protocol.abort()  # it may have been cancelled at the last moment
            raise
        return protocol

    def distrust(self) -> None:
        """Reuse none of the connections that are open now: the name may mean another server."""
        now = self._loop.time()
        # Not for each failure: those of one agent must not cost the others much.
        if now - self.distrusted_at >= TRUST_S:
            self.distrusted_at = now


class _Connection(ResponseHandler):
    def __init__(self, connector: Connector, loop: "asyncio.AbstractEventLoop") -> None:
        super().__init__(loop)
        self._connector = connector
        self._opened_at = loop.time()

    @property
    def _is_usable(self) -> bool:
        connector = self._connector
        age_s = self._loop.time() - self._opened_at
        return age_s < connector.max_age_s and self._opened_at > connector.distrusted_at

    @property
    def should_close(self) -> bool:
        return super().should_close or not self._is_usable

    def is_connected(self) -> bool:
        # Asked only before it is used again.
        return super().is_connected() and self._is_usable

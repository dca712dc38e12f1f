"""The agents' port as specified in docs/api.md: connections, routes, and the order of shutdown.

In: connections from agents in this pod. Out: the valid spans of each request, accepted together or
not at all, and a response in the format of the request's route. connection.py reads plain requests.
aiohttp reads all others (aiohttp_server.py) and is loaded on the first of them: most sidecars
never need it, and it is a fifth of their memory (DECISIONS.md 34).
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sidecar.credentials import Credentials
from sidecar.listener.connection import AgentConnection, ServerState
from sidecar.listener.head_cache import HeadCache
from sidecar.listener.host_check import HostCheck
from sidecar.listener.ingest import Ingest
from sidecar.listener.refusals import Limits, Refusal
from sidecar.listener.routes import Request, Route
from sidecar.listener.routes.agentex import AgentexRoute
from sidecar.listener.routes.ingest import IngestRoute
from sidecar.listener.routes.ready import ReadyRoute
from sidecar.listener.routes.sgp import SgpRoute
from sidecar.queue.admission import Admission
from sidecar.telemetry.metrics import IntakeMetrics

if TYPE_CHECKING:
    from sidecar.listener.aiohttp_server import AiohttpServer
    from sidecar.listener.pass_through import PassThrough

# Well above the default `listener.body_timeout_s`; aiohttp alone would wait for an hour.
IDLE_S = 300.0


class Listener:
    """Accepts connections of agents. Create it inside a running loop."""

    def __init__(
        self,
        admission: Admission,
        limits: Limits,
        metrics: IntakeMetrics,
        credentials: Sequence[Credentials],
        *,
        hosts: Sequence[str],
        agentex_bit: int,
        sgp_bit: int,
        pass_through: "PassThrough | None",
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._ingest = Ingest(admission, metrics, credentials)
        self._host_check = HostCheck(hosts)
        self._routes: dict[str, Route] = {
            "/v1/spans": IngestRoute(admission.open_spans.started),
            "/v5/spans/batch": SgpRoute(sgp_bit),
            "/spans": AgentexRoute(agentex_bit),
            "/readyz": ReadyRoute(),
        }
        self._pass_through = pass_through
        # Receives the exception of a bug in the listener: the app awaits it and stops (D13).
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.idle_s = IDLE_S
        self._aiohttp_server: AiohttpServer | None = None
        self._loading: asyncio.Task[None] | None = None
        self._state = ServerState(
            HeadCache(self._route_of),
            self._ingest,
            metrics,
            limits,
            load_aiohttp=self.load_aiohttp,
            on_bug=self._on_bug,
        )

    @property
    def stopping(self) -> bool:
        """Whether new events are refused with 503."""
        return self._ingest.stopping

    def stop(self) -> None:
        """Refuse new events with 503 from now on."""
        self._ingest.stopping = True

    def connect(self) -> AgentConnection:
        """Return the protocol for a new connection."""
        return AgentConnection(self._state)

    async def load_aiohttp(self) -> None:
        """Load aiohttp in a thread, so that plain requests are served in the meantime."""
        if self._loading is None:
            self._loading = asyncio.create_task(self._load_aiohttp())
        await asyncio.shield(self._loading)

    async def _load_aiohttp(self) -> None:
        server_class = await asyncio.to_thread(_import_aiohttp_server)
        self._aiohttp_server = server_class(
            self._ingest,
            self._routes,
            self._host_check,
            self._limits,
            self._metrics,
            self._pass_through,
            self._on_bug,
        )
        self._state.aiohttp_protocol = self._aiohttp_server.connect

    def sweep(self, now: float) -> None:
        """Close connections on which no request has begun for `idle_s`; call it periodically."""
        if self._aiohttp_server is not None:
            self._aiohttp_server.sweep(now, self.idle_s)
        for connection in list(self._state.connections):
            if connection.pending is None and now - connection.request_at > self.idle_s:
                connection.close()

    async def close(self, timeout_s: float) -> None:
        """Close every connection; pending responses have `timeout_s` to finish."""
        connections = self._state.connections
        for connection in list(connections):
            if connection.pending is None:
                connection.close()
        if self._aiohttp_server is not None:
            self._aiohttp_server.close_idle()
        pending = [each.pending for each in connections if each.pending is not None]
        if pending:
            _, late = await asyncio.wait(pending, timeout=timeout_s)
            for task in late:
                task.cancel()
        for connection in list(connections):
            connection.close()
        if self._aiohttp_server is not None:
            await self._aiohttp_server.close(timeout_s)

    def _on_bug(self, bug: Exception) -> None:
        if not self.failed.done():
            self.failed.set_exception(bug)

    def _route_of(self, request: Request) -> Route | None:
        """The route of a plain request; None if it has to be refused for its head alone."""
        route = self._routes[request.path]
        try:
            self._host_check.refuse_browsers(request.headers)
            route.check(request)
        except Refusal:
            return None
        return route


def _import_aiohttp_server() -> "type[AiohttpServer]":
    from sidecar.listener.aiohttp_server import AiohttpServer  # noqa: PLC0415 (9 MiB, 0.2 s)

    return AiohttpServer

"""The agents' port: docs/api.md to the letter.

In: connections of agents in this pod. Out: spans handed to the reception, all of a request or none,
and an answer that says what was taken, in the words of the route it came by. Plain requests are
read in connection.py, all others by aiohttp in other_requests.py, which is loaded when the first of
them comes: most sidecars never need it, and it is a fifth of their memory.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sidecar.credentials import Credentials
from sidecar.listener.body import Limits, Refusal
from sidecar.listener.connection import AgentConnection, ServerState
from sidecar.listener.head_cache import HeadCache
from sidecar.listener.host_check import HostCheck
from sidecar.listener.ingest import Ingest
from sidecar.listener.routes import Request, Route
from sidecar.listener.routes.agentex import AgentexRoute
from sidecar.listener.routes.ingest import IngestRoute
from sidecar.listener.routes.ready import ReadyRoute
from sidecar.listener.routes.sgp import SgpRoute
from sidecar.queue.admission import Admission
from sidecar.telemetry.metrics import IntakeMetrics

if TYPE_CHECKING:
    from sidecar.listener.aiohttp_server import OtherRequests
    from sidecar.listener.pass_through import PassThrough

# Longer than any body may take, and than aiohttp keeps a connection between two requests.
IDLE_S = 300.0


class Listener:
    """Takes connections on the agents' side. Make it inside a running loop."""

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
        # Holds the exception of a bug in here: the app waits for it and ends the process (D13).
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.idle_s = IDLE_S
        self._others: OtherRequests | None = None
        self._loading: asyncio.Task[None] | None = None
        self._state = ServerState(
            HeadCache(self._route_of),
            self._ingest,
            metrics,
            limits,
            load=self.load_others,
            bug=self._bug,
        )

    @property
    def stopping(self) -> bool:
        """Whether new events are answered 503."""
        return self._ingest.stopping

    def stop(self) -> None:
        """Answer 503 to new events from now on."""
        self._ingest.stopping = True

    def connect(self) -> AgentConnection:
        """The protocol of a new connection."""
        return AgentConnection(self._state)

    async def load_others(self) -> None:
        """Be ready for requests that are not plain.

        In a thread: agents go on meanwhile.
        """
        if self._loading is None:
            self._loading = asyncio.create_task(self._load_others())
        await asyncio.shield(self._loading)

    async def _load_others(self) -> None:
        make = await asyncio.to_thread(_other_requests)
        self._others = make(
            self._ingest,
            self._routes,
            self._host_check,
            self._limits,
            self._metrics,
            self._pass_through,
            self._bug,
        )
        self._state.others = self._others.connect

    def sweep(self, now: float) -> None:
        """Close connections on which no request began for `idle_s`; called now and then."""
        if self._others is not None:
            self._others.sweep(now, self.idle_s)
        for connection in list(self._state.connections):
            if connection.answering is None and now - connection.begun > self.idle_s:
                connection.close()

    async def close(self, timeout_s: float) -> None:
        """Close every connection; what is being answered has `timeout_s` for it."""
        connections = self._state.connections
        for connection in list(connections):
            if connection.answering is None:
                connection.close()
        if self._others is not None:
            self._others.close_idle()
        answering = [c.answering for c in connections if c.answering is not None]
        if answering:
            _, late = await asyncio.wait(answering, timeout=timeout_s)
            for task in late:
                task.cancel()
        for connection in list(connections):
            connection.close()
        if self._others is not None:
            await self._others.close(timeout_s)

    def _bug(self, bug: Exception) -> None:
        if not self.failed.done():
            self.failed.set_exception(bug)

    def _route_of(self, request: Request) -> Route | None:
        """The route of a plain request, None where it would be refused by its head alone."""
        route = self._routes[request.path]
        try:
            self._host_check.refuse_pages(request.headers)
            route.check(request)
        except Refusal:
            return None
        return route


def _other_requests() -> "type[OtherRequests]":
    from sidecar.listener.aiohttp_server import OtherRequests  # noqa: PLC0415 (9 MiB, and 0.2 s)

    return OtherRequests

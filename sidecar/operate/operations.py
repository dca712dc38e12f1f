"""What operators see of one process, put together: metrics, `/status`, the admin port."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.config import Config
from sidecar.credentials import Accounts
from sidecar.drain.lane import Lane
from sidecar.http.server import HttpServer
from sidecar.operate.admin import admin_server
from sidecar.operate.explain import Explainer
from sidecar.operate.prometheus import SidecarCollector, new_registry
from sidecar.operate.status import Status
from sidecar.process.descriptors import Shares
from sidecar.process.log_writer import LogWriter
from sidecar.queue.admission import Admission
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.spool.spool import Spool
from sidecar.telemetry.metrics import IntakeMetrics
from sidecar.telemetry.recent import Recent


@dataclass(eq=False)
class Operations:
    """Watches the parts of the process. Create it inside a running loop, whose time is `clock`.

    `agents` is the server of the agents' port, `ready` tells whether it accepts events. `stalls`
    counts calls that took far too long, except the log's.
    """

    config: Config
    intake: IntakeMetrics
    lanes: Sequence[Lane]
    admission: Admission
    accounts: Accounts
    budget: MemoryBudget
    spool: Spool
    dead_letters: DeadLetters
    recent: Recent
    agents: HttpServer
    shares: Shares
    memory_limit: int | None
    last_shutdown_lost: Callable[[], int]
    log_writer: LogWriter | None
    stalls: Callable[[], Mapping[str, int]]
    ready: Callable[[], bool]
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        collector = SidecarCollector(
            self.intake,
            self.lanes,
            self.admission,
            self.budget,
            self.clock,
            self.memory_limit,
            self.dead_letters,
            self.spool,
            self.last_shutdown_lost,
            lines_dropped=self._lines_dropped,
            stalls=self._stalls,
            connections=self._connections,
            descriptors_limit=self.shares.limit,
        )
        self._lag = collector.lag
        self.registry = new_registry(collector)
        self.status = Status(
            self.config,
            self.admission,
            self.intake,
            self.lanes,
            self.accounts,
            self.budget,
            self.spool,
            memory_limit=self.memory_limit,
            ready=self.ready,
            lines_dropped=self._lines_dropped,
            now=self.clock(),
        )
        self.admin = admin_server(
            self.registry,
            self.report,
            self.status.history,
            about=Explainer(
                self.recent, self.admission, self.lanes, self.accounts, self.clock
            ).about,
            ready=self.ready,
            crowded=lambda: self.intake.crowded("admin", self.clock()),
            max_connections=self.shares.admin,
        )

    def tick(self, now: float, lag_s: float) -> None:
        """Read all counters; call once a second. `lag_s`: how late an event-loop timer fired."""
        self._lag.observe(lag_s)
        self.status.tick(now, lag_s)

    def report(self) -> dict[str, Any]:
        """What `/status` shows."""
        return self.status.report(self.clock())

    def _lines_dropped(self) -> int:
        return self.log_writer.dropped if self.log_writer is not None else 0

    def _stalls(self) -> dict[str, int]:
        log = self.log_writer.stalls if self.log_writer is not None else 0
        return {"log": log, **self.stalls()}

    def _connections(self) -> dict[str, int]:
        servers = {"listener": self.agents, "admin": self.admin}
        return {port: len(server.connections) for port, server in servers.items()}

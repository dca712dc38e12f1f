"""What operators see of one process, put together: metrics, `/status`, the admin port."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.config import Config
from sidecar.credentials import Accounts
from sidecar.drain.lane import Lane
from sidecar.http.server import HttpServer
from sidecar.operate.admin import admin_server
from sidecar.operate.debug_report import DebugReport
from sidecar.operate.explainer import Explainer
from sidecar.operate.prometheus import SidecarCollector, new_registry
from sidecar.operate.status import Status
from sidecar.process.addresses import bracketed
from sidecar.process.descriptors import Shares
from sidecar.process.log_writer import LogWriter
from sidecar.queue.admission import Admission
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.sinks.dead_letters import LetterWriter
from sidecar.sinks.kept_letters import KeptLetters
from sidecar.spool.spool import Spool
from sidecar.telemetry.decisions import Decisions
from sidecar.telemetry.metrics import IntakeMetrics

# How a process in the pod reaches a port that is open on all addresses.
_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


@dataclass(eq=False)
class Operations:
    """Watches the parts of the process. Create it inside a running loop, whose time is `clock`.

    `agents` is the server of the agents' port, `ready` tells whether it accepts events,
    `stopping` whether the process was told to stop, `recovered` whether all that is in the spool
    is known. `ports` are the open ones, by name. `stalls`
    counts calls that took far too long, except the log's.
    """

    config: Config
    intake: IntakeMetrics
    lanes: Sequence[Lane]
    admission: Admission
    accounts: Accounts
    budget: MemoryBudget
    spool: Spool
    letters: LetterWriter
    decisions: Decisions
    agents: HttpServer
    shares: Shares
    memory_limit: int | None
    last_shutdown_lost: Callable[[], int]
    log_writer: LogWriter | None
    recovered: Callable[[], bool]
    stalls: Callable[[], Mapping[str, int]]
    ready: Callable[[], bool]
    stopping: Callable[[], bool]
    ports: Mapping[str, int]
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self.kept_letters = KeptLetters(self.letters)
        self.status = Status(
            self.config,
            self.admission,
            self.intake,
            self.lanes,
            self.accounts,
            self.budget,
            self.spool,
            self.kept_letters,
            memory_limit=self.memory_limit,
            ready=self.ready,
            phase=self._phase,
            url=self._url,
            last_shutdown_lost=self.last_shutdown_lost,
            lines_dropped=self._lines_dropped,
            connections=self._connections,
            now=self.clock(),
        )
        self.registry = new_registry(
            SidecarCollector(
                self.intake,
                self.lanes,
                self.admission,
                self.budget,
                self.clock,
                self.memory_limit,
                self.letters.letters,
                self.spool,
                self.last_shutdown_lost,
                lines_dropped=self._lines_dropped,
                stalls=self._stalls,
                status=self.status,
            )
        )
        self.explainer = Explainer(
            self.decisions,
            self.admission,
            self.lanes,
            self.accounts,
            self.spool,
            dead_letters=self.config.dead_letters.path,
            recovered=self.recovered,
            clock=self.clock,
        )
        self.admin = admin_server(
            self.registry,
            self.report,
            self.status.history,
            about=self.explainer.about,
            debug=DebugReport(self.explainer, self.log_writer).report,
            ready=self.ready,
            crowded=lambda: self.intake.crowded("admin", self.clock()),
            max_connections=self.shares.admin,
        )

    def tick(self, now: float, lag_s: float) -> None:
        """Read all counters; call once a second. `lag_s`: how late an event-loop timer fired."""
        self.status.tick(now, lag_s)

    def report(self) -> dict[str, Any]:
        """What `/status` shows."""
        return self.status.report(self.clock())

    def _phase(self) -> str:
        if self.stopping():
            return "stopping"
        return "running" if self.ready() else "starting"

    def _url(self) -> str | None:
        if (port := self.ports.get("listener")) is None:
            return None
        host = self.config.listener.hosts[0]
        return f"http://{bracketed(_LOOPBACK.get(host, host))}:{port}"

    def _lines_dropped(self) -> int:
        return self.log_writer.dropped if self.log_writer is not None else 0

    def _stalls(self) -> dict[str, int]:
        log = self.log_writer.stalls if self.log_writer is not None else 0
        return {"log": log, **self.stalls()}

    def _connections(self) -> dict[str, int]:
        servers = {"listener": self.agents, "admin": self.admin}
        return {port: len(server.connections) for port, server in servers.items()}

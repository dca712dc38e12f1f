"""Builds the parts, and starts and stops them in order.

`App.run` is the lifecycle of the process. It stops in this order: `_work` (the four numbered
steps), then the ports (`_serving`), then `_close`.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog

from sidecar import __version__
from sidecar.config import Config, ConfigError
from sidecar.credentials import Accounts
from sidecar.lanes import KEEP_S, NO_UPSTREAM, build_lanes, enabled_lanes
from sidecar.listener.listener import Listener
from sidecar.listener.refusals import Limits
from sidecar.operate import admin
from sidecar.operate.explain import Explainer
from sidecar.operate.prometheus import SidecarCollector, new_registry
from sidecar.operate.status import TICK_S, Status
from sidecar.process.addresses import ListenError, bracketed, listen
from sidecar.process.descriptors import max_agent_connections
from sidecar.process.exit_report import ExitReport, report_directory
from sidecar.process.memory import Trimmer, automatic_max_bytes, container_limit
from sidecar.queue.admission import Admission
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.recovery import SpoolRecovery, new_spool
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.sizes import AUTO
from sidecar.spool.rows import SpoolInUse
from sidecar.telemetry.accounting import IntakeAccounting
from sidecar.telemetry.metrics import IntakeMetrics
from sidecar.telemetry.recent import Recent

if TYPE_CHECKING:
    from sidecar.listener.pass_through import PassThrough

HOUSEKEEPING_S = TICK_S
# How long to wait for pending responses once the ports are closed.
CLOSE_S = 1.0

log = structlog.get_logger()


class App:
    """One sidecar. Create it inside a running loop; `stop` can be called at any time."""

    def __init__(self, config: Config, environ: Mapping[str, str]) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        limit = container_limit()
        max_bytes = config.queue.max_bytes
        self.budget = MemoryBudget(
            automatic_max_bytes(limit) if max_bytes == AUTO else int(max_bytes)
        )
        self.accounts = Accounts(config.sgp.account_id, by_request=config.sgp.relay)
        dead_letters = DeadLetters(
            config.dead_letters.path, config.dead_letters.max_bytes, self.accounts.id_of
        )
        self.spool = new_spool(config.spool, int(enabled_lanes(config)), config.sgp.account_id)
        self.accounts.registered = self.spool.name_account
        self.recent = Recent()
        self.lanes = build_lanes(
            config, environ, self.budget, dead_letters, self.spool, self.recent, self.accounts
        )
        if not self.lanes:
            raise ConfigError(NO_UPSTREAM)
        self.accounting = IntakeAccounting()
        intake_metrics = self._intake_metrics = IntakeMetrics(self.accounting, self.recent)
        intake_metrics.watch(self.accounts)
        self.admission = Admission(
            self.lanes,
            self.budget,
            self.accounting,
            self.spool,
            hold_s=config.queue.start_hold_s,
            ttl_s=config.queue.open_span_ttl_s,
        )
        self.pass_through = (
            _pass_through(config.sgp.base_url, intake_metrics.passed)
            if config.listener.pass_through
            else None
        )
        self._recovery = SpoolRecovery(
            self.spool,
            self.lanes,
            self.admission,
            self.accounting,
            self.accounts,
            int(enabled_lanes(config)),
        )
        self.listener = Listener(
            self.admission,
            Limits(self.budget, config.listener.max_body, config.listener.body_timeout_s),
            intake_metrics,
            self.lanes,
            self.accounts,
            hosts=config.listener.hosts,
            pass_through=self.pass_through,
            max_connections=max_agent_connections(
                admin.MAX_CONNECTIONS + config.agentex.max_concurrency + config.sgp.max_concurrency
            ),
        )
        self._exit_report = ExitReport(
            report_directory(config.spool.path, config.dead_letters.path)
        )
        self._collector = SidecarCollector(
            intake_metrics,
            self.lanes,
            self.admission,
            self.budget,
            clock=self._loop.time,
            memory_limit=limit,
            dead_letters=dead_letters,
            spool=self.spool,
            last_shutdown_lost=self._exit_report.lost,
        )
        self.registry = new_registry(self._collector)
        self._status = Status(
            config,
            self.admission,
            intake_metrics,
            self.lanes,
            self.accounts,
            self.budget,
            self.spool,
            memory_limit=limit,
            ready=lambda: not self.listener.stopping,
            now=self._loop.time(),
        )
        self.ports: dict[str, int] = {}
        # Receives any exception caused by a bug in the listener or a callback.
        self._failed = self.listener.failed
        self._stop = asyncio.Event()
        self._deadline: asyncio.Timeout | None = None

    def stop(self) -> None:
        """Stop in order; a second call ends the grace period immediately (D10)."""
        deadline = self._deadline
        if self._stop.is_set() and deadline is not None and not deadline.expired():
            deadline.reschedule(self._loop.time())
            self._deadline = None
        self._stop.set()

    async def run(self, started: asyncio.Event | None = None) -> bool:
        """Serve until `stop` is called; return True if nothing was lost.

        A bug in any part surfaces as the exception it caused (D13). `started` is set once both
        ports are open and the drains are running.
        """
        tasks = asyncio.TaskGroup()
        try:
            await self._recovery.start()
        except SpoolInUse as error:
            raise ConfigError(str(error)) from None
        async with self._serving():
            try:
                async with asyncio.timeout(None) as self._deadline, tasks:
                    await self._work(tasks, started)
            except TimeoutError:
                log.warning("grace_period_over", depth=self._depth())
            self._deadline = None
        return await self._close()

    async def _work(self, tasks: asyncio.TaskGroup, started: asyncio.Event | None) -> None:
        shutdown = self._config.shutdown
        self._loop.set_exception_handler(self._on_loop_error)
        drains = [tasks.create_task(lane.run()) for lane in self.lanes]
        running = (
            self._housekeeping(),
            self._raise_failure(),
            self._recovery.run(),
            self.spool.run(),
        )
        background = [tasks.create_task(each) for each in running]
        if started is not None:
            started.set()
        await self._stop.wait()
        if self._deadline is not None:
            self._deadline.reschedule(self._loop.time() + shutdown.grace_s)
        log.info("stopping", grace_s=shutdown.grace_s, depth=self._depth())
        await self._wait_until_quiet(shutdown.quiet_s)
        self.listener.stop()  # 1. refuse new events with 503
        self.admission.release_held()  # 2. no END will arrive for a held START
        for lane in self.lanes:
            lane.close()  # 3. no more writes will be queued
        await asyncio.wait(drains)  # 4. forward what is queued
        for task in background:
            task.cancel()

    async def _raise_failure(self) -> None:
        await self._failed

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """End the process on an exception in a callback, which is a bug (D13)."""
        error = context.get("exception")
        if "handle" in context and isinstance(error, Exception) and not self._failed.done():
            self._failed.set_exception(error)
        else:
            loop.default_exception_handler(context)

    async def _wait_until_quiet(self, quiet_s: float) -> None:
        """Return after `quiet_s` without an event: agents send their last ENDs after SIGTERM."""
        stopped_at = self._loop.time()
        while True:
            last = max(self.admission.last_taken_at, stopped_at)
            left = last + quiet_s - self._loop.time()
            if left <= 0:
                return
            await asyncio.sleep(left)

    async def _close(self) -> bool:
        if self.pass_through is not None:
            await self.pass_through.close()
        await self.spool.close()
        keep_until = self._loop.time() + KEEP_S
        for lane in self.lanes:
            lane.abandon(self._loop.time, keep_until)
        for lane in self.lanes:
            await lane.close_connections()
        totals = {lane.name: lane.totals() for lane in self.lanes}
        lost = sum(total["lost"] for total in totals.values())
        self._exit_report.write(lost)
        log.info("stopped", lost=lost, events=self._status.events(), writes=totals)
        return lost == 0

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        """Open both ports, the agents' port last: events may arrive as soon as it is open."""
        admin_server = admin.admin_server(
            self.registry,
            self.status,
            self._status.history,
            about=Explainer(
                self.recent, self.admission, self.lanes, self.accounts, self._loop.time
            ).about,
            ready=lambda: not self.listener.stopping,
            crowded=lambda: self._intake_metrics.crowded("admin", self._loop.time()),
        )
        config = self._config
        hosts = config.listener.hosts
        servers: list[asyncio.Server] = []
        try:
            for name, connect, addresses, port in (
                ("admin", admin_server.connect, [config.admin.host or None], config.admin.port),
                ("listener", self.listener.server.connect, hosts, config.listener.port),
            ):
                try:
                    added, self.ports[name] = await listen(connect, addresses, port)
                except ListenError as error:
                    raise ConfigError(str(error)) from None
                servers += added
            log.info(
                "started",
                version=__version__,
                listener=[f"http://{bracketed(h)}:{self.ports['listener']}" for h in hosts],
                admin_port=self.ports["admin"],
                sinks=[lane.name for lane in self.lanes],
                queue_max_bytes=self.budget.limit,
            )
            yield
        finally:
            for server in servers:
                server.close()
            await asyncio.sleep(0)  # respond to requests that have already arrived
            await self.listener.server.close(CLOSE_S)
            await admin_server.close(CLOSE_S)

    async def _housekeeping(self) -> None:
        trimmer = Trimmer()
        while True:
            due = self._loop.time() + HOUSEKEEPING_S
            await asyncio.sleep(HOUSEKEEPING_S)
            now = self._loop.time()
            self._collector.lag.observe(max(0.0, now - due))
            self._status.tick(now, max(0.0, now - due))
            trimmer.observe(self.budget.used)
            for lane in self.lanes:
                lane.refresh()
            self.spool.tick()

    def _depth(self) -> int:
        return sum(lane.depth for lane in self.lanes)

    def status(self) -> dict[str, Any]:
        """What `/status` shows."""
        return self._status.report(self._loop.time())


def _pass_through(base_url: str, outcomes: Counter[str]) -> "PassThrough":
    from sidecar.listener.pass_through import PassThrough  # noqa: PLC0415 (loads aiohttp: 9 MiB)

    return PassThrough(base_url, outcomes)

"""Builds the parts, and starts and stops them in order.

`App.run` is the lifecycle of the process. It stops in this order: `_work` (the four numbered
steps), then the ports (`_serving`), then the rest (shutdown.py).
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from sidecar import __version__
from sidecar.config import Config, ConfigError
from sidecar.config_values import AUTO
from sidecar.credentials import Accounts
from sidecar.drain.lane import Lane
from sidecar.lanes import build_lanes, enabled_lanes, new_dialer, passes_through, share_descriptors
from sidecar.listener.flush import Flush
from sidecar.listener.listener import Listener
from sidecar.listener.refusals import Limits
from sidecar.operate import reach
from sidecar.operate.operations import Operations
from sidecar.operate.ports import ports_of, why_not
from sidecar.operate.problems import missing_settings
from sidecar.operate.status import TICK_S
from sidecar.process.addresses import ListenError, bracketed, listen
from sidecar.process.exit_report import ExitReport, report_directory
from sidecar.process.log_writer import LogWriter
from sidecar.process.memory import Trimmer, automatic_max_bytes, container_limit
from sidecar.queue.admission import Admission
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.recovery import SpoolRecovery, new_spool
from sidecar.shutdown import AFTER_RESPONSES_S, CLOSE_S, Shutdown, until_quiet
from sidecar.sinks.dead_letters import DeadLetters, LetterWriter
from sidecar.spool.rows import SpoolInUse
from sidecar.telemetry.accounting import IntakeAccounting
from sidecar.telemetry.decisions import Decisions
from sidecar.telemetry.metrics import IntakeMetrics

if TYPE_CHECKING:
    from sidecar.listener.pass_through import PassThrough

FILES_S = 1.0  # how often files with keys and certificates are looked at

log = structlog.get_logger()


class App:
    """One sidecar. Create it inside a running loop; `stop` can be called at any time.

    `log_writer` is that of `logs.start`; `mistakes` are those that turned an upstream off.
    """

    def __init__(
        self,
        config: Config,
        environ: Mapping[str, str],
        log_writer: LogWriter | None = None,
        mistakes: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.ports: dict[str, int] = {}
        limit = container_limit()
        size = config.queue.max_bytes
        self.budget = MemoryBudget(automatic_max_bytes(limit) if size == AUTO else int(size))
        self.accounts = Accounts(config.sgp.account_id, by_request=config.sgp.relay)
        letters = LetterWriter(DeadLetters.configured(config, self.accounts.id_of))
        lane_bits = int(enabled_lanes(config))
        self.spool = new_spool(config.spool, lane_bits, config.sgp.account_id)
        self.accounts.registered = self.spool.name_account
        self.decisions = Decisions(config.admin.decisions, self._loop.time())
        shares, within = share_descriptors(config)
        self.lanes = build_lanes(
            within, environ, self.budget, letters, self.spool, self.decisions, self.accounts
        )
        self.accounting = IntakeAccounting()
        intake_metrics = IntakeMetrics(self.accounting)
        intake_metrics.watch(self.accounts)
        self.admission = Admission(
            self.lanes,
            self.budget,
            self.accounting,
            self.spool,
            self.decisions,
            hold_s=config.queue.start_hold_s,
            ttl_s=config.queue.open_span_ttl_s,
        )
        self.pass_through = _pass_through(config, environ, self.lanes, intake_metrics.passed)
        self._recovery = SpoolRecovery(
            self.spool, self.lanes, self.admission, self.accounting, self.accounts, lane_bits
        )
        section = config.listener
        self.listener = Listener(
            self.admission,
            Limits(self.budget, section.max_body, section.body_timeout_s, shares.agents),
            intake_metrics,
            self.lanes,
            self.accounts,
            partial(Flush, self.admission, self.lanes, self.spool, self._recovery, shares.agents),
            hosts=section.hosts + section.allowed_hosts,
            pass_through=self.pass_through,
            missing=missing_settings(config, mistakes),
        )
        report = ExitReport(report_directory(config.spool.path, config.dead_letters.path))
        self.shutdown = Shutdown(
            self.spool, self.lanes, letters, report, self.admission.release_held, self._events
        )
        self.operations = Operations(
            config,
            intake_metrics,
            self.lanes,
            self.admission,
            self.accounts,
            self.budget,
            self.spool,
            letters,
            self.decisions,
            self.listener.server,
            shares,
            memory_limit=limit,
            last_shutdown_lost=lambda: report.lost,
            log_writer=log_writer,
            recovered=lambda: self._recovery.is_complete,
            stalls=self.shutdown.stalls,
            ready=self._is_ready,
            stopping=self._stop.is_set,
            ports=self.ports,
            clock=self._loop.time,
        )
        # Receives any exception caused by a bug in the listener or a callback.
        self._failed = self.listener.failed
        self._started = False

    def stop(self, age_s: float = 0.0) -> None:
        """Stop in order; a second call ends the grace period immediately (D10).

        `age_s`: how long ago the signal came.
        """
        grace_s = 0.0 if self._stop.is_set() else self._config.shutdown.grace_s
        self.shutdown.limit_to(max(0.0, grace_s - age_s))
        self._stop.set()

    def _is_ready(self) -> bool:
        return self._started and not self.listener.stopping

    async def run(self, started: asyncio.Event | None = None) -> bool:
        """Serve until `stop` is called; return True if nothing was lost.

        A bug in any part surfaces as the exception it caused (D13). `started` is set once both
        ports are open and the drains are running.
        """
        tasks = asyncio.TaskGroup()
        await self._start()
        async with self._serving():
            try:
                async with self.shutdown.grace(), tasks:
                    await self._work(tasks, started)
            except TimeoutError:
                log.warning("grace_period_over", depth=self._depth())
        return await self.shutdown.finish()

    async def _start(self) -> None:
        """Read what is on disk, as far as the disk answers in time."""
        try:
            async with self.shutdown.grace():
                await self._recovery.start()
                await self._refresh_files()
                await self.shutdown.read_report()
        except SpoolInUse as error:
            raise ConfigError(str(error)) from None
        except TimeoutError:  # it is to stop already
            log.warning("grace_period_over", depth=self._depth())

    async def _refresh_files(self) -> None:
        """Read files with keys and certificates again if they have changed."""
        await asyncio.gather(*(lane.refresh() for lane in self.lanes))
        if self.pass_through is not None:
            await self.pass_through.dialer.refresh()

    async def _work(self, tasks: asyncio.TaskGroup, started: asyncio.Event | None) -> None:
        shutdown = self._config.shutdown
        self._loop.set_exception_handler(self._on_loop_error)
        drains = [tasks.create_task(lane.run()) for lane in self.lanes]
        running = (
            self._housekeeping(),
            self._watch_files(),
            self._raise_failure(),
            self._recovery.run(),
            self.spool.run(),
            self.operations.kept_letters.run(),
            reach.try_all(self.lanes),
        )
        background = [tasks.create_task(each) for each in running]
        self._started = True
        if started is not None:
            started.set()
        await self._stop.wait()
        log.info("stopping", grace_s=shutdown.grace_s, depth=self._depth())
        await until_quiet(
            lambda: self.admission.last_taken_at, shutdown.quiet_s, shutdown.grace_s / 2
        )
        self.listener.stop()  # 1. refuse new events with 503
        self.admission.release_held()  # 2. no END will arrive for a held START
        for lane in self.lanes:
            lane.close()  # 3. no more writes will be queued
        if drains:
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

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        """Open both ports."""
        hosts, admin = self._config.listener.hosts, self.operations.admin
        connect = {"admin": admin.connect, "listener": self.listener.server.connect}
        servers: list[asyncio.Server] = []
        try:
            for name, addresses, port in ports_of(self._config):
                try:
                    added, self.ports[name] = await listen(connect[name], addresses, port)
                except ListenError as error:
                    raise ConfigError(why_not(name, error, {})) from None
                servers += added
            log.info(
                "started",
                version=__version__,
                listener=[f"http://{bracketed(h)}:{self.ports['listener']}" for h in hosts],
                admin_port=self.ports["admin"],
                sinks=[lane.name for lane in self.lanes],
                queue_max_bytes=self.budget.limit,
            )
            if (shares := self.operations.shares).scarce:
                log.warning("descriptors_scarce", **shares.numbers())
            yield
        finally:
            for server in servers:
                server.close()
            await asyncio.sleep(0)  # respond to requests that have already arrived
            for port_server in (self.listener, admin):
                await port_server.close(self.shutdown.seconds(CLOSE_S, AFTER_RESPONSES_S))
            if self.pass_through is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.shutdown.seconds(CLOSE_S, AFTER_RESPONSES_S)):
                        await self.pass_through.close()

    async def _housekeeping(self) -> None:
        trimmer = Trimmer()
        while True:
            due = self._loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            now = self._loop.time()
            self.operations.tick(now, max(0.0, now - due))
            trimmer.observe(self.budget.used)
            self.spool.tick()

    async def _watch_files(self) -> None:
        while True:
            await asyncio.sleep(FILES_S)
            await self._refresh_files()

    def _events(self) -> dict[str, int]:
        return self.operations.status.events()

    def _depth(self) -> int:
        return sum(lane.depth for lane in self.lanes)

    def status(self) -> dict[str, Any]:
        """What `/status` shows."""
        return self.operations.report()


def _pass_through(
    config: Config, environ: Mapping[str, str], lanes: Sequence[Lane], outcomes: Counter[str]
) -> "PassThrough | None":
    if not passes_through(config):
        return None
    from sidecar.listener.pass_through import PassThrough  # noqa: PLC0415 (loads aiohttp: 9 MiB)

    mine = next((lane.dialer for lane in lanes if lane.name == "sgp"), None)
    dialer = mine or new_dialer("sgp", config, environ)
    max_age_s, hides = config.network.max_connection_age_s, bool(config.sgp.hide)
    return PassThrough(dialer, outcomes, max_age_s=max_age_s, hides=hides)

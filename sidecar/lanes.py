"""Builds the lanes: each is the queues, drains, sinks, credentials and metrics of one upstream."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from sidecar.config import AgentexConfig, Config, ConfigError, SgpConfig
from sidecar.credentials import (
    ACCOUNT_HEADER,
    KEY_HEADER,
    MAX_ACCOUNTS,
    Accounts,
    Credentials,
    Secret,
)
from sidecar.drain.branch import Branch
from sidecar.drain.failures import RetryPolicy
from sidecar.drain.lane import Lane
from sidecar.drain.throttle import Backoff, Throttle
from sidecar.drain.workers import Drain
from sidecar.http.client import HttpClient
from sidecar.network.certificates import CertificateFiles, Certificates
from sidecar.network.dialer import Dialer
from sidecar.network.proxies import Proxy, find_proxy
from sidecar.process.addresses import parse_base_url
from sidecar.process.descriptors import Requests, Shares, share
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.span_queue import SpanQueue
from sidecar.sinks import Sink
from sidecar.sinks.agentex import AgentexSink
from sidecar.sinks.dead_letters import LetterWriter
from sidecar.sinks.http import UpstreamClient
from sidecar.sinks.key_file import KeyFile
from sidecar.sinks.resource import resource_attributes
from sidecar.sinks.sgp import SgpSink, enrichment
from sidecar.spans.span import Lanes
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import LaneAccounting
from sidecar.telemetry.decisions import Decisions
from sidecar.telemetry.metrics import LaneMetrics

# With a spool, the share of queue.max_bytes that one lane can hold in memory: an upstream that is
# down must leave memory for the other one's writes (DECISIONS.md 15).
LANE_SHARE = 0.25
# Set in Temporal workers, where a span's START and END can reach different pods (D20).
_TEMPORAL_VARIABLES = ("WORKFLOW_NAME", "WORKFLOW_TASK_QUEUE")


def build_lanes(
    config: Config,
    environ: Mapping[str, str],
    budget: MemoryBudget,
    letters: LetterWriter,
    spool: Spool,
    decisions: Decisions,
    accounts: Accounts,
) -> list[Lane]:
    """Build the lanes that `config` enables. `environ`: the pod's variables, for SGP's metadata."""
    builder = _Builder(config, environ, budget, letters, spool, decisions, accounts)
    return [each.build(builder) for each in UPSTREAMS if each.enabled(config)]


def share_descriptors(config: Config) -> tuple[Shares, Config]:
    """Share out the process's descriptors.

    Returns the shares, and `config` with no more concurrent requests than they allow.
    """
    accounts = {"sgp": MAX_ACCOUNTS} if config.sgp.relay else {}  # each has its own client
    sections = {each.name: getattr(config, each.name) for each in UPSTREAMS if each.enabled(config)}
    wanted = {
        name: Requests(section.max_concurrency, accounts.get(name, 1))
        for name, section in sections.items()
    }
    # A connection that is passed through has one of its own to SGP.
    shares = share(wanted, per_agent=2 if passes_through(config) else 1)
    capped = {
        name: replace(section, max_concurrency=shares.requests[name])
        for name, section in sections.items()
    }
    return shares, replace(config, **capped)


def reached(config: Config) -> list[str]:
    """The upstreams to which there are connections: of lanes, and of the pass-through."""
    passed = {"sgp"} if passes_through(config) else set()
    return [each.name for each in UPSTREAMS if each.enabled(config) or each.name in passed]


def passes_through(config: Config) -> bool:
    """Whether other requests of the SGP client are passed through."""
    return config.listener.pass_through and bool(config.sgp.base_url)


def proxy_of(name: str, config: Config, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy through which an upstream is reached; raises `ConfigError`."""
    network = config.network
    url = parse_base_url(getattr(config, name).base_url)
    try:
        return find_proxy(url, network.proxy, network.no_proxy, environ)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def certificate_files(name: str, config: Config) -> CertificateFiles:
    """The files with certificates for an upstream."""
    section = getattr(config, name)
    return CertificateFiles(section.ca_file, section.client_cert_file, section.client_key_file)


def new_dialer(name: str, config: Config, environ: Mapping[str, str]) -> Dialer:
    """What reaches an upstream, as configured; raises `ConfigError`."""
    url = parse_base_url(getattr(config, name).base_url)
    files = certificate_files(name, config)
    certificates = Certificates(name, files, secure=url.scheme == "https")
    return Dialer(url, certificates, proxy_of(name, config, environ))


def enabled_lanes(config: Config) -> Lanes:
    """The lanes that `config` enables, as the spool's rows store them."""
    return Lanes(sum(each.lane for each in UPSTREAMS if each.enabled(config)))


@dataclass(frozen=True, slots=True)
class _Builder:
    config: Config
    environ: Mapping[str, str]
    budget: MemoryBudget
    letters: LetterWriter
    spool: Spool
    decisions: Decisions
    accounts: Accounts

    def agentex(self) -> Lane:
        metrics = self._metrics("agentex")
        section = self.config.agentex
        key_file = KeyFile(section.api_key_file)
        # A key names an agent, not a tenant, so there is one branch for all accounts (D25).
        dialer = new_dialer("agentex", self.config, self.environ)
        build = partial(self._agentex, metrics, key_file, dialer)
        return self._lane(Lanes.AGENTEX, metrics, build, key_file, dialer, one=True)

    def _agentex(self, metrics: LaneMetrics, key_file: KeyFile, dialer: Dialer, _: int) -> Branch:
        section = self.config.agentex
        credentials = Credentials(
            {"x-agent-api-key": section.api_key},
            key_header="x-agent-api-key",
            key_in_file=lambda: key_file.key,
            relay=True,
            # Without authentication, Agentex needs no key but still refuses a wrong one.
            required=bool(section.api_key_file),
        )
        client = self._client(section, credentials, metrics, dialer)
        sink = AgentexSink(client, metrics.repaired_write)
        return self._branch(0, sink, client, metrics, Lanes.AGENTEX, section, 0.0)

    def sgp(self) -> Lane:
        metrics = self._metrics("sgp")
        section = self.config.sgp
        key_file = KeyFile(section.api_key_file)
        dialer = new_dialer("sgp", self.config, self.environ)
        build = partial(self._sgp, metrics, key_file, dialer)
        lane = self._lane(Lanes.SGP, metrics, build, key_file, dialer)
        self.accounts.named.append(lane.name_account)
        return lane

    def _sgp(self, metrics: LaneMetrics, key_file: KeyFile, dialer: Dialer, account: int) -> Branch:
        section, accounts = self.config.sgp, self.accounts
        # The configured key is for the configured account, if there is one.
        own = account == 0 or accounts.by_request
        credentials = Credentials(
            {
                KEY_HEADER: section.api_key if own else Secret(""),
                ACCOUNT_HEADER: Secret(accounts.id_of(account)),
            },
            key_header=KEY_HEADER,
            key_in_file=lambda: key_file.key if own else Secret(""),
            relay=section.relay and own,
            required=True,
        )
        open_writes = section.open_writes
        if open_writes == "auto":
            open_writes = not any(self.environ.get(name) for name in _TEMPORAL_VARIABLES)
        client = self._client(section, credentials, metrics, dialer)
        sink = SgpSink(
            client,
            max_batch=section.max_batch,
            max_batch_bytes=section.max_batch_bytes,
            enrichment=enrichment(self.environ, resource_attributes(self.config.pod)),
            open_writes=open_writes,
        )
        linger_s = section.linger_s
        return self._branch(account, sink, client, metrics, Lanes.SGP, section, linger_s)

    def _metrics(self, name: str) -> LaneMetrics:
        return LaneMetrics(name, LaneAccounting(), self.decisions, self.accounts.id_of)

    def _lane(
        self,
        bit: Lanes,
        metrics: LaneMetrics,
        build: Callable[[int], Branch],
        key_file: KeyFile,
        dialer: Dialer,
        *,
        one: bool = False,
    ) -> Lane:
        share = int(self.budget.limit * LANE_SHARE)
        return Lane(
            int(bit), metrics, share, build, key_file=key_file, dialer=dialer, one_branch=one
        )

    def _branch(
        self,
        account: int,
        sink: Sink,
        client: UpstreamClient,
        metrics: LaneMetrics,
        bit: Lanes,
        section: AgentexConfig | SgpConfig,
        linger_s: float,
    ) -> Branch:
        retry = self.config.retry
        backoff = Backoff(retry.initial_s, retry.max_s)
        queue = SpanQueue(
            self.budget, metrics.accounting, int(bit), spool=self.spool, account=account
        )
        throttle = Throttle(
            backoff,
            section.max_concurrency,
            random.random,
            # Latencies are comparable only if each request has one span (DECISIONS.md 23).
            watch_latency=sink.max_batch == 1,
        )
        drain = Drain(
            sink,
            queue,
            throttle,
            RetryPolicy(backoff, retry.max_age_s, retry.max_attempts, random.random),
            metrics,
            linger_s=linger_s,
            dead_letter=partial(self.letters.add, sink.name),
        )
        return Branch(account, sink, client.credentials, queue, throttle, drain)

    def _client(
        self,
        section: AgentexConfig | SgpConfig,
        credentials: Credentials,
        metrics: LaneMetrics,
        dialer: Dialer,
    ) -> UpstreamClient:
        http = HttpClient(
            dialer,
            timeout_s=section.timeout_s,
            max_requests=section.max_concurrency,
            max_age_s=self.config.network.max_connection_age_s,
        )
        return UpstreamClient(http, credentials, metrics.request_ended)


class Upstream(NamedTuple):
    """A row of the table below.

    `name` is the sink's, as metrics and configuration spell it; `title` is for people.
    """

    name: str
    title: str
    lane: Lanes
    build: Callable[[_Builder], Lane]

    def enabled(self, config: Config) -> bool:
        """Whether `config` enables it."""
        return not getattr(config, self.name).missing


# Every upstream. A new one needs a sink (sinks/), a section in config.py and config.example.toml, a
# bit in `Lanes`, a method of `_Builder` and a row here. Metrics, /status, `check` and `replay`
# follow from the row; a route of its own goes to listener/routes/.
UPSTREAMS = (
    Upstream("agentex", "Agentex", Lanes.AGENTEX, _Builder.agentex),
    Upstream("sgp", "SGP", Lanes.SGP, _Builder.sgp),
)

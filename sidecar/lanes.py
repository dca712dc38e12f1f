"""Builds the lanes: each is the queues, drains, sinks, credentials and metrics of one upstream."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from sidecar.config import Config, ConfigError, upstreams
from sidecar.credentials import KEY_HEADER, MAX_ACCOUNTS, Accounts, Credentials, Secret
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
from sidecar.sinks.configured import (
    AGENTEX_KEY,
    Given,
    agentex_credentials,
    agentex_sink,
    otlp_credentials,
    otlp_sink,
    sgp_credentials,
    sgp_sink,
)
from sidecar.sinks.credential_file import CredentialFile, header_lines, key_as
from sidecar.sinks.dead_letters import LetterWriter
from sidecar.sinks.hiding import HidingSink
from sidecar.sinks.http import UpstreamClient
from sidecar.spans.span import Lanes
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import LaneAccounting
from sidecar.telemetry.decisions import Decisions
from sidecar.telemetry.metrics import LaneMetrics

# With a spool, the share of queue.max_bytes that one lane can hold in memory: an upstream that is
# down must leave memory for the other one's writes (DECISIONS.md 15).
LANE_SHARE = 0.25


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
    return [builder.lane(each) for each in UPSTREAMS if each.enabled(config)]


def share_descriptors(config: Config) -> tuple[Shares, Config]:
    """Share out the process's descriptors.

    Returns the shares, and `config` with no more concurrent requests than they allow.
    """
    sections = {each.name: getattr(config, each.name) for each in UPSTREAMS if each.enabled(config)}
    clients = MAX_ACCOUNTS if config.sgp.relay else 1  # each account has its own
    wanted = {
        name: Requests(section.max_concurrency, clients if UPSTREAM[name].by_account else 1)
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
    url = parse_base_url(upstreams(config)[name].url)
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
    url = parse_base_url(upstreams(config)[name].url)
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

    def lane(self, upstream: "Upstream") -> Lane:
        name, section = upstream.name, upstreams(self.config)[upstream.name]
        metrics = LaneMetrics(name, LaneAccounting(), self.decisions, self.accounts.id_of)
        file = CredentialFile(section.credential_file, upstream.parse)
        dialer = new_dialer(name, self.config, self.environ)
        lane = Lane(
            int(upstream.lane),
            metrics,
            int(self.budget.limit * LANE_SHARE),
            partial(self._branch, upstream, metrics, file, dialer),
            credential_file=file,
            dialer=dialer,
            one_branch=not upstream.by_account,
        )
        if upstream.by_account:
            self.accounts.named.append(lane.name_account)
        return lane

    def _branch(
        self,
        upstream: "Upstream",
        metrics: LaneMetrics,
        file: CredentialFile,
        dialer: Dialer,
        account: int,
    ) -> Branch:
        config, accounts = self.config, self.accounts
        section = getattr(config, upstream.name)
        credentials = upstream.credentials(config, accounts, file, account)
        http = HttpClient(
            dialer,
            timeout_s=section.timeout_s,
            max_requests=section.max_concurrency,
            max_age_s=config.network.max_connection_age_s,
        )
        client = UpstreamClient(http, credentials, metrics.request_ended)
        sink = upstream.sink(Given(config, self.environ, accounts, metrics.repaired_write, client))
        if section.hidden:
            sink = HidingSink(sink, section.hidden)
        backoff = Backoff(config.retry.initial_s, config.retry.max_s)
        queue = SpanQueue(
            self.budget, metrics.accounting, int(upstream.lane), spool=self.spool, account=account
        )
        throttle = Throttle(
            backoff,
            section.max_concurrency,
            random.random,
            # Latencies are comparable only if each request has one span (DECISIONS.md 23).
            watch_latency=sink.max_batch == 1,
        )
        retry = config.retry
        drain = Drain(
            sink,
            queue,
            throttle,
            RetryPolicy(backoff, retry.max_age_s, retry.max_attempts, random.random),
            metrics,
            linger_s=getattr(section, "linger_s", 0.0),
            dead_letter=partial(self.letters.add, sink.name),
        )
        return Branch(account, sink, credentials, queue, throttle, drain)


class Upstream(NamedTuple):
    """A row of the table below.

    `name` is the sink's, as metrics and configuration spell it; `title` is for people. `parse`
    reads the file of credentials, `credentials` puts them together, and `sink` makes the sink
    (sinks/configured.py). `by_account`: its spans belong to accounts, which have a branch each.
    `keeps_rows`: an open write never replaces a
    finished span, so that `sidecar replay` may send one.
    """

    name: str
    title: str
    lane: Lanes
    parse: Callable[[str], Mapping[str, Secret]]
    credentials: Callable[[Config, Accounts, CredentialFile, int], Credentials]
    sink: Callable[[Given], Sink]
    by_account: bool = False
    keeps_rows: bool = False

    def enabled(self, config: Config) -> bool:
        """Whether `config` enables it."""
        return not upstreams(config)[self.name].missing


# Every upstream. A new one needs a sink (sinks/) and how it is made (sinks/configured.py), a
# section in config_upstreams.py and config.example.toml, a bit in `Lanes`, and a row here. Metrics,
# /status, `check` and `replay` follow from the row; a route of its own goes to listener/routes/.
UPSTREAMS = (
    Upstream(
        "agentex",
        "Agentex",
        Lanes.AGENTEX,
        key_as(AGENTEX_KEY),
        agentex_credentials,
        agentex_sink,
        keeps_rows=True,
    ),
    Upstream(
        "sgp", "SGP", Lanes.SGP, key_as(KEY_HEADER), sgp_credentials, sgp_sink, by_account=True
    ),
    Upstream("otlp", "OTLP", Lanes.OTLP, header_lines, otlp_credentials, otlp_sink),
)
UPSTREAM = {each.name: each for each in UPSTREAMS}

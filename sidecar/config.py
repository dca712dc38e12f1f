"""Configuration: one frozen struct per section, with the default of every key.

Keys that end in `_s` are seconds. config_load.py reads the values, config_values.py converts them;
here, and for the upstreams in config_upstreams.py, are the rules that they must meet.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sidecar.config_upstreams import (
    AgentexConfig,
    Count,
    Mistake,
    OtlpConfig,
    Positive,
    Seconds,
    Section,
    SgpConfig,
    UpstreamConfig,
    masked_path,
)
from sidecar.config_values import AUTO, Size, utf8
from sidecar.credentials import is_header_safe
from sidecar.network import proxies
from sidecar.process.addresses import is_host, masked

MIN_SPOOL_BYTES = 2**20
MAX_NAME = 253  # the longest name that Kubernetes gives to a pod or a node
Port = Annotated[int, Meta(ge=0, le=65535)]


class ConfigError(ValueError):
    """The configuration is invalid. Each of `mistakes` names the key, and says what to do."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class ListenerConfig(Section, frozen=True):
    """The agents' port."""

    hosts: tuple[str, ...] = ("127.0.0.1", "::1")
    allowed_hosts: tuple[str, ...] = ()
    port: Port = 8318
    max_body: Size = Size(32 * 2**20)
    body_timeout_s: Positive = 30.0
    pass_through: bool = False

    def _mistakes(self) -> Iterator[Mistake]:
        if not self.hosts:
            yield Mistake(("hosts",), 'must not be empty: "127.0.0.1" is for agents in this pod')
        for number, host in enumerate(self.allowed_hosts, 1):
            if not is_host(host):
                text = "must be host names or addresses without scheme, port, path or spaces"
                yield Mistake(("allowed_hosts",), f"{text}, and number {number} is not")
        yield from self._above_0("max_body")


class AdminConfig(Section, frozen=True):
    """The port for Prometheus, the kubelet and operators."""

    host: str = ""
    port: Port = 9318
    decisions: Annotated[int, Meta(ge=0, le=1_000_000)] = 50_000


class QueueConfig(Section, frozen=True):
    """Bounds on what waits in memory."""

    max_bytes: Size = AUTO
    start_hold_s: Seconds = 2.0
    open_span_ttl_s: Positive = 3600.0

    def _mistakes(self) -> Iterator[Mistake]:
        yield from self._above_0("max_bytes", auto=True)
        if self.open_span_ttl_s < self.start_hold_s:
            keys = ("open_span_ttl_s", "start_hold_s")
            yield Mistake(keys, "open_span_ttl_s must not be less than start_hold_s")


class SpoolConfig(Section, frozen=True):
    """The spool, which stores events on disk before their 202; disabled without a path."""

    path: str = ""
    max_bytes: Size = Size(2**30)
    sync: Literal["normal", "full"] = "normal"

    def _mistakes(self) -> Iterator[Mistake]:
        if self.max_bytes < MIN_SPOOL_BYTES:
            yield Mistake(("max_bytes",), "must be at least 1MiB")


class NetworkConfig(Section, frozen=True):
    """How the upstreams are reached."""

    proxy: str = proxies.AUTO
    no_proxy: str = ""
    max_connection_age_s: Positive = 300.0

    def _mistakes(self) -> Iterator[Mistake]:
        if self.proxy not in {proxies.AUTO, proxies.NONE}:
            try:
                proxies.parse_proxy(self.proxy, "")
            except ValueError as error:
                yield Mistake(("proxy",), f'{error}, or "auto" or "none"')


class RetryConfig(Section, frozen=True):
    """When to retry, and when to stop retrying."""

    initial_s: Positive = 0.5
    max_s: Positive = 30.0
    max_age_s: Positive = 86400.0
    max_attempts: Count = 8

    def _mistakes(self) -> Iterator[Mistake]:
        if self.initial_s > self.max_s:
            yield Mistake(("initial_s", "max_s"), "initial_s must not be more than max_s")


class DeadLettersConfig(Section, frozen=True):
    """The file for writes that are not delivered; without a path, none are kept."""

    path: str = ""
    max_bytes: Size = Size(64 * 2**20)

    def _mistakes(self) -> Iterator[Mistake]:
        yield from self._above_0("max_bytes")


class ShutdownConfig(Section, frozen=True):
    """The time limits of an orderly shutdown."""

    grace_s: Seconds = 25.0
    quiet_s: Seconds = 1.0


class LogConfig(Section, frozen=True):
    """Log level and format."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class PodConfig(Section, frozen=True):
    """Where the sidecar runs, as the downward API tells it; "" is unknown."""

    name: str = ""
    namespace: str = ""
    node: str = ""
    wrong_variables: Literal["stop", "ignore"] = "stop"

    def _mistakes(self) -> Iterator[Mistake]:
        for key in self.__struct_fields__:
            if len(value := getattr(self, key)) > MAX_NAME or not is_header_safe(value):
                yield Mistake((key,), f"must be at most {MAX_NAME} printable ASCII characters")


class Config(Section, frozen=True):
    """The whole configuration; each part gets only its own section."""

    listener: ListenerConfig = ListenerConfig()
    admin: AdminConfig = AdminConfig()
    queue: QueueConfig = QueueConfig()
    spool: SpoolConfig = SpoolConfig()
    agentex: AgentexConfig = AgentexConfig()
    sgp: SgpConfig = SgpConfig()
    otlp: OtlpConfig = OtlpConfig()
    network: NetworkConfig = NetworkConfig()
    retry: RetryConfig = RetryConfig()
    dead_letters: DeadLettersConfig = DeadLettersConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    log: LogConfig = LogConfig()
    pod: PodConfig = PodConfig()


def upstreams(config: Config) -> dict[str, UpstreamConfig]:
    """The sections of the upstreams, by their names."""
    sections = {name: getattr(config, name) for name in config.__struct_fields__}
    return {name: each for name, each in sections.items() if isinstance(each, UpstreamConfig)}


def redacted(config: Config) -> dict[str, Any]:
    """The configuration as plain values for display: secrets are `***`, and all text is UTF-8."""
    values: dict[str, Any] = msgspec.to_builtins(config, enc_hook=_displayed)
    urls = {"network": "proxy"} | {name: each.url_key for name, each in upstreams(config).items()}
    for name, key in urls.items():
        values[name][key] = masked(values[name][key])
    for name, each in upstreams(config).items():
        values[name][each.file_key] = masked_path(values[name][each.file_key])
    for section in values.values():
        for key, value in section.items():
            if isinstance(value, list | tuple):
                section[key] = [utf8(each) for each in value]
            elif isinstance(value, str):
                section[key] = utf8(value)
    return values


def _displayed(value: object) -> str:
    return str(value) if value else ""

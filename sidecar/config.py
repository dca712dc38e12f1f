"""Configuration: one frozen struct per section, with the default of every key.

Keys that end in `_s` are seconds. config_load.py reads the values, config_values.py converts them;
here are the rules that they must meet.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from sidecar.config_values import AUTO, Size
from sidecar.credentials import Secret, is_header_safe
from sidecar.network import proxies
from sidecar.process.addresses import is_host, masked, parse_base_url

MIN_SPOOL_BYTES = 2**20
MAX_NAME = 253  # the longest name that Kubernetes gives to a pod or a node
Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]


class ConfigError(ValueError):
    """The configuration is invalid. Each of `mistakes` names the key, and says what to do."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class Mistake(NamedTuple):
    """A rule that the values of some keys of a section do not meet."""

    keys: tuple[str, ...]
    text: str


class InvalidSection(ValueError):
    """Raised by the constructor of a section."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("; ".join(f"{' and '.join(keys)} {text}" for keys, text in mistakes))
        self.mistakes = mistakes


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    def __post_init__(self) -> None:
        if mistakes := list(self._mistakes()):
            raise InvalidSection(mistakes)

    def _mistakes(self) -> Iterator[Mistake]:
        """Check the section's rules, which are more than its types say."""
        yield from ()

    def _above_0(self, *keys: str, auto: bool = False) -> Iterator[Mistake]:
        for key in keys:
            if getattr(self, key) <= 0 and not (auto and getattr(self, key) == AUTO):
                yield Mistake((key,), f"must be a size above 0{', or auto' if auto else ''}")


class _UpstreamConfig(_Section, frozen=True):
    """What the sections of all upstreams have; the files of certificates are PEM."""

    base_url: str = ""
    api_key: Secret = Secret("")
    api_key_file: str = ""
    ca_file: str = ""
    client_cert_file: str = ""
    client_key_file: str = ""

    def _mistakes(self) -> Iterator[Mistake]:
        try:
            if self.base_url:
                parse_base_url(self.base_url)
        except ValueError as error:
            yield Mistake(("base_url",), str(error))
        if self.client_key_file and not self.client_cert_file:
            yield Mistake(("client_key_file",), "needs client_cert_file, the certificate")


class ListenerConfig(_Section, frozen=True):
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


class AdminConfig(_Section, frozen=True):
    """The port for Prometheus, the kubelet and operators."""

    host: str = ""
    port: Port = 9318
    decisions: Annotated[int, Meta(ge=0, le=1_000_000)] = 50_000


class QueueConfig(_Section, frozen=True):
    """Bounds on what waits in memory."""

    max_bytes: Size = AUTO
    start_hold_s: Seconds = 2.0
    open_span_ttl_s: Positive = 3600.0

    def _mistakes(self) -> Iterator[Mistake]:
        yield from self._above_0("max_bytes", auto=True)
        if self.open_span_ttl_s < self.start_hold_s:
            keys = ("open_span_ttl_s", "start_hold_s")
            yield Mistake(keys, "open_span_ttl_s must not be less than start_hold_s")


class SpoolConfig(_Section, frozen=True):
    """The spool, which stores events on disk before their 202; disabled without a path."""

    path: str = ""
    max_bytes: Size = Size(2**30)
    sync: Literal["normal", "full"] = "normal"

    def _mistakes(self) -> Iterator[Mistake]:
        if self.max_bytes < MIN_SPOOL_BYTES:
            yield Mistake(("max_bytes",), "must be at least 1MiB")


class AgentexConfig(_UpstreamConfig, frozen=True):
    """The Agentex API; enabled when a base URL is set."""

    max_concurrency: Count = 64
    timeout_s: Positive = 40.0

    @property
    def missing(self) -> str:
        """What it needs to be enabled, and how to set it; "" if it is enabled."""
        return "" if self.base_url else "the base URL is missing, set AGENTEX_BASE_URL"


SGP_PRODUCTION = "https://api.egp.scale.com"


class SgpConfig(_UpstreamConfig, frozen=True):
    """The SGP API; enabled when an API key and an account id are set, or with `relay`.

    `base_url` is empty only if the pod's can't be used (config_load.py, operate/problems.py).
    """

    base_url: str = SGP_PRODUCTION
    account_id: str = ""
    max_batch: Annotated[int, Meta(ge=1, le=1000)] = 500
    max_batch_bytes: Size = Size(2**20)
    linger_s: Seconds = 0.1
    max_concurrency: Count = 8
    timeout_s: Positive = 60.0
    open_writes: Literal["auto"] | bool = "auto"
    relay: bool = False

    @property
    def missing(self) -> str:
        """What it needs to be enabled, and how to set it; "" if it is enabled."""
        has_key = bool(self.api_key or self.api_key_file)
        if not self.base_url:
            return "the base URL can't be used"
        if self.relay or (has_key and self.account_id):
            return ""
        if has_key:
            return "the account id is missing, set SGP_ACCOUNT_ID"
        if self.account_id:
            return "the API key is missing, set SGP_API_KEY"
        return "the API key and the account id are missing, set SGP_API_KEY and SGP_ACCOUNT_ID"

    def _mistakes(self) -> Iterator[Mistake]:
        yield from super()._mistakes()
        yield from self._above_0("max_batch_bytes")
        if not is_header_safe(self.account_id):
            yield Mistake(("account_id",), "must be printable ASCII")


class NetworkConfig(_Section, frozen=True):
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


class RetryConfig(_Section, frozen=True):
    """When to retry, and when to stop retrying."""

    initial_s: Positive = 0.5
    max_s: Positive = 30.0
    max_age_s: Positive = 86400.0
    max_attempts: Count = 8

    def _mistakes(self) -> Iterator[Mistake]:
        if self.initial_s > self.max_s:
            yield Mistake(("initial_s", "max_s"), "initial_s must not be more than max_s")


class DeadLettersConfig(_Section, frozen=True):
    """The file for writes that are not delivered; without a path, none are kept."""

    path: str = ""
    max_bytes: Size = Size(64 * 2**20)

    def _mistakes(self) -> Iterator[Mistake]:
        yield from self._above_0("max_bytes")


class ShutdownConfig(_Section, frozen=True):
    """The time limits of an orderly shutdown."""

    grace_s: Seconds = 25.0
    quiet_s: Seconds = 1.0


class LogConfig(_Section, frozen=True):
    """Log level and format."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class PodConfig(_Section, frozen=True):
    """Where the sidecar runs, as the downward API tells it; "" is unknown."""

    name: str = ""
    namespace: str = ""
    node: str = ""
    wrong_variables: Literal["stop", "ignore"] = "stop"

    def _mistakes(self) -> Iterator[Mistake]:
        for key in self.__struct_fields__:
            if len(value := getattr(self, key)) > MAX_NAME or not is_header_safe(value):
                yield Mistake((key,), f"must be at most {MAX_NAME} printable ASCII characters")


class Config(_Section, frozen=True):
    """The whole configuration; each part gets only its own section."""

    listener: ListenerConfig = ListenerConfig()
    admin: AdminConfig = AdminConfig()
    queue: QueueConfig = QueueConfig()
    spool: SpoolConfig = SpoolConfig()
    agentex: AgentexConfig = AgentexConfig()
    sgp: SgpConfig = SgpConfig()
    network: NetworkConfig = NetworkConfig()
    retry: RetryConfig = RetryConfig()
    dead_letters: DeadLettersConfig = DeadLettersConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    log: LogConfig = LogConfig()
    pod: PodConfig = PodConfig()


def redacted(config: Config) -> dict[str, Any]:
    """The configuration as plain values for display: secrets are `***`, and all text is UTF-8."""
    values: dict[str, Any] = msgspec.to_builtins(config, enc_hook=_displayed)
    for section in values.values():
        for key in section.keys() & {"base_url", "proxy"}:
            section[key] = masked(section[key])
        for key in section.keys() & {"api_key_file"}:
            section[key] = masked_path(section[key])
        for key, value in section.items():
            if isinstance(value, list | tuple):
                section[key] = [utf8(each) for each in value]
            elif isinstance(value, str):
                section[key] = utf8(value)
    return values


def masked_path(path: str) -> str:
    """`path`, or `***` for one without a "/": somebody may have given the key itself."""
    return path if "/" in path or not path else "***"


def utf8(text: str) -> str:
    """Without surrogates, which stand for bytes that are not UTF-8, or that the locale lacks."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _displayed(value: object) -> str:
    return str(value) if value else ""

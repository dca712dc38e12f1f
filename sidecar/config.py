"""Configuration: one frozen struct per section, with the default of every key.

Sizes are strings such as `"64MiB"`; keys that end in `_s` are seconds. A bad value raises an error
that names the key and the rule. config_load.py reads the values.
"""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sidecar.credentials import Secret, is_header_safe
from sidecar.network import proxies
from sidecar.process.addresses import is_host, masked, parse_base_url

MIN_SPOOL_BYTES = 2**20
_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]iB|[KM]B|B|)")

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]


class ConfigError(ValueError):
    """The configuration is invalid; the message names the key and the reason."""


class Size(int):
    """A number of bytes, configured as `"64MiB"`; `"auto"`, where allowed, is -1."""

    @classmethod
    def parse(cls, value: object) -> "Size":
        """Parse a configured value; raises `ValueError`."""
        if value == "auto":
            return AUTO
        match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError('expected a size such as "64MiB"')
        return cls(float(match[1]) * _UNITS[match[2]])

    def __str__(self) -> str:
        """The size in the largest unit that divides it evenly; `parse` accepts it."""
        if self == AUTO:
            return "auto"
        for unit in ("GiB", "MiB", "KiB"):
            if self and not int(self) % _UNITS[unit]:
                return f"{int(self) // _UNITS[unit]}{unit}"
        return f"{int(self)}B"


AUTO = Size(-1)


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


def _require(ok: bool, message: str) -> None:  # noqa: FBT001
    if not ok:
        raise ValueError(message)


def _require_url(text: str) -> None:
    try:
        if text:
            parse_base_url(text)
    except ValueError as error:
        raise ValueError(f"base_url {error}") from None


class _UpstreamConfig(_Section, frozen=True):
    """What the sections of all upstreams have; the files of certificates are PEM."""

    base_url: str = ""
    api_key: Secret = Secret("")
    api_key_file: str = ""
    ca_file: str = ""
    client_cert_file: str = ""
    client_key_file: str = ""

    def __post_init__(self) -> None:
        _require_url(self.base_url)
        _require(
            bool(self.client_cert_file) or not self.client_key_file,
            "client_key_file needs client_cert_file",
        )


class ListenerConfig(_Section, frozen=True):
    """The agents' port."""

    hosts: tuple[str, ...] = ("127.0.0.1", "::1")
    allowed_hosts: tuple[str, ...] = ()
    port: Port = 8318
    max_body: Size = Size(32 * 2**20)
    body_timeout_s: Positive = 30.0
    pass_through: bool = False

    def __post_init__(self) -> None:
        _require(bool(self.hosts), "hosts must not be empty")
        for number, host in enumerate(self.allowed_hosts, 1):
            _require(
                is_host(host),
                "allowed_hosts must be host names or addresses without scheme, port, path or "
                f"spaces, and number {number} is not",
            )
        _require(self.max_body > 0, "max_body must be a size above 0")


class AdminConfig(_Section, frozen=True):
    """The port for Prometheus, the kubelet and operators."""

    host: str = ""
    port: Port = 9318


class QueueConfig(_Section, frozen=True):
    """Bounds on what waits in memory."""

    max_bytes: Size = AUTO
    start_hold_s: Seconds = 2.0
    open_span_ttl_s: Positive = 3600.0

    def __post_init__(self) -> None:
        _require(self.max_bytes == AUTO or self.max_bytes > 0, "max_bytes must be a size above 0")
        _require(
            self.open_span_ttl_s >= self.start_hold_s,
            "open_span_ttl_s must not be less than start_hold_s",
        )


class SpoolConfig(_Section, frozen=True):
    """The spool, which stores events on disk before their 202; disabled without a path."""

    path: str = ""
    max_bytes: Size = Size(2**30)
    sync: Literal["normal", "full"] = "normal"

    def __post_init__(self) -> None:
        _require(self.max_bytes >= MIN_SPOOL_BYTES, "max_bytes must be at least 1MiB")


class AgentexConfig(_UpstreamConfig, frozen=True):
    """The Agentex API; enabled when a base URL is set."""

    max_concurrency: Count = 64
    timeout_s: Positive = 40.0


SGP_PRODUCTION = "https://api.egp.scale.com"


class SgpConfig(_UpstreamConfig, frozen=True):
    """The SGP API; enabled when an API key and an account id are set, or with `relay`."""

    base_url: str = SGP_PRODUCTION
    account_id: str = ""
    max_batch: Annotated[int, Meta(ge=1, le=1000)] = 500
    max_batch_bytes: Size = Size(2**20)
    linger_s: Seconds = 0.1
    max_concurrency: Count = 8
    timeout_s: Positive = 60.0
    open_writes: Literal["auto"] | bool = "auto"
    relay: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.base_url), "base_url must not be empty")
        _require(self.max_batch_bytes > 0, "max_batch_bytes must be a size above 0")
        _require(is_header_safe(self.account_id), "account_id must be printable ASCII")


class NetworkConfig(_Section, frozen=True):
    """How the upstreams are reached."""

    proxy: str = proxies.AUTO
    no_proxy: str = ""
    max_connection_age_s: Positive = 300.0

    def __post_init__(self) -> None:
        if self.proxy not in {proxies.AUTO, proxies.NONE}:
            try:
                proxies.parse_proxy(self.proxy, "")
            except ValueError as error:
                raise ValueError(f'proxy: {error}, or "auto" or "none"') from None


class RetryConfig(_Section, frozen=True):
    """When to retry, and when to stop retrying."""

    initial_s: Positive = 0.5
    max_s: Positive = 30.0
    max_age_s: Positive = 86400.0
    max_attempts: Count = 8

    def __post_init__(self) -> None:
        _require(self.initial_s <= self.max_s, "initial_s must not be more than max_s")


class DeadLettersConfig(_Section, frozen=True):
    """The file for writes that are not delivered; without a path, none are kept."""

    path: str = ""
    max_bytes: Size = Size(64 * 2**20)

    def __post_init__(self) -> None:
        _require(self.max_bytes > 0, "max_bytes must be a size above 0")


class ShutdownConfig(_Section, frozen=True):
    """The time limits of an orderly shutdown."""

    grace_s: Seconds = 25.0
    quiet_s: Seconds = 1.0


class LogConfig(_Section, frozen=True):
    """Log level and format."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


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


def redacted(config: Config) -> dict[str, Any]:
    """The configuration as plain values for display: secrets are `***`, and all text is UTF-8."""
    values: dict[str, Any] = msgspec.to_builtins(config, enc_hook=_displayed)
    for section in values.values():
        for key in section.keys() & {"base_url", "proxy"}:
            section[key] = masked(section[key])
        for key, value in section.items():
            if isinstance(
                value, str
            ):  # a path has its bytes as surrogates if the locale lacks them
                section[key] = value.encode(errors="surrogateescape").decode(errors="replace")
    return values


def _displayed(value: object) -> str:
    return str(value) if value else ""

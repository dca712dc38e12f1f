"""Configuration: the structs with their defaults, and `load`.

TOML, and every key also as `SIDECAR_<SECTION>__<KEY>` in the environment, which wins. What an agent
pod has anyway is taken where no key is set. Unknown keys and bad values
stop the start with a path and a reason. Sizes are texts such as `"64MiB"`, names end in `_s` for
seconds.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from yarl import URL

from sidecar.credentials import Secret, is_header_safe
from sidecar.process.addresses import is_here
from sidecar.sizes import AUTO, Size

ENV_PREFIX = "SIDECAR_"
MIN_SPOOL_BYTES = 2**20

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]


class ConfigError(ValueError):
    """The configuration can't be used; says where and why."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


def _require(ok: bool, message: str) -> None:  # noqa: FBT001
    if not ok:
        raise ValueError(message)


def _require_url(text: str) -> None:
    if not text:
        return
    try:
        url = URL(text)
        ok = url.scheme in {"http", "https"} and url.host and url.port and " " not in text
    except ValueError:
        ok = False
    _require(bool(ok), "base_url must be a URL such as http://host:port/path")


class ListenerConfig(_Section, frozen=True):
    """Where agents post."""

    hosts: tuple[str, ...] = ("127.0.0.1", "::1")
    port: Port = 8318
    max_body: Size = Size(32 * 2**20)
    body_timeout_s: Positive = 30.0
    pass_through: bool = False

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        _require(bool(self.hosts), "hosts must not be empty")
        _require(self.max_body > 0, "max_body must be a size above 0")


class AdminConfig(_Section, frozen=True):
    """Where Prometheus, the kubelet and operators look."""

    host: str = ""
    port: Port = 9318


class QueueConfig(_Section, frozen=True):
    """What may wait in memory."""

    max_bytes: Size = AUTO
    start_hold_s: Seconds = 2.0
    open_span_ttl_s: Positive = 3600.0

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        _require(self.max_bytes == AUTO or self.max_bytes > 0, "max_bytes must be above 0")
        _require(
            self.open_span_ttl_s >= self.start_hold_s,
            "open_span_ttl_s must not be less than start_hold_s",
        )


class SpoolConfig(_Section, frozen=True):
    """Where events are kept on disk before their 202; no path keeps them in memory only."""

    path: str = ""
    max_bytes: Size = Size(2**30)
    sync: Literal["normal", "full"] = "normal"

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        _require(self.max_bytes >= MIN_SPOOL_BYTES, "max_bytes must be at least 1MiB")


class AgentexConfig(_Section, frozen=True):
    """The Agentex API; on where it has a base URL."""

    base_url: str = ""
    api_key: Secret = Secret("")
    api_key_file: str = ""
    max_concurrency: Count = 64
    timeout_s: Positive = 40.0

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        _require_url(self.base_url)


SGP_PRODUCTION = "https://api.egp.scale.com"


class SgpConfig(_Section, frozen=True):
    """The SGP API; on where it has an API key and an account id, or `relay`."""

    base_url: str = SGP_PRODUCTION
    api_key: Secret = Secret("")
    api_key_file: str = ""
    account_id: str = ""
    max_batch: Annotated[int, Meta(ge=1, le=1000)] = 500
    max_batch_bytes: Size = Size(2**20)
    linger_s: Seconds = 0.1
    max_concurrency: Count = 8
    timeout_s: Positive = 60.0
    open_writes: Literal["auto"] | bool = "auto"
    relay: bool = False

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        _require(bool(self.base_url), "base_url must not be empty")
        _require_url(self.base_url)
        _require(self.max_batch_bytes > 0, "max_batch_bytes must be a size above 0")
        _require(is_header_safe(self.account_id), "account_id has a control character")


class RetryConfig(_Section, frozen=True):
    """When to try again, and when no more."""

    initial_s: Positive = 0.5
    max_s: Positive = 30.0
    max_age_s: Positive = 86400.0
    max_attempts: Count = 8

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        _require(self.initial_s <= self.max_s, "initial_s must not be more than max_s")


class DeadLettersConfig(_Section, frozen=True):
    """Where writes go that an upstream will never take; no path keeps none."""

    path: str = ""
    max_bytes: Size = Size(64 * 2**20)

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        _require(self.max_bytes > 0, "max_bytes must be a size above 0")


class ShutdownConfig(_Section, frozen=True):
    """How to stop."""

    grace_s: Seconds = 25.0
    quiet_s: Seconds = 1.0


class LogConfig(_Section, frozen=True):
    """How to log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Config(_Section, frozen=True):
    """The whole configuration; each part is handed its own section."""

    listener: ListenerConfig = ListenerConfig()
    admin: AdminConfig = AdminConfig()
    queue: QueueConfig = QueueConfig()
    spool: SpoolConfig = SpoolConfig()
    agentex: AgentexConfig = AgentexConfig()
    sgp: SgpConfig = SgpConfig()
    retry: RetryConfig = RetryConfig()
    dead_letters: DeadLettersConfig = DeadLettersConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    log: LogConfig = LogConfig()


# Variables of an agent pod, and the key each one stands for where that is not set.
FROM_THE_POD = {
    "AGENTEX_BASE_URL": ("agentex", "base_url"),
    "SGP_CLIENT_BASE_URL": ("sgp", "base_url"),
    "SGP_API_KEY": ("sgp", "api_key"),
    "SGP_ACCOUNT_ID": ("sgp", "account_id"),
}


def load(path: str | None, environ: Mapping[str, str]) -> Config:
    """The configuration of the file at `path`, if any, and of `environ`; raises `ConfigError`."""
    values = _read(path) if path else {}
    for section, key, text, name in _from_environment(environ):
        try:
            values.setdefault(section, {})[key] = text
        except (TypeError, AttributeError):
            msg = f"{name}: {section} is not a section"
            raise ConfigError(msg) from None
    for name, (section, key) in FROM_THE_POD.items():
        given = values.setdefault(section, {})
        if isinstance(given, dict):
            # Templates set the variable to "", which means unset (docs/upstreams.md S1.1).
            if not given.get(key, True):
                del given[key]
            if text := environ.get(name, "").strip():
                given.setdefault(key, text)
    try:
        config = msgspec.convert(values, Config, strict=False, dec_hook=_hook)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        place = where.rstrip("`") or "the top level"
        msg = f"{place}: {what}" + _set_by(place, environ, path)
        raise ConfigError(msg) from None
    _refuse_one_port(config)
    _refuse_itself(config)
    return config


def _refuse_one_port(config: Config) -> None:
    if config.listener.port == config.admin.port != 0:
        msg = f"admin.port: {config.admin.port} is listener.port, too"
        raise ConfigError(msg)


def _refuse_itself(config: Config) -> None:
    """An upstream that is this sidecar would send it its own writes for ever.

    A pod whose containers share `SGP_CLIENT_BASE_URL` says just that.
    """
    listener = config.listener
    for section, base_url in (("agentex", config.agentex.base_url), ("sgp", config.sgp.base_url)):
        url = URL(base_url)
        if base_url and is_here(url.host or "", listener.hosts) and url.port == listener.port:
            msg = (
                f"{section}.base_url: {url.host}:{url.port} is this sidecar's own listener"
                " (a pod's variable may say so): set the key itself"
            )
            raise ConfigError(msg)


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise ConfigError(msg) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from None


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, str, Any, str]]:
    found: list[tuple[str, str, Any, str]] = []
    for name, text in sorted(environ.items()):
        section, separator, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if name.startswith(ENV_PREFIX) and separator and text:
            value: Any = text
            if (section, key) == ("listener", "hosts"):
                value = [host.strip() for host in text.split(",")]
            found.append((section, key, value, name))
    return found


def _set_by(place: str, environ: Mapping[str, str], path: str | None) -> str:
    section, _, key = place.partition(".")
    name = f"{ENV_PREFIX}{section}__{key}".upper()
    if name in environ:
        return f" (set by {name})"
    return f" (in {path})" if path else ""


def _hook(kind: type, value: object) -> object:
    if kind is Size:
        return Size.parse(value)
    if kind is Secret and isinstance(value, str):
        if not is_header_safe(value.strip()):
            message = "has a control character"
            raise ValueError(message)
        return Secret(value.strip())
    msg = f"expected {kind.__name__.lower()}"
    raise ValueError(msg)


def public(config: Config) -> dict[str, Any]:
    """The configuration as plain values, for people: secrets are `***`."""
    values: dict[str, Any] = msgspec.to_builtins(config, enc_hook=_show)
    for section in values.values():
        # A proxy's password may be part of the URL.
        if (url := URL(section.get("base_url", ""))).user or url.password:
            section["base_url"] = str(url.with_user(None).with_user("***"))
    return values


def _show(value: object) -> str:
    return str(value) if value else ""

"""Loads the configuration from a TOML file, `SIDECAR_*` variables and the pod's own variables.

`SIDECAR_<SECTION>__<KEY>` wins over the file. A variable that an agent pod already has applies only
if its key is not set. Unknown keys and bad values raise `ConfigError`, which names the key, its
source and the rule.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sidecar.config import Config, ConfigError
from sidecar.credentials import Secret, is_header_safe
from sidecar.process.addresses import is_local, parse_base_url
from sidecar.sizes import Size

ENV_PREFIX = "SIDECAR_"
# Variables that an agent pod already has, and the key that each one is a default for.
_POD_VARIABLES = {
    "AGENTEX_BASE_URL": ("agentex", "base_url"),
    "SGP_CLIENT_BASE_URL": ("sgp", "base_url"),
    "SGP_API_KEY": ("sgp", "api_key"),
    "SGP_ACCOUNT_ID": ("sgp", "account_id"),
}


def load(path: str | None, environ: Mapping[str, str]) -> Config:
    """Load the configuration from the file at `path`, if any, and `environ`.

    Raises `ConfigError`.
    """
    values = _read(path) if path else {}
    _add_environment(values, environ)
    for name, (section, key) in _POD_VARIABLES.items():
        given = values.setdefault(section, {})
        if isinstance(given, dict):
            # Agent templates set these to "", which means unset (docs/upstreams.md S1.1).
            if not given.get(key, True):
                del given[key]
            if text := environ.get(name, "").strip():
                given.setdefault(key, text)
    try:
        config = msgspec.convert(values, Config, strict=False, dec_hook=_hook)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        place = where.rstrip("`") or "the top level"
        raise ConfigError(f"{place}: {what}{_set_by(place, environ, path)}") from None
    if config.listener.port == config.admin.port != 0:
        raise ConfigError(f"admin.port: {config.admin.port} is also listener.port")
    _refuse_own_listener(config)
    return config


def _refuse_own_listener(config: Config) -> None:
    """Refuse this sidecar's own listener as an upstream: it would receive its own writes forever.

    This happens in a pod whose containers share `SGP_CLIENT_BASE_URL`.
    """
    listener = config.listener
    for section, base_url in (("agentex", config.agentex.base_url), ("sgp", config.sgp.base_url)):
        if not base_url:
            continue
        url = parse_base_url(base_url)
        if is_local(url.host, listener.hosts) and url.port == listener.port:
            raise ConfigError(
                f"{section}.base_url: {url.host}:{url.port} is this sidecar's own listener"
                " (perhaps set by one of the pod's variables): set the key explicitly"
            )


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _add_environment(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name, text in sorted(environ.items()):
        section, separator, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if name.startswith(ENV_PREFIX) and separator and text:
            is_list = (section, key) == ("listener", "hosts")
            value = [host.strip() for host in text.split(",")] if is_list else text
            try:
                values.setdefault(section, {})[key] = value
            except (TypeError, AttributeError):
                raise ConfigError(f"{name}: {section} is not a section") from None


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
            raise ValueError("must be printable ASCII")
        return Secret(value.strip())
    raise ValueError(f"expected {kind.__name__.lower()}")

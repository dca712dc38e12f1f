"""Loads the configuration from a TOML file, `SIDECAR_*` variables and the pod's own variables.

`SIDECAR_<SECTION>__<KEY>`, in capitals, wins over the file. A variable that an agent pod already
has applies only if its key is not set. Unknown keys and bad values raise `ConfigError`, which names
the key, its source and the rule. `unknown_variables` finds `SIDECAR_*` variables that set nothing.

All text is UTF-8, whatever the locale.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec

from sidecar.config import Config, ConfigError, Size
from sidecar.credentials import Secret, is_header_safe
from sidecar.process.addresses import is_local, parse_base_url

ENV_PREFIX = "SIDECAR_"
FILE_VARIABLE = "SIDECAR_CONFIG"
_KEYS = {
    f"{ENV_PREFIX}{section.name}__{key.name}".upper(): (section.name, key.name)
    for section in msgspec.structs.fields(Config)
    for key in msgspec.structs.fields(section.type)
}
VARIABLES = {FILE_VARIABLE, *_KEYS}
_OF_A_SECTION = tuple({name.partition("__")[0] + "__" for name in _KEYS})
# Keys that hold a path, in any section.
_PATHS = ("path", "api_key_file", "ca_file", "client_cert_file", "client_key_file")
_LISTS = {("listener", "hosts"), ("listener", "allowed_hosts")}
# What Kubernetes tells every pod about a Service whose name begins with "sidecar".
_SERVICE_LINK = re.compile(
    r"SIDECAR(_[A-Z0-9_]+)?_"
    r"(SERVICE_HOST=|SERVICE_PORT(_[A-Z0-9_]+)?=|PORT=\w+://|PORT_\d+_[A-Z]+(_PROTO|_PORT|_ADDR)?=)"
)
# difflib's ratio from which a name is similar: about one character in four may be wrong.
_SIMILAR = 0.75
# Variables that an agent pod already has, and the key that each one is a default for.
_POD_VARIABLES = {
    "AGENTEX_BASE_URL": ("agentex", "base_url"),
    "SGP_CLIENT_BASE_URL": ("sgp", "base_url"),
    "SGP_API_KEY": ("sgp", "api_key"),
    "SGP_ACCOUNT_ID": ("sgp", "account_id"),
}


def load(path: str | None, environ: Mapping[str, str]) -> Config:
    """Load the configuration from the file at `path`, if any, and `environ` (see `environment`).

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
    _encode_paths(values)
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
    ours = listener.hosts + listener.allowed_hosts
    for section, base_url in (("agentex", config.agentex.base_url), ("sgp", config.sgp.base_url)):
        if not base_url:
            continue
        url = parse_base_url(base_url)
        if is_local(url.host, ours) and url.port == listener.port:
            raise ConfigError(
                f"{section}.base_url: {url.host}:{url.port} is this sidecar's own listener"
                " (perhaps set by one of the pod's variables): set the key explicitly"
            )


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _add_environment(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name, text in environ.items():
        if name in _KEYS and text:
            section, key = _KEYS[name]
            is_list = (section, key) in _LISTS
            # Without blank ones: to listen on "" is to listen on every address.
            value = [each.strip() for each in text.split(",") if each.strip()] if is_list else text
            try:
                values.setdefault(section, {})[key] = value
            except (TypeError, AttributeError):
                raise ConfigError(f"{name}: {section} is not a section") from None
    for name, nearest in unknown_variables(environ).items():
        if name.startswith(_OF_A_SECTION):
            section = name.removeprefix(ENV_PREFIX).partition("__")[0].lower()
            raise ConfigError(f"{name}: {section} has no such key{did_you_mean(nearest)}")


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that look like settings but are none, each with the nearest real name.

    The nearest name is "" if none is similar. Those that Kubernetes sets are left out, as are empty
    ones, which are unset.
    """
    return {
        name: _nearest(name)
        for name, text in sorted(environ.items())
        if text
        and name not in VARIABLES
        # Names are in capitals: another case of a real name is a mistake.
        and (name.startswith(ENV_PREFIX) or name.upper() in VARIABLES)
        and not _SERVICE_LINK.match(f"{name}={text}")
    }


def _nearest(name: str) -> str:
    # Without what all names have in common.
    ends = {known.removeprefix(ENV_PREFIX): known for known in sorted(VARIABLES)}
    found = get_close_matches(name.upper().removeprefix(ENV_PREFIX), ends, 1, _SIMILAR)
    return ends[found[0]] if found else ""


def did_you_mean(name: str) -> str:
    """The end of a message about an unknown variable; `name` is the nearest real one, or ""."""
    return f"; did you mean {name}?" if name else ""


def environment() -> dict[str, str]:
    """Return this process's variables, decoded as UTF-8: Python decodes them by the locale."""
    return {
        name.decode("utf-8", "surrogateescape"): text.decode("utf-8", "surrogateescape")
        for name, text in os.environb.items()
    }


def _encode_paths(values: dict[str, Any]) -> None:
    """Give each path the form in which Python, under this locale, passes UTF-8 to the system."""
    for section in values.values():
        for key in _PATHS:
            if isinstance(section, dict) and isinstance(path := section.get(key), str):
                section[key] = os.fsdecode(path.encode("utf-8", "surrogateescape"))


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

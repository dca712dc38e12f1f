"""Loads the configuration from a TOML file, `SIDECAR_*` variables and the pod's own variables.

`SIDECAR_<SECTION>__<KEY>`, in capitals, wins over the file. A variable that an agent pod already
has applies only if its key is not set. All mistakes are found at once; each is a sentence that
names the key, where its value comes from, and what to do. `unknown_variables` finds `SIDECAR_*`
variables that set nothing.

A mistake stops the start, except one in a variable that the pod has for its agent, if the agent
must not depend on that (`pod.wrong_variables`): then its upstream is off (D12). All text is UTF-8,
whatever the locale.
"""

import errno
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import inspect
from msgspec.structs import replace

from sidecar.config import Config, ConfigError, upstreams
from sidecar.config_upstreams import InvalidSection
from sidecar.config_values import Size, convert, did_you_mean, nearest
from sidecar.credentials import Secret
from sidecar.network import proxies
from sidecar.process.addresses import is_local, parse_base_url
from sidecar.process.blocking import within

Key = tuple[str, str]  # section and key

# Bounds on reading the file. It may be a pipe that nobody writes to, or a device without an end.
FILE_S = 5.0
MAX_FILE_BYTES = 2**20

ENV_PREFIX = "SIDECAR_"
FILE_VARIABLE = "SIDECAR_CONFIG"
_SECTIONS = {each.name: each.type for each in msgspec.structs.fields(Config)}
_TYPES = {
    (section, key.name): key.type
    for section, kind in _SECTIONS.items()
    for key in cast("inspect.StructType", inspect.type_info(kind)).fields
}
_KEYS = {f"{ENV_PREFIX}{section}__{key}".upper(): (section, key) for section, key in _TYPES}
VARIABLES = {FILE_VARIABLE, *_KEYS}
_OF_A_SECTION = tuple({name.partition("__")[0] + "__" for name in _KEYS})
# Keys that hold a path, in any section.
_PATHS = tuple({key for _, key in _TYPES if key == "path" or key.endswith("_file")})
# What Kubernetes tells every pod about a Service whose name begins with "sidecar".
_SERVICE_LINK = re.compile(
    r"SIDECAR(_[A-Z0-9_]+)?_"
    r"(SERVICE_HOST=|SERVICE_PORT(_[A-Z0-9_]+)?=|PORT=\w+://|PORT_\d+_[A-Z]+(_PROTO|_PORT|_ADDR)?=)"
)
# Variables that an agent pod already has, and the key that each one is a default for.
_POD_VARIABLES = {
    "AGENTEX_BASE_URL": ("agentex", "base_url"),
    "SGP_CLIENT_BASE_URL": ("sgp", "base_url"),
    "SGP_API_KEY": ("sgp", "api_key"),
    "SGP_ACCOUNT_ID": ("sgp", "account_id"),
}


class Settings(NamedTuple):
    """A configuration, and how it came about.

    `origins`: for each key that is set, the name of the variable or the path of the file. With
    `mistakes`, the keys in `mistaken` have their defaults instead. Those in `stopping` always stop
    the start. The others are in variables of the pod; their keys are empty, because the default
    would be another upstream than the one that is meant. A URL of the sidecar itself counts as
    unset.
    """

    config: Config
    origins: Mapping[Key, str]
    mistakes: tuple[str, ...]
    mistaken: frozenset[Key]
    stopping: tuple[str, ...]


def said(keys: tuple[Key, ...], text: str, origins: Mapping[Key, str]) -> str:
    """A sentence about keys: it names the first that is set, and where that is."""
    key = _blamed(keys, origins)
    origin = origins.get(key, "")
    by = "set by" if origin in VARIABLES or origin in _POD_VARIABLES else "in"
    return f"{'.'.join(key)}: {text}" + (f" ({by} {origin})" if origin else "")


def _blamed(keys: tuple[Key, ...], origins: Mapping[Key, str]) -> Key:
    return next((each for each in keys if each in origins), keys[0])


def load(path: str | None, environ: Mapping[str, str]) -> Config:
    """Load the configuration from the file at `path`, if any, and `environ` (see `environment`).

    Raises `ConfigError`.
    """
    settings = read(path, environ)
    if settings.mistakes:
        raise ConfigError(*settings.mistakes)
    return settings.config


def read(path: str | None, environ: Mapping[str, str]) -> Settings:
    """The same, with the mistakes as a result."""
    return _Reader(path, environ).settings()


class _Reader:
    """Collects what is given for each key, and every mistake."""

    def __init__(self, path: str | None, environ: Mapping[str, str]) -> None:
        self._given: dict[Key, Any] = {}
        self._origins: dict[Key, str] = {}
        self._mistakes: list[str] = []
        self._of_the_pod: list[str] = []
        self._mistaken: set[Key] = set()
        if path:
            self._read_file(path)
        self._read_variables(environ)

    def settings(self) -> Settings:
        values: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
        for (section, key), value in self._given.items():
            try:
                values[section][key] = _converted((section, key), value)
            except ValueError as error:
                self._object((section, key), text=str(error))
                values[section] |= self._instead((section, key))
        config = Config(**{name: self._section(name, values[name]) for name in _SECTIONS})
        for keys, text in _of_all_sections(config, self._mistaken):
            self._object(*keys, text=text)
            if self._origins.get(keys[0]) in _POD_VARIABLES:
                config = _with_default(config, *keys[0])
        stopping, mistaken = tuple(self._mistakes), frozenset(self._mistaken)
        return Settings(config, self._origins, (*stopping, *self._of_the_pod), mistaken, stopping)

    def _object(self, *keys: Key, text: str) -> None:
        of_the_pod = self._origins.get(_blamed(keys, self._origins)) in _POD_VARIABLES
        mistakes = self._of_the_pod if of_the_pod else self._mistakes
        mistakes.append(said(keys, text, self._origins))
        self._mistaken.update(keys)

    def _instead(self, key: Key) -> dict[str, Any]:
        """What a key has that can't have its value: nothing, or the default."""
        if self._origins.get(key) not in _POD_VARIABLES:
            return {}
        return {key[1]: Secret("") if key[1] == "api_key" else ""}

    def _read_file(self, path: str) -> None:
        for section, table in self._tables(path).items():
            if section in _SECTIONS and isinstance(table, dict):
                for key, value in table.items():
                    if (section, key) in _TYPES:
                        self._give((section, key), value, path)
                    else:
                        self._mistakes.append(_no_such_key(section, key, path))
            elif section in _SECTIONS:
                text = f"{section}: must be a section, [{section}] on a line of its own"
                self._mistakes.append(f"{text} (in {path})")
            elif isinstance(table, dict):
                meant = did_you_mean(
                    nearest(section.lower(), {each: f"[{each}]" for each in _SECTIONS})
                )
                self._mistakes.append(f"{section}: no such section{meant} (in {path})")
            else:
                self._mistakes.append(_no_such_key("", section, path))

    def _tables(self, path: str) -> dict[str, Any]:
        try:
            return tomllib.loads(within(FILE_S, _content, path).decode("utf-8-sig"))
        except TimeoutError:
            text = f"could not be read within {FILE_S:g} s: give the path of a TOML file"
        except OSError as error:
            text = f"{error.strerror}: give the path of a TOML file"
        except UnicodeDecodeError as error:
            text = f"{error}: save it as UTF-8"
        except (ValueError, RecursionError) as error:  # also those that tomllib lets through
            text = f"{error}: {_TOML}"
        self._mistakes.append(f"{path}: {text}")
        return {}

    def _read_variables(self, environ: Mapping[str, str]) -> None:
        for name, key in _KEYS.items():
            if text := environ.get(name):
                self._give(key, text, name)
        for name, key in _POD_VARIABLES.items():
            # Agent templates set these to "", which means unset (docs/upstreams.md S1.1).
            if self._given.get(key) == "":
                del self._given[key], self._origins[key]
            text = environ.get(name, "").strip()
            if text and key not in self._given:
                self._give(key, text, name)
        for name, meant in unknown_variables(environ).items():
            if name.startswith(_OF_A_SECTION):
                section = name.removeprefix(ENV_PREFIX).partition("__")[0].lower()
                self._mistakes.append(f"{name}: {section} has no such key{did_you_mean(meant)}")

    def _give(self, key: Key, value: object, origin: str) -> None:
        self._given[key], self._origins[key] = value, origin

    def _section(self, name: str, values: dict[str, Any]) -> Any:  # noqa: ANN401 (its struct)
        """Build a section; keys that do not meet its rules get their defaults."""
        while True:
            try:
                return _SECTIONS[name](**values)
            except InvalidSection as error:
                for keys, text in error.mistakes:
                    self._object(*((name, key) for key in keys), text=text)
                    for key in keys:
                        values.pop(key, None)
                        values |= self._instead((name, key))


def _with_default(config: Config, section: str, key: str) -> Config:
    """`config` without what is given for a key."""
    changed = replace(getattr(config, section), **{key: getattr(_SECTIONS[section](), key)})
    return replace(config, **{section: changed})


# What may be wrong with a file that is not TOML.
_TOML = "a line is [section] or key = value, each is there once, and text has quotes around it"


def _content(path: str) -> bytes:
    with Path(path).open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"larger than {Size(MAX_FILE_BYTES)}")
    return content


def _converted(key: Key, value: Any) -> object:  # noqa: ANN401 (from TOML)
    value = convert(_TYPES[key], value)
    if key[1] in _PATHS:
        if "\0" in value:
            raise ValueError("the value has a NUL character: give a path without it")
        # The form in which Python, under this locale, passes UTF-8 to the system.
        return os.fsdecode(value.encode("utf-8", "surrogateescape"))
    if key == ("network", "proxy") and value.lower() in {proxies.AUTO, proxies.NONE}:
        return value.lower()
    return value


def _no_such_key(section: str, key: str, path: str) -> str:
    """`section` is "" for a key above the first section."""
    same = [".".join(each) for each in _TYPES if each[1] == key]
    mine = {each[1]: ".".join(each) for each in _TYPES if each[0] == section}
    meant = nearest(key.lower(), mine) or " or ".join(same)
    where = f"{section}.{key}: no such key" if section else f"{key}: a key must be in a section"
    return f"{where}{did_you_mean(meant)} (in {path})"


def _of_all_sections(
    config: Config, mistaken: Collection[Key]
) -> Iterator[tuple[tuple[Key, ...], str]]:
    """Mistakes that concern several sections: the keys, and the text."""
    listener, admin = config.listener, config.admin
    keys = ("admin", "port"), ("listener", "port")
    if listener.port == admin.port != 0 and not any(key in mistaken for key in keys):
        yield keys, f"admin.port and listener.port are both {admin.port}: give each its own"
    ours = listener.hosts + listener.allowed_hosts
    for section, upstream in upstreams(config).items():
        if upstream.url and ("listener", "port") not in mistaken:
            url, key = parse_base_url(upstream.url), upstream.url_key
            if is_local(url.host, ours) and url.port == listener.port:
                # This happens in a pod whose containers share `SGP_CLIENT_BASE_URL`. The sidecar
                # would receive its own writes forever.
                text = f"{url.host}:{url.port} is this sidecar's own listener: set "
                text += f"{ENV_PREFIX}{section}__{key}".upper() + " to the upstream's URL"
                yield ((section, key),), text


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that look like settings but are none, each with the nearest real name.

    The nearest name is "" if none is similar. Those that Kubernetes sets are left out, as are empty
    ones, which are unset.
    """
    # Without what all names have in common.
    ends = {known.removeprefix(ENV_PREFIX): known for known in sorted(VARIABLES)}
    return {
        name: nearest(name.upper().removeprefix(ENV_PREFIX), ends)
        for name, text in sorted(environ.items())
        if text
        and name not in VARIABLES
        # Names are in capitals: another case of a real name is a mistake.
        and (name.startswith(ENV_PREFIX) or name.upper() in VARIABLES)
        and not _SERVICE_LINK.match(f"{name}={text}")
    }


def environment() -> dict[str, str]:
    """Return this process's variables, decoded as UTF-8: Python decodes them by the locale."""
    return {
        name.decode("utf-8", "surrogateescape"): text.decode("utf-8", "surrogateescape")
        for name, text in os.environb.items()
    }

"""`sidecar check`: what the configuration comes to, and everything that is wrong with it.

Standard output has the verdict in a few lines, then every setting as TOML, with where it comes
from; if a value is mistaken, only whether the sidecar is ready.
Standard error has the mistakes, problems and warnings, a line each.
"""

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from sidecar.config import ConfigError, redacted, upstreams
from sidecar.config_load import Key, Settings, said, unknown_variables
from sidecar.config_values import AUTO, Size
from sidecar.lanes import UPSTREAMS, certificate_files, proxy_of, reached
from sidecar.network.certificates import CertificateError, load_context
from sidecar.operate import ports, reach
from sidecar.operate.problems import missing_settings, no_such_setting, problems_of
from sidecar.operate.warnings import warnings_of
from sidecar.process.addresses import bracketed
from sidecar.process.memory import automatic_max_bytes, container_limit
from sidecar.process.terminal import complain, show
from sidecar.spool.files import IN_USE, is_locked

_MAX_SHORT = 0xFFFF
_RUNS = (
    "a sidecar runs here already: that is right if this is its own configuration; a second sidecar "
    "needs other ports, and a spool of its own"
)


def check(settings: Settings, environ: Mapping[str, str], *, probe: bool) -> bool | None:
    """Print it all, and try out the upstreams (`probe`); whether they can be reached.

    None: as configured, it can't work.
    """
    config = settings.config
    problems = [*settings.mistakes, *_unknown(settings, environ), *problems_of(settings)]
    warnings = []
    taken, impossible = asyncio.run(ports.try_out(settings))
    problems += impossible
    if config.spool.path and is_locked(Path(config.spool.path)):
        spool = ("spool", "path")
        taken.append(said((spool,), f"{config.spool.path} {IN_USE}", settings.origins))
    if taken and ports.sidecar_at(config):
        warnings.append(_RUNS)
    else:
        problems += taken
    try:
        if not settings.mistakes:  # or else all this would be about defaults
            problems += dict.fromkeys(_unusable(settings, environ))  # both may use one proxy
            warnings += warnings_of(config, environ)
            _show_verdict(problems, warnings)
            _show_what_it_does(settings, environ)
            _show_settings(settings)
        else:
            _show_verdict(problems, warnings)
    finally:  # also for `check | head`
        for text in (*problems, *(f"warning: {each}" for each in warnings)):
            complain(text)
    if problems:
        return None
    if probe:
        show("")
    return not probe or asyncio.run(reach.probe(config, environ))


def _unknown(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """Variables that set nothing, besides those that are mistakes."""
    for name, nearest in unknown_variables(environ).items():
        if not any(each.startswith(f"{name}: ") for each in settings.mistakes):
            yield no_such_setting(name, nearest)


def _unusable(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """What stops the start, although the values are valid."""
    config = settings.config
    if nothing := missing_settings(config).get(""):
        yield nothing
    for name in reached(config):
        try:
            proxy_of(name, config, environ)
            if any(files := certificate_files(name, config)):
                load_context(name, files)
        except ConfigError as error:
            yield str(error)
        except CertificateError as error:
            key, _, text = str(error).partition(": ")
            text += ": give the path of a PEM file that can be used"
            yield said((cast("Key", tuple(key.split("."))),), text, settings.origins)


def _show_verdict(problems: Sequence[str], warnings: Sequence[str]) -> None:
    counts = [
        f"{len(found)} {what}{'s' * (len(found) > 1)}"
        for found, what in ((problems, "problem"), (warnings, "warning"))
        if found
    ]
    after = f": {' and '.join(counts)}, see below" if counts else ""
    show(f"verdict: {'not ready' if problems else 'ready'}{after}")


def _show_what_it_does(settings: Settings, environ: Mapping[str, str]) -> None:
    """The rest of the verdict: upstreams, ports, and what is kept where."""
    config = settings.config
    for each in UPSTREAMS:
        missing = getattr(config, each.name).missing
        how = f"off: {missing}" if missing else f"on: {_how(each.name, settings, environ)}"
        show(f"{each.name}: {how}")
    agents = " and ".join(f"{bracketed(h)}:{config.listener.port}" for h in config.listener.hosts)
    admin = f"{bracketed(config.admin.host)}:" if config.admin.host else "every address, port "
    show(f"ports: agents post to {agents}; operators use {admin}{config.admin.port}")
    max_bytes, shown = config.queue.max_bytes, redacted(config)
    memory = automatic_max_bytes(container_limit()) if max_bytes == AUTO else max_bytes
    spool, letters = shown["spool"], shown["dead_letters"]["path"]
    disk = (
        f"{spool['max_bytes']} on disk in {spool['path']}" if spool["path"] else "nothing on disk"
    )
    kept = f"dead letters are kept in {letters}" if letters else "dead letters are not kept"
    show(f"storage: at most {Size(memory)} in memory, {disk}; {kept}")


def _how(name: str, settings: Settings, environ: Mapping[str, str]) -> str:
    """How an upstream that is on is reached, and with whose key."""
    try:
        proxy = proxy_of(name, settings.config, environ)
    except ConfigError:
        proxy = None  # it is one of the problems
    through = f", through the proxy {proxy} ({proxy.source})" if proxy is not None else ""
    upstream = upstreams(settings.config)[name]
    origins = {
        key: set_by for (section, key), set_by in settings.origins.items() if section == name
    }
    url = redacted(settings.config)[name][upstream.url_key]
    return f"{url}{through}, with {upstream.credentials(origins)}"


def _show_settings(settings: Settings) -> None:
    """Every key as TOML, and whether its value is from the file, a variable, or the default."""
    for section, values in redacted(settings.config).items():
        show("")
        show(f"[{section}]")
        for key, value in values.items():
            origin = settings.origins.get((section, key), "default")
            show(f"{key} = {_toml(value)} # {origin}")


def _toml(value: Any) -> str:  # noqa: ANN401 (what a key can hold)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{_toml(key)} = {_toml(each)}" for key, each in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if not isinstance(value, str):
        return json.dumps(value)
    return f'"{"".join(map(_escaped, value))}"'


def _escaped(character: str) -> str:
    """A character in a TOML string; one that the terminal can't show is escaped as TOML has it."""
    known = character.encode(sys.stdout.encoding or "utf-8", "ignore")
    if known and character.isprintable() and character not in '"\\':
        return character
    number = ord(character)
    return f"\\u{number:04x}" if number <= _MAX_SHORT else f"\\U{number:08x}"

"""What a configuration allows although it may surprise: warnings, one sentence each."""

from collections.abc import Iterator, Mapping
from contextlib import suppress

import structlog

from sidecar.config import Config, ConfigError, ListenerConfig, upstreams
from sidecar.config_load import Settings, unknown_variables
from sidecar.lanes import UPSTREAMS, certificate_files, passes_through, proxy_of, reached
from sidecar.network.certificates import missing_system_files
from sidecar.operate.problems import missing_settings, no_such_setting, problems_of
from sidecar.process.addresses import is_loopback, parse_base_url
from sidecar.process.blocking import BlockingThread
from sidecar.spans.span import SGP_ROUTE

FILES_S = 1.0  # how long the disk may take

log = structlog.get_logger()


async def warn(settings: Settings, environ: Mapping[str, str]) -> None:
    """Log all that may be a mistake, without the values of variables: they may be secrets."""
    nothing = missing_settings(settings.config).get("")
    for text in (
        *settings.mistakes,
        *([nothing] if nothing else []),
        *warnings_of(settings.config, environ),
    ):
        log.warning("config_warning", text=text)
    files = BlockingThread("configured files")
    with suppress(OSError):  # of a disk that hangs; whoever needs it says so
        found = await files.call(lambda: list(problems_of(settings)), limit_s=FILES_S)
        for text in found:
            log.warning("config_warning", text=text)
    files.close()
    for name, nearest in unknown_variables(environ).items():
        text = no_such_setting(name, nearest)
        log.warning("unknown_variable", variable=name, nearest=nearest, text=text)


def warnings_of(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    """The warnings about `config`; `environ`: the pod's variables."""
    yield from _open_to_others(config.listener)
    others = [each.title for each in UPSTREAMS if each.lane & SGP_ROUTE and each.enabled(config)]
    if config.sgp.missing and others and passes_through(config):
        yield (
            "sgp is off: with listener.pass_through, what its SDK sends with a key goes to SGP, "
            f"and not to {' and '.join(others)}; with sgp.relay = true, it goes to all of them"
        )
    secure = set()
    for name in reached(config):
        section = upstreams(config)[name]
        url, key = parse_base_url(section.url), f"{name}.{section.url_key}"
        files = certificate_files(name, config)
        if url.scheme != "https" and any(files):
            yield f"{key} is not https: {name}'s files with certificates are not used"
        if url.scheme == "https" and not files.ca:
            secure.add(name)
        proxy = None
        with suppress(ConfigError):  # which stops the start
            proxy = proxy_of(name, config, environ)
        if proxy is not None and is_loopback(url.host):
            where = "network.no_proxy" if config.network.no_proxy else "NO_PROXY"
            yield (
                f"{key} is on this machine, but {proxy.source} sends what is for it to "
                f"the proxy {proxy}: add {url.host} to {where}"
            )
    if secure:
        yield from missing_system_files(environ)


def _open_to_others(listener: ListenerConfig) -> Iterator[str]:
    """The agents' port asks for no credential, so its address decides who can use it."""
    hosts = [host or '""' for host in listener.hosts if not is_loopback(host)]
    if not hosts:
        return
    are = "is not a loopback address" if len(hosts) == 1 else "are not loopback addresses"
    more = ", and use SGP's whole API through it" if listener.pass_through else ""
    yield (
        f"listener.hosts: {', '.join(hosts)} {are}: whoever reaches the agents' port can, without "
        f"any credential, write and replace spans in your accounts{more}"
    )

"""What a configuration allows although it may surprise: warnings, one sentence each."""

from collections.abc import Iterator, Mapping

from sidecar.config import Config, ListenerConfig
from sidecar.lanes import certificate_files, proxy_of, reached
from sidecar.network.certificates import missing_system_files
from sidecar.process.addresses import is_loopback, parse_base_url


def warnings_of(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    """The warnings about `config`; `environ`: the pod's variables. Raises `ConfigError`."""
    yield from _open_to_others(config.listener)
    secure = set()
    for name in reached(config):
        url = parse_base_url(getattr(config, name).base_url)
        files = certificate_files(name, config)
        if url.scheme != "https" and any(files):
            yield f"{name}.base_url is not https: {name}'s files with certificates are not used"
        if url.scheme == "https" and not files.ca:
            secure.add(name)
        proxy = proxy_of(name, config, environ)
        if proxy is not None and is_loopback(url.host):
            where = "network.no_proxy" if config.network.no_proxy else "NO_PROXY"
            yield (
                f"{name}.base_url is on this machine, but {proxy.source} sends what is for it to "
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

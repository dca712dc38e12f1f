"""`sidecar check`: prints the configuration as it applies, and tells what is wrong with it."""

import asyncio
from collections.abc import Mapping

from sidecar.config import Config, redacted
from sidecar.config_load import did_you_mean, unknown_variables
from sidecar.lanes import NO_UPSTREAM, UPSTREAMS, certificate_files, proxy_of, reached
from sidecar.network.certificates import load_context
from sidecar.operate import reach
from sidecar.operate.warnings import warnings_of
from sidecar.process.terminal import complain, show


def check(config: Config, environ: Mapping[str, str], *, probe: bool) -> bool | None:
    """Print `config`, and try out the upstreams (`probe`); whether they can be reached.

    None: the configuration is invalid. Raises `ConfigError`, or `CertificateError`.
    """
    for section, values in redacted(config).items():
        show(f"[{section}]")
        for key, value in values.items():
            show(f"  {key} = {value!r}")
    enabled = [each.name for each in UPSTREAMS if each.enabled(config)]
    how = {name: _how(name, config, environ) for name in reached(config)}
    for name in (each.name for each in UPSTREAMS):
        show(f"{name}: {how[name] if name in enabled else 'off'}")
    for text in warnings_of(config, environ):
        complain(f"warning: {text}")
    unknown = unknown_variables(environ)
    for name, nearest in unknown.items():
        complain(f"{name}: no such setting{did_you_mean(nearest)}")
    if not enabled:
        complain(NO_UPSTREAM)
    if unknown or not enabled:
        return None
    return not probe or asyncio.run(reach.probe(config, environ))


def _how(name: str, config: Config, environ: Mapping[str, str]) -> str:
    files = certificate_files(name, config)
    if any(files):
        load_context(name, files)
    proxy = proxy_of(name, config, environ)
    return "on" if proxy is None else f"on, through the proxy {proxy} ({proxy.source})"

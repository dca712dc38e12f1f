"""Whether the ports can be used, and whose they are if not."""

import asyncio
import errno
from collections.abc import Iterator, Mapping, Sequence

from sidecar.config import Config
from sidecar.config_load import Key, Settings, said
from sidecar.operate.top import TIMEOUT_S, Sidecar, Unreachable
from sidecar.process.addresses import ListenError, bracketed, listen
from sidecar.process.blocking import within


def ports_of(config: Config) -> Iterator[tuple[str, Sequence[str | None], int]]:
    """The section of each port, the hosts to listen on (None: all), and the port.

    The agents' port is last: events may arrive as soon as it is open.
    """
    yield "admin", [config.admin.host or None], config.admin.port
    yield "listener", config.listener.hosts, config.listener.port


def why_not(section: str, error: ListenError, origins: Mapping[Key, str]) -> str:
    """A sentence about a port that can't be opened; it names the key, and what to do."""
    key, what = "port", f"set another port, for example with SIDECAR_{section.upper()}__PORT"
    if error.twice:
        key, what = "hosts", "another of the hosts has this address already: remove one of them"
    elif error.number == errno.EADDRINUSE:
        what = f"end the process that uses it, or {what}"
    elif error.number in {errno.EACCES, errno.EPERM}:
        what = f"only root can use it here, so {what}"
    else:
        key = "hosts" if section == "listener" else "host"
        what = "give an address of this machine, such as 127.0.0.1 or ::1"
    return said(((section, key),), f"{error}: {what}", origins)


async def try_out(settings: Settings) -> tuple[list[str], list[str]]:
    """Take each port for a moment; returns a sentence about each one that can't be taken.

    First those that another process has, then those that nobody could have.
    """
    in_use: list[str] = []
    impossible: list[str] = []
    for section, hosts, port in ports_of(settings.config):
        if any(section == mistaken for mistaken, _ in settings.mistaken):
            continue
        try:
            servers, _ = await listen(asyncio.Protocol, hosts, port, serve=False)
        except ListenError as error:
            of_others = error.number == errno.EADDRINUSE and not error.twice
            found = in_use if of_others else impossible
            found.append(why_not(section, error, settings.origins))
        else:
            for server in servers:
                server.close()
    return in_use, impossible


def sidecar_at(config: Config) -> bool:
    """Whether a sidecar responds at the admin port that is configured."""
    host = config.admin.host
    host = "127.0.0.1" if host in {"", "0.0.0.0", "::"} else host  # noqa: S104
    sidecar = Sidecar(f"http://{bracketed(host)}:{config.admin.port}")
    try:
        report = within(TIMEOUT_S, sidecar.report)
    except (Unreachable, TimeoutError):  # whoever is there may also respond without an end
        return False
    return isinstance(report, Mapping) and "sinks" in report

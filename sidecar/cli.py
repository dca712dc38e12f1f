"""The command line: parses the arguments, runs one command and returns its exit code.

Exit codes: 0 success; 1 accepted writes were lost, an upstream can't be reached or refuses the
credential (`check --probe`), a dead letter was not delivered (`replay`) or could not be read
(`replay`, `explain`), nothing is known about the span (`explain`), the archive is not complete or
not written (`debug`), or a command other than `top` was cut short because the reader of its output
was gone; 2 invalid configuration or arguments; 3 no sidecar responds (`top --once`, `explain`,
`debug`).
"""

import argparse
import asyncio
import gc
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NoReturn

import uvloop

from sidecar import __version__
from sidecar.app import App
from sidecar.config import AdminConfig, ConfigError
from sidecar.config_load import FILE_VARIABLE, Settings, environment, load, read
from sidecar.lanes import UPSTREAMS
from sidecar.network.certificates import CertificateError
from sidecar.operate import explain, top
from sidecar.operate.check import check
from sidecar.operate.problems import without_unusable_proxies
from sidecar.operate.warnings import warn
from sidecar.process import descriptors, signals
from sidecar.process.addresses import parse_base_url
from sidecar.process.log_writer import LogWriter
from sidecar.process.terminal import (
    close_unwritable_streams,
    complain,
    open_closed_streams,
    show_traceback,
    visible,
)
from sidecar.process.watchdog import Watchdog
from sidecar.shutdown import OVERDUE_S
from sidecar.telemetry import logs

LOST = UNREACHABLE = 1
USAGE = 2
# Bounds of `top --every`.
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.1, 3600.0

_ADMIN_PORT = "SIDECAR_ADMIN__PORT"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    sys.excepthook = show_traceback
    open_closed_streams()
    try:
        return _command(argv)
    except BrokenPipeError:
        return LOST  # cut short, because nobody reads what it prints
    finally:
        close_unwritable_streams()


def _command(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.run is not _run:
        signals.unblock()
    try:
        return int(arguments.run(arguments))
    except (ConfigError, CertificateError) as error:
        _complain(error)
        return USAGE


def _complain(error: Exception) -> None:
    for text in error.mistakes if isinstance(error, ConfigError) else [str(error)]:
        complain(text)


class Command(argparse.ArgumentParser):
    """Parses the arguments of one command, or of all."""

    def error(self, message: str) -> NoReturn:
        """Exit with the usage; `message` has arguments in it as they were given."""
        super().error(visible(message))


def _parser() -> Command:
    parser = Command(
        prog="sidecar", description="Forward span events from agents to Agentex, SGP and OTLP."
    )
    parser.add_argument("--version", action="version", version=f"sidecar {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Command:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    def with_config(added: Command) -> None:
        added.add_argument(
            "--config",
            metavar="FILE",
            default=os.environ.get(FILE_VARIABLE),
            help=f"TOML file (default: ${FILE_VARIABLE}); SIDECAR_<SECTION>__<KEY> overrides a key",
        )

    def with_url(added: Command) -> None:
        # In the sidecar's own container, the variable is the one that it runs with.
        port = os.environ.get(_ADMIN_PORT) or AdminConfig().port
        added.add_argument(
            "--url",
            default=f"http://127.0.0.1:{port}",
            type=_http_url,
            help="URL of the sidecar's admin port (default: %(default)s)",
        )

    with_config(command("run", _run, "accept span events and forward them until SIGTERM"))
    check_ = command("check", _check, "validate the configuration and print it, without secrets")
    check_.add_argument(
        "--probe", action="store_true", help="also try out the way to each upstream, and its key"
    )
    with_config(check_)
    demo = command("demo", _demo, "run a sample agent, a sidecar and stand-ins for both upstreams")
    demo.add_argument("--forever", action="store_true", help="run until Ctrl-C")
    demo.add_argument("--outage", action="store_true", help="let one upstream fail for a while")
    top_ = command("top", _top, "show a sidecar's status in the terminal, and keep it up to date")
    with_url(top_)
    top_.add_argument(
        "--once",
        action="store_true",
        help="show it once and exit: 1 if writes are being lost, 3 if no sidecar responds",
    )
    top_.add_argument("--json", action="store_true", help="print JSON, one object per line")
    top_.add_argument(
        "--every",
        metavar="S",
        default=1.0,
        type=_interval,
        help="refresh interval in seconds (default: %(default)s)",
    )
    replay_ = command("replay", _replay, "resend dead letters, or list them")
    replay_.add_argument("file", metavar="FILE", help="the file at dead_letters.path, or FILE.1")
    replay_.add_argument(
        "--sink", choices=[each.name for each in UPSTREAMS], help="only this sink's dead letters"
    )
    replay_.add_argument("--dry-run", action="store_true", help="list them without their content")
    to = "resend through the sidecar at this URL"
    replay_.add_argument("--to", metavar="URL", type=_http_url, help=to)
    with_config(replay_)
    explain_ = command("explain", _explain, "show what happened to a span, without its content")
    explain_.add_argument("id", metavar="ID", help="the id of a span or a trace")
    with_url(explain_)
    explain_.add_argument("--json", action="store_true", help="print JSON")
    with_config(explain_)
    debug_ = command("debug", _debug, "make an archive to attach to an issue, without content")
    with_url(debug_)
    debug_.add_argument(
        "--output",
        metavar="FILE",
        default="",
        help="the archive's path, - for standard output (default: a new file in this directory)",
    )
    with_config(debug_)
    return parser


def _explain(arguments: argparse.Namespace) -> int:
    letters = load(arguments.config, environment()).dead_letters.path
    return explain.run(arguments.id, arguments.url, letters, as_json=arguments.json)


def _check(arguments: argparse.Namespace) -> int:
    environ = environment()
    good = check(read(arguments.config, environ), environ, probe=arguments.probe)
    return USAGE if good is None else 0 if good else UNREACHABLE


def _run(arguments: argparse.Namespace) -> NoReturn:
    watchdog = Watchdog()
    watchdog.start()
    environ = environment()
    settings = read(arguments.config, environ)
    stop = settings.config.pod.wrong_variables == "stop"
    if settings.stopping or (stop and settings.mistakes):
        raise ConfigError(*settings.mistakes)
    if not stop:
        settings = without_unusable_proxies(settings, environ)
    descriptors.raise_limit()
    log_writer = logs.start(settings.config.log, settings.config.pod)
    try:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        code = runner.run(_serve(settings, environ, watchdog, log_writer))
    except (ConfigError, CertificateError) as error:
        _complain(error)
        code = USAGE
    except BaseException as bug:  # noqa: BLE001 (a bug on the path ends the process: D13)
        show_traceback(type(bug), bug, bug.__traceback__)
        code = LOST
    _end(code, log_writer)


def _end(code: int, log_writer: LogWriter) -> NoReturn:
    """End the process now: whatever still hangs on another thread must not hold it up (D28)."""
    log_writer.drain(logs.DRAIN_S)
    os._exit(code)


async def _serve(
    settings: Settings, environ: Mapping[str, str], watchdog: Watchdog, log_writer: LogWriter
) -> int:
    config = settings.config
    await warn(settings, environ)
    app = App(config, environ, log_writer, settings.mistakes)

    def overdue() -> None:
        code = LOST
        try:
            code = 0 if app.shutdown.overdue() else LOST
        finally:  # whatever it finds in the middle of a change
            _end(code, log_writer)

    stop = partial(asyncio.get_running_loop().call_soon_threadsafe, app.stop)
    watchdog.attach(stop, overdue, (config.shutdown.grace_s + OVERDUE_S, OVERDUE_S))
    # Objects that live as long as the process need not be scanned in every collection.
    gc.collect()
    gc.freeze()
    return 0 if await app.run() else LOST


def _demo(arguments: argparse.Namespace) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # its lines are for reading as they come
    # `run` must not load the demo.
    from sidecar.demo.run import run_demo  # noqa: PLC0415

    return asyncio.run(run_demo(forever=arguments.forever, outage=arguments.outage))


def _http_url(text: str) -> str:
    with suppress(ValueError):
        if "@" not in text and parse_base_url(text):  # errors repeat the URL: no password in it
            return text
    raise argparse.ArgumentTypeError("expected http://HOST:PORT, without a user name")


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not MIN_INTERVAL_S <= seconds <= MAX_INTERVAL_S:
        raise argparse.ArgumentTypeError(f"expected {MIN_INTERVAL_S} to {MAX_INTERVAL_S} seconds")
    return seconds


def _top(arguments: argparse.Namespace) -> int:
    once, as_json = arguments.once, arguments.json
    return top.top(arguments.url, once=once, as_json=as_json, every_s=arguments.every)


def _replay(arguments: argparse.Namespace) -> int:
    # `run` must not load this: it imports aiohttp.
    from sidecar.operate import replay_command  # noqa: PLC0415

    environ = environment()
    config = load(arguments.config, environ)
    logs.configure(config.log)
    return replay_command.run(
        arguments.file,
        arguments.sink,
        to=arguments.to,
        dry_run=arguments.dry_run,
        config=config,
        environ=environ,
    )


def _debug(arguments: argparse.Namespace) -> int:
    # `run` need not load this: it imports tarfile.
    from sidecar.operate import debug  # noqa: PLC0415

    return debug.run(arguments.url, arguments.output, arguments.config, environment())

"""The command line: arguments -> Config -> exit code.

Exit codes: 0 done; 1 something accepted was lost, or not every dead letter got through; 2 the
configuration or the arguments can't be used; 3 (`top --once`, `explain`) no sidecar answers.
`explain`: 1 nothing is known of the span.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

import uvloop

from sidecar import __version__, logs
from sidecar.app import App
from sidecar.config import Config, ConfigError, public
from sidecar.config_load import load
from sidecar.lanes import NO_UPSTREAM, agentex_on, sgp_on
from sidecar.operate import explain, top

LOST = 1
USAGE = 2
# `top --every`: not a busy loop, and not one that looks dead.
MIN_S, MAX_S = 0.1, 3600.0

Command = argparse.ArgumentParser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except ConfigError as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sidecar", description="Forwards span events from agents to Agentex and SGP."
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
            default=os.environ.get("SIDECAR_CONFIG"),
            help="a TOML file (default: $SIDECAR_CONFIG); SIDECAR_<SECTION>__<KEY> wins over it",
        )

    with_config(command("run", _run, "take span events and forward them, until SIGTERM"))
    with_config(
        command("check", _check, "say what the configuration means, and whether it can be used")
    )
    demo = command("demo", _demo, "run a sample agent, a sidecar and stand-ins for both upstreams")
    demo.add_argument("--forever", action="store_true", help="go on until Ctrl-C")
    top_ = command("top", _top, "show a sidecar's status in the terminal, refreshing")
    top_.add_argument(
        "--url",
        default="http://127.0.0.1:9318",
        type=_http_url,
        help="its admin port (default: %(default)s)",
    )
    top_.add_argument(
        "--once", action="store_true", help="show it once; exit code 1: losing, 3: away"
    )
    top_.add_argument("--json", action="store_true", help="as JSON, an object a line")
    top_.add_argument(
        "--every", metavar="S", default=1.0, type=_seconds, help="seconds (default: %(default)s)"
    )
    replay_ = command("replay", _replay, "send dead letters again, or only list them")
    replay_.add_argument("file", metavar="FILE", help="what dead_letters.path says, or FILE.1")
    replay_.add_argument("--sink", choices=["agentex", "sgp"], help="only what this one refused")
    replay_.add_argument("--dry-run", action="store_true", help="list them, without content")
    replay_.add_argument("--to", metavar="URL", help="through the sidecar that listens there")
    with_config(replay_)
    explain_ = command("explain", _explain, "say what became of a span, without its content")
    explain_.add_argument("span_id", metavar="SPAN_ID")
    explain_.add_argument(
        "--url",
        default="http://127.0.0.1:9318",
        help="the sidecar's admin port (default: %(default)s)",
    )
    explain_.add_argument("--json", action="store_true", help="for scripts")
    with_config(explain_)
    return parser


def _explain(arguments: argparse.Namespace) -> int:
    letters = load(arguments.config, os.environ).dead_letters.path
    return explain.run(arguments.span_id, arguments.url, letters, as_json=arguments.json)


def _check(arguments: argparse.Namespace) -> int:
    config = load(arguments.config, os.environ)
    for section, values in public(config).items():
        print(f"[{section}]")
        for key, value in values.items():
            print(f"  {key} = {value!r}")
    on = {"agentex": agentex_on(config), "sgp": sgp_on(config)}
    for sink, is_on in on.items():
        print(f"{sink}: {'on' if is_on else 'off'}")
    if not any(on.values()):
        print(f"sidecar: {NO_UPSTREAM}", file=sys.stderr)
        return USAGE
    return 0


def _run(arguments: argparse.Namespace) -> int:
    config = load(arguments.config, os.environ)
    logs.configure(config.log)
    return uvloop.run(_serve(config, os.environ))


async def _serve(config: Config, environ: Mapping[str, str]) -> int:
    app = App(config, environ)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stop)
    return 0 if await app.run() else LOST


def _demo(arguments: argparse.Namespace) -> int:
    # Not imported by a sidecar at work.
    from sidecar.demo.run import run_demo  # noqa: PLC0415

    return asyncio.run(run_demo(forever=arguments.forever))


def _http_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError("expected http://HOST:PORT")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not MIN_S <= seconds <= MAX_S:
        raise argparse.ArgumentTypeError(f"expected {MIN_S} to {MAX_S} seconds")
    return seconds


def _top(arguments: argparse.Namespace) -> int:
    once, as_json = arguments.once, arguments.json
    return top.top(arguments.url, once=once, as_json=as_json, every_s=arguments.every)


def _replay(arguments: argparse.Namespace) -> int:
    # Nor is this, which brings aiohttp.
    from sidecar.operate import replay  # noqa: PLC0415

    config = load(arguments.config, os.environ)
    logs.configure(config.log)
    if arguments.dry_run:
        for line in replay.listing(arguments.file, arguments.sink):
            print(line)
        return 0
    if arguments.to:
        done = asyncio.run(replay.through(arguments.file, arguments.sink, arguments.to))
    else:
        done = asyncio.run(replay.directly(arguments.file, arguments.sink, config, os.environ))
    print(", ".join(f"{name} {count}" for name, count in sorted(done.items())) or "no letters")
    if done["off"]:
        hint = "that upstream is off in this configuration: give --config, or --to URL"
        print(f"sidecar: {done['off']} not sent: {hint}", file=sys.stderr)
    failed = done.total() - done["accepted"] - done["forwarded"] - done["skipped"]
    return LOST if failed else 0

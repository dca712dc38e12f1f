"""The command line: arguments -> Config -> exit code.

Exit codes: 0 done; 1 something accepted was lost; 2 the configuration can't be used.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence

import uvloop

from sidecar import __version__, logs
from sidecar.app import App
from sidecar.config import Config, ConfigError, load, public
from sidecar.lane import agentex_on, sgp_on

LOST = 1
USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        config = load(arguments.config, os.environ)
        if arguments.command == "check":
            return _check(config)
        logs.configure(config.log)
        return uvloop.run(_run(config, os.environ))
    except ConfigError as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sidecar", description="Forwards span events from agents to Agentex and SGP."
    )
    parser.add_argument("--version", action="version", version=f"sidecar {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("run", "take span events and forward them, until SIGTERM"),
        ("check", "say what the configuration means, and whether it can be used"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--config",
            metavar="FILE",
            default=os.environ.get("SIDECAR_CONFIG"),
            help="a TOML file (default: $SIDECAR_CONFIG); SIDECAR_<SECTION>__<KEY> wins over it",
        )
    return parser


def _check(config: Config) -> int:
    for section, values in public(config).items():
        print(f"[{section}]")
        for key, value in values.items():
            print(f"  {key} = {value!r}")
    on = {"agentex": agentex_on(config), "sgp": sgp_on(config)}
    for sink, is_on in on.items():
        print(f"{sink}: {'on' if is_on else 'off'}")
    if not any(on.values()):
        print("sidecar: no upstream is on", file=sys.stderr)
        return USAGE
    return 0


async def _run(config: Config, environ: Mapping[str, str]) -> int:
    app = App(config, environ)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stop)
    return 0 if await app.run() else LOST

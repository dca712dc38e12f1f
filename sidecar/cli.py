"""The command line: parses the arguments, runs one command and returns its exit code.

Exit codes: 0 success; 1 accepted writes were lost, a dead letter was not delivered (`replay`) or
could not be read (`replay`, `explain`), or nothing is known about the span (`explain`); 2 invalid
configuration or arguments; 3 no sidecar responds (`top --once`, `explain`).
"""

import argparse
import asyncio
import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import uvloop

from sidecar import __version__, logs
from sidecar.app import App
from sidecar.config import Config, ConfigError, redacted
from sidecar.config_load import load
from sidecar.lanes import NO_UPSTREAM, UPSTREAMS
from sidecar.operate import explain, letters, top

LOST = 1
USAGE = 2
# Bounds of `top --every`.
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.1, 3600.0

# Why `replay` does not send some letters, by outcome.
_NOT_SENT = {
    "off": "that upstream is not enabled in this configuration: pass --config, or --to URL",
    "other_account": "they belong to another account than the one in use",
    "skipped": "open writes are not sent where they could replace a finished span",
}

Command = argparse.ArgumentParser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except ConfigError as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sidecar", description="Forward span events from agents to Agentex and SGP."
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
            help="TOML file (default: $SIDECAR_CONFIG); SIDECAR_<SECTION>__<KEY> overrides a key",
        )

    with_config(command("run", _run, "accept span events and forward them until SIGTERM"))
    with_config(
        command("check", _check, "validate the configuration and print it, without secrets")
    )
    demo = command("demo", _demo, "run a sample agent, a sidecar and stand-ins for both upstreams")
    demo.add_argument("--forever", action="store_true", help="run until Ctrl-C")
    top_ = command("top", _top, "show a sidecar's status in the terminal, and keep it up to date")
    top_.add_argument(
        "--url",
        default="http://127.0.0.1:9318",
        type=_http_url,
        help="URL of its admin port (default: %(default)s)",
    )
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
    replay_.add_argument("--to", metavar="URL", help="resend through the sidecar at this URL")
    with_config(replay_)
    explain_ = command("explain", _explain, "show what happened to a span, without its content")
    explain_.add_argument("span_id", metavar="SPAN_ID")
    explain_.add_argument(
        "--url",
        default="http://127.0.0.1:9318",
        help="URL of the sidecar's admin port (default: %(default)s)",
    )
    explain_.add_argument("--json", action="store_true", help="print JSON")
    with_config(explain_)
    return parser


def _explain(arguments: argparse.Namespace) -> int:
    letters = load(arguments.config, os.environ).dead_letters.path
    return explain.run(arguments.span_id, arguments.url, letters, as_json=arguments.json)


def _check(arguments: argparse.Namespace) -> int:
    config = load(arguments.config, os.environ)
    for section, values in redacted(config).items():
        print(f"[{section}]")
        for key, value in values.items():
            print(f"  {key} = {value!r}")
    enabled = {each.name: each.enabled(config) for each in UPSTREAMS}
    for sink, is_enabled in enabled.items():
        print(f"{sink}: {'on' if is_enabled else 'off'}")
    if not any(enabled.values()):
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
    # Objects that live as long as the process need not be scanned in every collection.
    gc.collect()
    gc.freeze()
    return 0 if await app.run() else LOST


def _demo(arguments: argparse.Namespace) -> int:
    # `run` must not load the demo.
    from sidecar.demo.run import run_demo  # noqa: PLC0415

    return asyncio.run(run_demo(forever=arguments.forever))


def _http_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError("expected http://HOST:PORT")
    return text


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
    from sidecar.operate import replay  # noqa: PLC0415

    config = load(arguments.config, os.environ)
    logs.configure(config.log)
    file, sink = arguments.file, arguments.sink
    if arguments.dry_run:
        done = Counter[str]()
        for letter in letters.read(file, sink, done):
            print(letter)
    elif arguments.to:
        done = asyncio.run(replay.through(file, sink, arguments.to))
    else:
        done = asyncio.run(replay.directly(file, sink, config, os.environ))
    done = +done  # without zeros
    if done or not arguments.dry_run:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(done.items()))
        print(counts or "no letters", file=sys.stderr if arguments.dry_run else sys.stdout)
    for outcome, hint in _NOT_SENT.items():
        if done[outcome]:
            print(f"sidecar: {done[outcome]} not sent: {hint}", file=sys.stderr)
    return LOST if done.keys() - {"accepted", "forwarded", "skipped"} else 0

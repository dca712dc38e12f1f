"""`sidecar replay`: runs it, and prints what became of the letters."""

import asyncio
from collections import Counter
from collections.abc import Mapping

from sidecar.config import Config
from sidecar.operate import letters, replay
from sidecar.process.terminal import complain, show

DELIVERED, NOT_DELIVERED = 0, 1

# Why some letters are not sent, by outcome.
_NOT_SENT = {
    "off": "that upstream is not enabled in this configuration: pass --config, or --to URL",
    "other_account": "they belong to another account than the one in use",
    "hidden": "their upstream must not see all of them, and at the others they would replace the "
    "whole span: leave out --to",
    "skipped": "open writes are not sent where they could replace a finished span",
}


def run(
    file: str,
    sink: str | None,
    *,
    to: str | None,
    dry_run: bool,
    config: Config,
    environ: Mapping[str, str],
) -> int:
    """List the letters in `file`, or send them; returns the exit code."""
    if dry_run:
        done = Counter[str]()
        for letter in letters.read(file, sink, done):
            show(str(letter))
    elif to:
        done = asyncio.run(replay.through(file, sink, to))
    else:
        done = asyncio.run(replay.directly(file, sink, config, environ))
    done = +done  # without zeros
    if done or not dry_run:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(done.items()))
        show(counts or "no letters", to_stderr=dry_run)
    for outcome, hint in _NOT_SENT.items():
        if done[outcome]:
            complain(f"{done[outcome]} not sent: {hint}")
    failed = done.keys() - {"accepted", "forwarded", "skipped"}
    return NOT_DELIVERED if failed else DELIVERED

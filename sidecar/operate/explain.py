"""What happened to one span: `sidecar explain SPAN_ID`.

Combines a running sidecar's ring of recent decisions, what it holds now (`/explain` on the admin
port), and the dead-letter file. Never shows content.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

from sidecar.lanes import Lane
from sidecar.queue.open_spans import OpenSpans
from sidecar.telemetry.recent import Recent

# Exit codes.
KNOWN, UNKNOWN, NO_SIDECAR = 0, 1, 3
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Explainer:
    """Explains spans of one running sidecar; `clock` is loop time in seconds."""

    recent: Recent
    open_spans: OpenSpans
    lanes: Sequence[Lane]
    clock: Callable[[], float]

    def about(self, id_: str) -> dict[str, Any]:
        """Return `{"id", "start", "lanes": {sink: …}, "recent": [{"ago_s", "what", …}]}`.

        `start` says where its START is kept, or is null. A sink's value says what a write of the
        span is waiting for in memory, or is null.
        """
        now = self.clock()
        return {
            "id": id_,
            "start": self.open_spans.state_of(id_),
            "lanes": {lane.sink.name: lane.drain.waits_for(id_) for lane in self.lanes},
            "recent": [
                {"ago_s": round(now - at, 3), "what": what, "sink": sink, "detail": detail}
                for at, _, what, sink, detail in self.recent.about(id_)
            ],
        }


def run(id_: str, url: str, dead_letters: str, *, as_json: bool) -> int:
    """Query the sidecar at `url` and the dead-letter file, print, and return the exit code."""
    try:
        known = _ask(url, id_)
    except (URLError, HTTPException, OSError, ValueError) as error:
        print(f"sidecar: {url}: {_why(error)}", file=sys.stderr)
        return NO_SIDECAR
    known["dead_letters"] = list(_letters(dead_letters, id_))
    if as_json:
        print(json.dumps(known, indent=2))
    else:
        print("\n".join(_lines(known)))
    return KNOWN if _is_known(known) else UNKNOWN


def _ask(url: str, id_: str) -> dict[str, Any]:
    # No proxy: the sidecar is in the same pod or reached through a port forward.
    opener = build_opener(ProxyHandler({}))
    target = f"{url.rstrip('/')}/explain?id={quote(id_, safe='')}"
    with opener.open(target, timeout=TIMEOUT_S) as response:
        known: dict[str, Any] = json.load(response)
        return known


def _why(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__


def _letters(path: str, id_: str) -> Iterator[str]:
    from sidecar.operate.replay import listing  # noqa: PLC0415 (it loads aiohttp)

    for each in (f"{path}.1", path) if path else ():
        if Path(each).exists():
            yield from (line for line in listing(each, None) if line.endswith(f"  {id_}"))


def _lines(known: Mapping[str, Any]) -> Iterator[str]:
    yield f"span {known['id']}"
    for each in known["recent"]:
        yield f"  {each['ago_s']:>10.3f} s ago  {each['sink']:8} {each['what']} ({each['detail']})"
    if known["start"]:
        yield f"  now: its START is {known['start']}"
    for sink, waits in known["lanes"].items():
        if waits:
            more = ""
            if "next_attempt_s" in waits:
                more = f" in {waits['next_attempt_s']} s, after {waits['failures']} failures"
            yield f"  now: {sink} is waiting for {waits['waits_for']}{more}"
    yield from (f"  dead letter: {line}" for line in known["dead_letters"])
    if not _is_known(known):
        yield "  unknown: it never arrived here, or it was settled long ago"


def _is_known(known: Mapping[str, Any]) -> bool:
    in_sidecar = known["recent"] or known["start"] or any(known["lanes"].values())
    return bool(in_sidecar or known["dead_letters"])

"""What became of a span: `sidecar explain SPAN_ID`.

From a running sidecar's ring of recent decisions and from what it holds now (`/explain` on the
admin port), and from the dead-letter file. Never any content.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

from sidecar.lanes import Lane
from sidecar.queue.open_spans import OpenSpans
from sidecar.telemetry.recent import Recent

KNOWN, UNKNOWN, AWAY = 0, 1, 3
TIMEOUT_S = 10.0


class Explainer:
    """Answers for one running sidecar; `clock` is loop time in seconds."""

    def __init__(
        self,
        recent: Recent,
        open_spans: OpenSpans,
        lanes: Sequence[Lane],
        clock: Callable[[], float],
    ) -> None:
        self._recent = recent
        self._open_spans = open_spans
        self._lanes = lanes
        self._clock = clock

    def about(self, id_: str) -> dict[str, Any]:
        """`{"id", "start", "lanes": {sink: …}, "recent": [{"ago_s", "what", "sink", "detail"}]}`.

        `start` says where its START is kept, null for nowhere; a sink's value says what a write of
        the span waits for in memory, null where none does.
        """
        now = self._clock()
        return {
            "id": id_,
            "start": self._open_spans.state_of(id_),
            "lanes": {lane.sink.name: lane.drain.waits_for(id_) for lane in self._lanes},
            "recent": [
                {
                    "ago_s": round(now - each.at, 3),
                    "what": each.what,
                    "sink": each.sink,
                    "detail": each.detail,
                }
                for each in self._recent.about(id_)
            ],
        }


def run(id_: str, url: str, dead_letters: str, *, as_json: bool) -> int:
    """Ask the sidecar at `url`, look into the dead-letter file, print; the exit code."""
    try:
        known = _ask(url, id_)
    except (URLError, HTTPException, OSError, ValueError) as error:
        print(f"sidecar: {url}: {_why(error)}", file=sys.stderr)
        return AWAY
    known["dead_letters"] = list(_letters(dead_letters, id_))
    if as_json:
        print(json.dumps(known, indent=2))
    else:
        print("\n".join(_lines(known)))
    return KNOWN if _is_known(known) else UNKNOWN


def _ask(url: str, id_: str) -> dict[str, Any]:
    # A sidecar is in the same pod, or behind a port forward: never behind a proxy.
    opener = build_opener(ProxyHandler({}))
    target = f"{url.rstrip('/')}/explain?id={quote(id_, safe='')}"
    with opener.open(target, timeout=TIMEOUT_S) as answer:
        known: dict[str, Any] = json.load(answer)
        return known


def _why(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__


def _letters(path: str, id_: str) -> Iterator[str]:
    from sidecar.operate.replay import listing  # noqa: PLC0415 (a daemon needs no HTTP client)

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
            yield f"  now: {sink} waits for {waits['waits_for']}{more}"
    yield from (f"  dead letter: {line}" for line in known["dead_letters"])
    if not _is_known(known):
        yield "  nothing is known of it: it never came here, or it was done with long ago"


def _is_known(known: Mapping[str, Any]) -> bool:
    here = known["recent"] or known["start"] or any(known["lanes"].values())
    return bool(here or known["dead_letters"])

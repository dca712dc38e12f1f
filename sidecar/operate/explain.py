"""What happened to a span, or to the spans of a trace: `sidecar explain ID`.

The running sidecar knows (explainer.py). If it has not read the dead letters, the command does.
Never shows content.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

from sidecar.config import ConfigError
from sidecar.operate import letters
from sidecar.operate.known import described, unknown
from sidecar.operate.letters import Letter
from sidecar.operate.timeline import LAST, summary
from sidecar.process.terminal import complain, show, show_json
from sidecar.sinks.replayed import is_in, marked_in

# Exit codes. UNKNOWN also if a dead letter could not be read: it may be about the span.
KNOWN, UNKNOWN, NO_SIDECAR = 0, 1, 3
TIMEOUT_S = 10.0


class _Found(NamedTuple):
    letter: Letter
    replayed: bool


def run(id_: str, url: str, dead_letters: str, *, as_json: bool) -> int:
    """Query the sidecar at `url` and the dead-letter file, print, and return the exit code."""
    # An argument is in the locale's encoding, an id in UTF-8.
    id_ = os.fsencode(id_).decode(errors="replace")
    try:
        answer = _ask(url, id_)
    except (URLError, HTTPException, OSError, ValueError, RecursionError) as error:
        complain(f"no sidecar responds at {url}: {_why(error)}")
        return NO_SIDECAR
    unreadable: Counter[str] = Counter()
    try:
        if answer["searched"]["dead_letters"] is not True and dead_letters:
            for found in _chosen(list(_letters(dead_letters, id_, unreadable)), answer):
                _add(found, answer)
            answer["searched"]["dead_letters"] = not unreadable
            if not answer["spans"]:
                answer["text"] = unknown(answer["remembered"], answer["searched"])
        lines = list(_lines(answer))
        certain = answer["searched"]["dead_letters"] is not False
        is_known = bool(answer["spans"])
    except (LookupError, TypeError, ValueError, AttributeError):
        complain(f"{url}: /explain is not an answer from this version of the sidecar")
        return NO_SIDECAR
    if as_json:
        show_json(answer, indent=2)
    else:
        for line in lines:
            show(line)
    return KNOWN if is_known and certain else UNKNOWN


def _ask(url: str, id_: str) -> dict[str, Any]:
    # No proxy: the sidecar is in the same pod or reached through a port forward.
    opener = build_opener(ProxyHandler({}))
    target = f"{url.rstrip('/')}/explain?id={quote(id_, safe='')}"
    with opener.open(target, timeout=TIMEOUT_S) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def _why(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error
    return getattr(cause, "strerror", None) or str(cause) or type(error).__name__


def _letters(path: str, id_: str, counts: Counter[str]) -> Iterator[_Found]:
    for each in (f"{path}.1", path):
        try:
            done = marked_in(Path(each))
            for letter in letters.read(each, None, counts):
                if id_ in letter.span.key[:2]:
                    yield _Found(letter, is_in(done, letter.place.start))
        except FileNotFoundError:
            pass
        except ConfigError as error:
            counts["unreadable"] += 1
            complain(str(error))
        except OSError as error:
            counts["unreadable"] += 1
            complain(f"{each}: {error.strerror}")


def _chosen(found: list[_Found], answer: dict[str, Any]) -> list[_Found]:
    """The letters about the span with the id; about those of the trace if there is no such span."""
    of_span = [each for each in found if each.letter.span.id == answer["id"]]
    if answer["found_by"] is None and found:
        answer["found_by"] = "span" if of_span else "trace"
    return of_span if answer["found_by"] == "span" else found


def _add(found: _Found, answer: dict[str, Any]) -> None:
    """Add a letter to its span, which the sidecar may not know."""
    letter, span = found.letter, found.letter.span
    shown = described(letter.head, span.kind, replayed=found.replayed)
    for known in answer["spans"]:
        if known["id"] == span.id and known["trace_id"] in {None, span.trace_id}:
            known["dead_letters"].append(shown)
            return
    answer["spans"].append(
        {
            "id": span.id,
            "trace_id": span.trace_id,
            "account": letter.head.account or None,
            "timeline": [],
            "left_off": 0,
            "start": None,
            "lanes": {},
            "on_disk": None,
            "dead_letters": [shown],
            "summary": summary([], None, {}, [], [shown]),
        }
    )


def _lines(answer: Mapping[str, Any]) -> Iterator[str]:
    if not answer["spans"]:
        yield f"unknown: {answer['text']}"
    for span in answer["spans"]:
        of = f" of account {span['account']}" if span["account"] else ""
        yield f"span {span['id']}{of}" + (f", trace {span['trace_id']}" if span["trace_id"] else "")
        for each in span["timeline"]:
            what = f"{each['sink']:8} {each['what']:12} {each['text']}"
            yield f"  {each['ago_s']:>10.3f} s ago  {what}"
        if span["left_off"]:
            yield f"  ({span['left_off']:,} more before the last {LAST})"
        for each in span["dead_letters"]:
            status = each["status"] or "-"
            since = "  replayed since" if each["replayed"] else ""
            about = f"{each['reason']:10} {status:>4}  {each['kind']}{since}"
            yield f"  dead letter: {each['time']}  {each['sink']:8} {about}"
        yield f"  now: {span['summary']}"
    if answer["left_off"]:
        yield f"{answer['left_off']:,} more spans of the trace are not shown"

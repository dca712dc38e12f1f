"""Renders a `/status` report as the lines that `sidecar top` shows. No I/O.

Fits 80 columns. Plain ASCII, except for the sparklines, which the caller asks for only where the
terminal can show them. Levels are words as well as colors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from sidecar.operate.diagnosis import BAD, NEARLY_FULL, OK, WARN, duration
from sidecar.process.terminal import visible

Json = Mapping[str, Any]

WIDTH = 80  # lines are cut in narrower terminals
UNKNOWN = "unknown"  # without /proc (macOS), the process does not know its resident memory
_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 45  # characters, 20 seconds each
_TAGS = {OK: "[ok]  ", WARN: "[warn]", BAD: "[BAD] "}
_STATES = {"not asked yet": OK, "up": OK, "throttled": WARN}
_COLORS = {OK: "32", WARN: "33", BAD: "1;31", "soft": "2", "strong": "1", "": ""}
_WHOLE_FROM = 10  # rates below this are shown with one decimal


@dataclass(frozen=True, slots=True)
class Line:
    """One line, of which the first `styled` characters (0: all) have the style `style`."""

    text: str = ""
    style: str = ""  # a key of _COLORS
    styled: int = 0

    def show(self, width: int, *, color: bool) -> str:
        """Return at most `width` columns, with no control sequences except our own colors."""
        text = visible(self.text)[:width]
        if not color or not self.style:
            return text
        at = self.styled or len(text)
        return f"\x1b[{_COLORS[self.style]}m{text[:at]}\x1b[0m{text[at:]}"


def frame(report: Json, history: Json | None) -> list[Line]:
    """Return all lines, most important first; `history` is the body of `/status/history`."""
    lines = [_head(report), _where(report)]
    for answer in report["answers"]:
        lines += _answer(answer)
    lines += [Line(), *_intake(report), Line(), *_lanes(report["sinks"]), Line()]
    lines += _accounting(report)
    if history is not None and history["next"]:
        lines += [Line(), *_sparks(report, history)]
    return lines


def _head(report: Json) -> Line:
    rss = report["memory"]["rss_bytes"]
    parts = [
        "trace sidecar",
        str(report["host"]),
        f"version {report['version']}",
        f"up {duration(report['uptime_s'])}",
        f"memory {UNKNOWN}" if rss is None else size(rss),
        f"{report['cpu']:.1%} CPU",
    ]
    return Line("  ".join(parts), "strong", len(parts[0]))


def _where(report: Json) -> Line:
    """Show what is known of the pod, or an empty line if nothing is."""
    name, namespace, node = (report["pod"][key] for key in ("name", "namespace", "node"))
    if not (name or namespace or node):
        return Line()
    before = f"{namespace}/" if namespace else ""
    behind = f" on node {node}" if node else ""
    return Line(f"pod         {before}{name or report['host']}{behind}")


def _answer(answer: Json) -> Iterator[Line]:
    tag = _TAGS[answer["level"]]
    head = f"{tag} {answer['question']:<24}"
    text = f"{answer['answer']}: {answer['detail']}"
    first, *others = wrap(text, WIDTH - len(head)) or [""]
    yield Line(head + first, answer["level"], len(tag))
    for other in others:
        yield Line(" " * len(head) + other)


def _intake(report: Json) -> Iterator[Line]:
    intake, events, queue, spool = (report[k] for k in ("intake", "events", "queue", "spool"))
    where = "on disk" if report["durability"] == "disk" else "in memory"
    yield Line(
        f"listener    {rate(intake['events_per_s'])} events/s   accepted {events['received']:,}   "
        f"refused {rate(intake['rejected_per_s'])}/s   kept {where}"
    )
    yield Line(
        f"open spans  {report['open_spans']:,} running   held {events['held']:,}   "
        f"joined {events['joined']:,}"
    )
    yield Line(f"memory      {_meter(queue)}")
    if spool is not None:
        broken = "   its disk can't be used" if spool["degraded"] else ""
        yield Line(f"spool       {_meter(spool)}{broken}", BAD if broken else "")
    yield from _rooms(report["sinks"])


def _meter(part: Json) -> str:
    share = part["bytes"] / part["limit_bytes"]
    return f"{_bar(share, 20)} {size(part['bytes'])} of {size(part['limit_bytes'])}"


def _bar(share: float, width: int) -> str:
    return f"[{'#' * round(min(1.0, share) * width):.<{width}}]"


def _rooms(sinks: Json) -> Iterator[Line]:
    """Show each lane's share of its room; the limit is the same for all."""
    if not sinks:
        return
    shares = {name: sink["lane_bytes"] / sink["lane_limit_bytes"] for name, sink in sinks.items()}
    meters = [f"{name} {_bar(share, 8)} {share:>4.0%}" for name, share in shares.items()]
    limit = size(next(iter(sinks.values()))["lane_limit_bytes"])
    level = BAD if max(shares.values()) >= NEARLY_FULL else ""
    yield Line(f"room        {'   '.join(meters)}  of {limit}", level)


def _lanes(sinks: Json) -> Iterator[Line]:
    if not sinks:
        yield Line("upstream    none is enabled", BAD)
        return
    yield Line(
        f"{'upstream':<9}{'state':<13}{'waiting':>8}{'oldest':>12}{'sent/s':>8}"
        f"{'p50':>8}{'p95':>8}{'fail/s':>7}{'limit':>6}",
        "soft",
    )
    for name, sink in sinks.items():
        state = _state(sink)
        level = _STATES.get(state, BAD)
        oldest = duration(sink["oldest_write_age_s"]) if sink["depth"] else "-"
        p50, p95 = _time(sink["request_p50_s"]), _time(sink["request_p95_s"])
        yield Line(
            f"{name:<9}{state:<13}{sink['depth']:>8,}{oldest:>12}"
            f"{rate(sink['forwarded_per_s']):>8}{p50:>8}{p95:>8}"
            f"{rate(sink['failed_requests_per_s']):>7}{sink['concurrency_limit']:>6}",
            "" if level == OK else level,
        )
        if (error := sink["last_error"]) is not None:
            text = f"{error['text']}, {duration(error['age_s'])} ago"
            wait = sink["next_attempt_s"]
            soon = f"; next attempt {f'in {duration(wait)}' if wait else 'now'}"
            for line in wrap(f"{text}{'' if level == OK else soon}", WIDTH - 2):
                yield Line(f"  {line}", "soft")
        if sink["not_taken"]:
            reasons = sink["not_taken_by_reason"].items()
            counts = ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in reasons if n)
            yield Line(f"  not taken: {counts}", WARN)
        if len(sink["accounts"]) > 1:
            yield from map(_account, sink["accounts"])


def _state(of: Json) -> str:
    known: str = of["state"].replace("not_asked", "not asked yet")
    return known if of["has_credential"] else "no credential"


def _account(account: Json) -> Line:
    state = _state(account)
    level = _STATES.get(state, BAD)
    waiting = f"  account {account['id'] or '-'}  {state}  {account['depth']:,} waiting"
    return Line(waiting, "soft" if level == OK else level)


def _accounting(report: Json) -> Iterator[Line]:
    columns = ("written", "forwarded", "superseded", "skipped", "dead", "lost", "in lane", "diff")
    keys = (*columns[:4], "dead_lettered", "lost", "depth", "imbalance")
    widths = (9, 10, 11, 8, 7, 7, 9, 6)
    heads = "".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True))
    yield Line(f"{'writes':<9}{heads}", "soft")
    for name, sink in report["sinks"].items():
        cells = "".join(f"{sink[key]:>{width},}" for key, width in zip(keys, widths, strict=True))
        bad = sink["lost"] or sink["imbalance"]
        yield Line(f"{name:<9}{cells}", BAD if bad else WARN if sink["dead_lettered"] else "")
    events = report["events"]
    text = "received + replayed - joined - held - written"
    yield Line(f"events   {text} = {events['imbalance']}", BAD if events["imbalance"] else "")


def _sparks(report: Json, history: Json) -> Iterator[Line]:
    yield Line("last 15 minutes", "soft")
    rows: list[tuple[str, str, Callable[[float], str]]] = [
        ("events/s", "events_per_s", rate),
        ("memory", "rss_bytes", size),
    ]
    for name in report["sinks"]:
        rows.append((f"{name} waiting", f"{name}.depth", "{:,.0f}".format))
        rows.append((f"{name} oldest", f"{name}.age_s", duration))
    for title, series, shown in rows:
        values = history["series"][series]
        highest = max((value for value in values if value is not None), default=None)
        spark = _spark(values, highest or 0.0, history["kept"])
        yield Line(f"{title:<16}{spark}  max {UNKNOWN if highest is None else shown(highest)}")


def _spark(values: Sequence[float | None], highest: float, kept: int) -> str:
    """Draw a sparkline, newest at the right; each character shows its samples' maximum."""
    each = kept // _SPARK_WIDTH
    padded = [None] * (kept - len(values)) + list(values)
    text = ""
    for start in range(0, kept, each):
        known = [value for value in padded[start : start + each] if value is not None]
        if not known:
            text += " "
        else:
            share = max(known) / highest if highest else 0.0
            text += _BLOCKS[min(len(_BLOCKS) - 1, int(share * len(_BLOCKS)))]
    return text


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def rate(value: float) -> str:
    """Format a rate, with one decimal below 10."""
    return f"{value:.1f}" if 0 < value < _WHOLE_FROM else f"{value:,.0f}"


def size(count: float) -> str:
    """Format a number of bytes in binary units."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count:.0f} B"

"""The tables of `sidecar top`: lanes, accounting, history. No I/O."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from sidecar.operate.causes import NEARLY_FULL
from sidecar.operate.hints import BAD, OK, WARN
from sidecar.operate.losses import RECENT_S
from sidecar.operate.top_line import UNKNOWN, WIDTH, Line, bar, rate, size
from sidecar.operate.words import ago, duration, reasons

Json = Mapping[str, Any]

_BLOCKS = "▁▂▃▄▅▆▇█"
# Characters of a sparkline. Each is 20 seconds, or 45 in a narrow terminal.
_SPARK_WIDTH, _NARROW_SPARK = 45, 20
_STATES = {"not asked yet": OK, "no answer yet": OK, "up": OK, "throttled": WARN}


def rooms(sinks: Json, width: int) -> Iterator[Line]:
    """Show each lane's share of its room; the limit is the same for all."""
    if not sinks:
        return
    shares = {name: sink["lane_bytes"] / sink["lane_limit_bytes"] for name, sink in sinks.items()}
    meters = [f"{name} {bar(share, 8)} {share:>4.0%}" for name, share in shares.items()]
    limit = size(next(iter(sinks.values()))["lane_limit_bytes"])
    level = BAD if max(shares.values()) >= NEARLY_FULL else ""
    text = f"room        {'   '.join(meters)}  of {limit}"
    if len(text) <= width:
        yield Line(text, level)
        return
    for head, meter in zip(("room", *[""] * len(meters)), meters, strict=False):
        yield Line(f"{head:<12}{meter}  of {limit}", level)


def lanes(sinks: Json, width: int) -> Iterator[Line]:
    """Show each upstream's state, what waits for it, and how fast it responds."""
    if not sinks:
        yield Line("upstream    none is enabled", BAD)
        return
    first = f"{'upstream':<9}{'state':<13}{'waiting':>8}{'oldest':>12}{'sent/s':>8}"
    second = f"{'p50':>8}{'p95':>8}{'fail/s':>7}{'limit':>6}"
    yield from _row(first, second, width, "soft")
    for name, sink in sinks.items():
        yield from _lane(name, sink, width)


def _row(first: str, second: str, width: int, style: str) -> Iterator[Line]:
    """Show a row, on two lines if it is too wide."""
    if width >= WIDTH:
        yield Line(first + second, style)
    else:
        yield Line(first, style)
        yield Line(" " * 9 + second, style)


def _lane(name: str, sink: Json, width: int) -> Iterator[Line]:
    state = sink["label"]
    level = _STATES.get(state, BAD)
    oldest = duration(sink["oldest_write_age_s"]) if sink["depth"] else "-"
    p50, p95 = _time(sink["request_p50_s"]), _time(sink["request_p95_s"])
    first = f"{name:<9}{state:<13}{sink['depth']:>8,}{oldest:>12}{rate(sink['forwarded_per_s']):>8}"
    second = f"{p50:>8}{p95:>8}{rate(sink['failed_requests_per_s']):>7}"
    second += f"{sink['concurrency_limit']:>6}"
    yield from _row(first, second, width, "" if level == OK else level)
    for text, style in _notes(sink):
        for line in wrap(text, width - 2):
            yield Line(f"  {line}", style)
    if len(sink["accounts"]) > 1:
        yield from map(_account, sink["accounts"])


def _notes(sink: Json) -> Iterator[tuple[str, str]]:
    attempt = sink["next_attempt"] if sink["has_credential"] else None
    error = sink["last_error"]
    last = f"last error {ago(error['age_s'])}: {error['text']}" if error is not None else None
    if facts := [fact for fact in (last, attempt) if fact is not None]:
        yield "; ".join(facts), "soft"
    if sink["full_in_s"] is not None:
        yield f"its room will be full in {duration(sink['full_in_s'])} at this rate", WARN
    if sink["caught_up_in_s"] is not None:
        yield f"caught up in {duration(sink['caught_up_in_s'])} at this rate", "soft"
    if sink["not_taken"]:
        yield f"not taken: {reasons(sink['not_taken_by_reason'])}", WARN


def _account(account: Json) -> Line:
    state = account["label"]
    level = _STATES.get(state, BAD)
    waiting = f"  account {account['id'] or '-'}  {state}  {account['depth']:,} waiting"
    return Line(waiting, "soft" if level == OK else level)


def accounting(report: Json, width: int) -> Iterator[Line]:
    """Show what became of the writes, and whether the events add up."""
    keys = ("written", "forwarded", "superseded", "skipped", "dead_lettered", "lost", "depth")
    columns = dict(zip((*keys, "imbalance"), (9, 10, 11, 8, 7, 7, 9, 6), strict=True))
    short = {"dead_lettered": "dead", "depth": "in lane", "imbalance": "diff"}
    heads = [f"{short.get(key, key):>{space}}" for key, space in columns.items()]
    yield from _row(f"{'writes':<9}{''.join(heads[:4])}", "".join(heads[4:]), width, "soft")
    for name, sink in report["sinks"].items():
        cells = [f"{sink[key]:>{space},}" for key, space in columns.items()]
        style = _settled(sink, report["dead_letters"]["kept"])
        yield from _row(f"{name:<9}{''.join(cells[:4])}", "".join(cells[4:]), width, style)
    events = report["events"]
    text = "received + replayed - joined - held - written"
    yield Line(f"events   {text} = {events['imbalance']}", BAD if events["imbalance"] else "")


def _settled(sink: Json, kept: int | None) -> str:
    """The level of a lane's outcomes. What is over is a number, not an alarm, as in the answers."""
    if sink["imbalance"] or _is_recent(sink["lost_age_s"]):
        return BAD
    wait = _is_recent(sink["dead_lettered_age_s"]) if kept is None else kept > 0
    return WARN if sink["dead_lettered"] and wait else ""


def _is_recent(age_s: float | None) -> bool:
    return age_s is not None and age_s < RECENT_S


def sparks(report: Json, history: Json, width: int) -> Iterator[Line]:
    """Draw the history."""
    yield Line("last 15 minutes", "soft")
    rows: list[tuple[str, str, Callable[[float], str]]] = [
        ("events/s", "events_per_s", rate),
        ("memory", "rss_bytes", size),
    ]
    for name in report["sinks"]:
        rows.append((f"{name} waiting", f"{name}.depth", "{:,.0f}".format))
        rows.append((f"{name} oldest", f"{name}.age_s", duration))
    space = _SPARK_WIDTH if width >= WIDTH else _NARROW_SPARK
    for title, series, shown in rows:
        values = history["series"][series]
        highest = max((value for value in values if value is not None), default=None)
        spark = _spark(values, highest or 0.0, history["kept"], space)
        yield Line(f"{title:<16}{spark}  max {UNKNOWN if highest is None else shown(highest)}")


def _spark(values: Sequence[float | None], highest: float, kept: int, width: int) -> str:
    """Draw a sparkline, newest at the right; each character shows its samples' maximum."""
    each = kept // width
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

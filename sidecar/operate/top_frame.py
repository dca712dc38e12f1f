"""Renders a `/status` report as the lines that `sidecar top` shows. No I/O.

Fits 80 columns, and 60 in another layout. Plain ASCII, except for the sparklines, which the caller
asks for only where the terminal can show them. Levels are words as well as colors.
"""

import re
from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any

from sidecar.operate.hints import BAD, OK, WARN
from sidecar.operate.top_line import NARROW, UNKNOWN, WIDTH, Line, bar, rate, size
from sidecar.operate.top_tables import accounting, lanes, rooms, sparks
from sidecar.operate.words import duration

Json = Mapping[str, Any]

_TAGS = {OK: "[ok]  ", WARN: "[warn]", BAD: "[BAD] "}
# The command at the end of a hint.
_COMMAND = re.compile(r": ((?:curl|sidecar) .+)$")
# A word of it, and the parts of a word; `shlex.quote` makes no others.
_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""")
_QUOTED_OR_NOT = re.compile(r"""'[^']*'|"[^"]*"|[^'"]+""")
_BEFORE_TEXT = 12  # columns of the names in front of the facts


def frame(report: Json, history: Json | None, width: int = WIDTH) -> list[Line]:
    """Return all lines, most important first; `history` is the body of `/status/history`.

    They have at most `width` columns, but are not narrower than `NARROW`.
    """
    width = max(NARROW, min(WIDTH, width))
    lines = [*_head(report, width), *_where(report, width)]
    for answer in report["answers"]:
        lines += _answer(answer, width)
    lines += [Line(), *_intake(report, width), Line(), *lanes(report["sinks"], width), Line()]
    lines += accounting(report, width)
    if history is not None and history["next"]:
        lines += [Line(), *sparks(report, history, width)]
    return lines


def _head(report: Json, width: int) -> Iterator[Line]:
    rss = report["memory"]["rss_bytes"]
    parts = [
        "trace sidecar",
        str(report["host"]),
        f"version {report['version']}",
        f"up {duration(report['uptime_s'])}",
        f"memory {UNKNOWN}" if rss is None else size(rss),
        f"{report['cpu']:.1%} CPU",
    ]
    if len("  ".join(parts)) > width:
        yield Line("  ".join(parts[:2])[:width], "strong", len(parts[0]))
        yield Line("  ".join(parts[2:]))
    else:
        yield Line("  ".join(parts), "strong", len(parts[0]))


def _where(report: Json, width: int) -> Iterator[Line]:
    """Show what is known of the pod, or an empty line if nothing is."""
    name, namespace, node = (report["pod"][key] for key in ("name", "namespace", "node"))
    if not (name or namespace or node):
        yield Line()
        return
    before = f"{namespace}/" if namespace else ""
    behind = f" on node {node}" if node else ""
    yield from _facts("pod", [f"{before}{name or report['host']}{behind}"], width)


def _answer(answer: Json, width: int) -> Iterator[Line]:
    tag = _TAGS[answer["level"]]
    head = f"{tag} {answer['question']:<24}"
    if width < WIDTH:
        yield Line(head.rstrip(), answer["level"], len(tag))
        head = " " * (len(tag) + 1)
    findings = answer["findings"] or [{**answer, "text": answer["answer"]}]
    for finding, following in zip(findings, [*findings[1:], None], strict=True):
        others = " " * len(head)
        for part in wrap(f"{finding['text']}: {finding['detail']}", width - len(head)):
            yield Line(head + part, answer["level"] if head.strip() else "", len(tag))
            head = others
        if following is None or _advice(following) != _advice(finding):
            yield from _what_to_do(finding, width)


def _advice(finding: Json) -> tuple[str | None, str | None]:
    return finding["hint"], finding["runbook"]


def _what_to_do(finding: Json, width: int) -> Iterator[Line]:
    hint, runbook = _advice(finding)
    if not hint:
        return
    indent = " " * (len(_TAGS[OK]) + 1)
    where = f" ({runbook})" if runbook else ""
    command = _COMMAND.search(hint)
    if command is None or len(f"{indent}do: {hint}") <= width:
        text, lines = f"{hint}{where}", []
    else:
        text, lines = f"{hint[: command.start()]}{where}:", [*_lines_of(command[1], width)]
    text = f"{indent}do: {text}"
    first, *others = wrap(text, width, subsequent_indent=f"{indent}    ", break_on_hyphens=False)
    for part in (first, *others, *lines):
        yield Line(part, "soft")


def _lines_of(command: str, width: int) -> Iterator[str]:
    """Yield a shell command on lines that can be copied together.

    A word that is longer than a line becomes several parts, which the shell joins because nothing
    is between them.
    """
    line = " " * _BEFORE_TEXT
    for word in _WORD.findall(command):
        first, *others = _parts(word, width - len(" \\"))
        if line.strip() and len(line) + len(first) + 3 > width:
            yield f"{line} \\"
            line = ""
        elif len(line) + len(first) + 2 > width:
            line = ""
        line += f" {first}" if line.strip() else first
        for part in others:
            yield f"{line}\\"
            line = part
    yield line


def _parts(word: str, width: int) -> Iterator[str]:
    """Yield a word of a shell command in parts of at most `width` columns, quoted as it is."""
    if len(word) <= width:
        yield word
        return
    for part in _QUOTED_OR_NOT.findall(word):
        quote = "'" if part[0] == "'" else ""
        text, most = part.strip("'"), width - 2 * len(quote)
        while len(text) > most:
            at = max(text.rfind(mark, 0, most) for mark in ",/") + 1 or most
            yield f"{quote}{text[:at]}{quote}"
            text = text[at:]
        yield f"{quote}{text}{quote}"


def _facts(name: str, facts: list[str], width: int, level: str = "") -> Iterator[Line]:
    """Show facts behind a name, on as many lines as they take."""
    head, text = f"{name:<{_BEFORE_TEXT}}", ""
    for fact in facts:
        if text and len(head + text) + 3 + len(fact) > width:
            yield Line(head + text, level)
            head, text = " " * _BEFORE_TEXT, ""
        text += f"   {fact}" if text else fact
    yield Line(head + text, level)


def _intake(report: Json, width: int) -> Iterator[Line]:
    intake, events, queue, spool = (report[k] for k in ("intake", "events", "queue", "spool"))
    where = "on disk" if report["durability"] == "disk" else "in memory"
    listener = [
        f"{rate(intake['events_per_s'])} events/s",
        f"accepted {events['received']:,}",
        f"refused {rate(intake['rejected_per_s'])}/s",
        f"kept {where}",
    ]
    yield from _facts("listener", listener, width)
    open_spans = [
        f"{report['open_spans']:,} kept",
        f"held {events['held']:,}",
        f"joined {events['joined']:,}",
    ]
    yield from _facts("open spans", open_spans, width)
    yield from _facts("memory", _meter(queue), width)
    if spool is not None:
        broken = ["its disk can't be used"] if spool["degraded"] else []
        yield from _facts("spool", [*_meter(spool), *broken], width, BAD if broken else "")
    yield from rooms(report["sinks"], width)


def _meter(part: Json) -> list[str]:
    share = part["bytes"] / part["limit_bytes"]
    facts = [f"{bar(share, 20)} {size(part['bytes'])} of {size(part['limit_bytes'])}"]
    if part["full_in_s"] is not None:
        facts.append(f"full in {duration(part['full_in_s'])}")
    return facts

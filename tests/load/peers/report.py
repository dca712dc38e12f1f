"""Writes the tables in Markdown, and inserts them into docs/benchmarks.md."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from .plan import ARRAYS, ARRAYS_FLOOD, FLOOD, POSTS, POSTS_FLOOD, STEADY
from .summary import Spread, Summary

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
_NONE = "\u2013"


def markdown(summary: Summary, command: str, machine: str, versions: str) -> str:
    """Return the measurements as tables."""
    parts = [
        f"Made by `{command}` on {machine}; {versions}.",
        "Medians of the repetitions, their range in parentheses; memory in MiB.",
        *_agents(summary),
        *_flood(summary),
        *_forwarders(summary, POSTS, POSTS_FLOOD),
        *_forwarders(summary, ARRAYS, ARRAYS_FLOOD),
    ]
    return "\n\n".join(parts)


def insert(page: Path, measured: str) -> None:
    """Put `measured` between the markers of `page`."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{measured}\n{END}{after}")


def _agents(summary: Summary) -> Iterator[str]:
    subjects = summary.of_load(STEADY)
    if not subjects:
        return
    yield "### An agent that makes spans of 50 KB at a steady rate"
    head = (
        "way of tracing", "agent CPU ms/span", "forwarder CPU ms/span", "blocked ms p50",
        "blocked ms p99", "loop late ms p99", "agent RSS idle / peak / after",
        "forwarder RSS idle / peak / after", "lost",
    )  # fmt: skip
    yield _table(head, [
        (
            subject.name,
            _text(summary.agent_cpu_ms(key)),
            _text(summary.forwarder_cpu_ms(key)),
            _text(summary.blocking_ms(key, "p50")),
            _text(summary.blocking_ms(key, "p99")),
            _text(summary.spread(key, lambda run: run.late_ms.get("p99")), 1),
            summary.memory(key, lambda run: run.agent_mib),
            summary.memory(key, lambda run: run.forwarder_mib),
            str(summary.lost(key)),
        )
        for subject in subjects
        for key in (subject.key,)
    ])  # fmt: skip


def _flood(summary: Summary) -> Iterator[str]:
    subjects = summary.of_load(FLOOD)
    if not subjects:
        return
    yield "### The same agent as fast as it can"
    head = (
        "way of tracing", "spans/s until all had arrived", "blocked ms p99",
        "agent RSS idle / peak / after", "forwarder RSS idle / peak / after", "lost",
    )  # fmt: skip
    yield _table(head, [
        (
            subject.name,
            _text(summary.spread(key, lambda run: run.rate), 0),
            _text(summary.blocking_ms(key, "p99")),
            summary.memory(key, lambda run: run.agent_mib),
            summary.memory(key, lambda run: run.forwarder_mib),
            str(summary.lost(key)),
        )
        for subject in subjects
        for key in (subject.key,)
    ])  # fmt: skip


def _forwarders(summary: Summary, load: str, flood: str) -> Iterator[str]:
    subjects = summary.of_load(load)
    if not subjects:
        return
    yield f"### Ready requests: {load}"
    head = (
        "forwarder", "CPU ms/span", "of a core", "RSS idle / peak / after", "spans/s at saturation",
        "CPU ms/span there", "RSS there", "lost",
    )  # fmt: skip
    rows: list[Sequence[str]] = []
    for subject in subjects:
        key, flooded = subject.key, f"{flood}: {subject.name}"
        core = summary.spread(key, lambda run: run.forwarder_core)
        rows.append((
            subject.name,
            _text(summary.forwarder_cpu_ms(key), 3),
            f"{100 * core.median:.0f}%" if core else _NONE,
            summary.memory(key, lambda run: run.forwarder_mib),
            _text(summary.spread(flooded, lambda run: run.rate), 0),
            _text(summary.forwarder_cpu_ms(flooded), 3),
            summary.memory(flooded, lambda run: run.forwarder_mib),
            str(summary.lost(key) + summary.lost(flooded)),
        ))  # fmt: skip
    yield _table(head, rows)


def _text(spread: Spread | None, digits: int = 2) -> str:
    return spread.text(digits) if spread else _NONE


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = "|" + "---|" * len(head)
    return "\n".join((line(head), rule, *map(line, rows)))

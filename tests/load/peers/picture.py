"""Draws the figures as bars in an SVG: one panel per question, for light and dark pages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from .plan import ARRAYS, POSTS, STEADY
from .summary import Spread, Summary, peak_mib

WIDTH, LABEL, VALUE = 880, 280, 130
ROW, GAP, HEAD = 22, 26, 30
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .head { font-weight: 600 }
  .sidecar { fill: #1a7f5a } .agentex-sdk { fill: #bf5b17 }
  .collector { fill: #4a6fa5 } .opentelemetry-sdk { fill: #7b8fb5 }
  .part { opacity: .45 } .range { stroke: #57606a; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .range { stroke: #c9d1d9 } }
"""


@dataclass(frozen=True)
class Mark:
    """A bar in parts; the first is pale if it is the agent's."""

    peer: str
    name: str
    parts: tuple[Spread, ...]
    agent_first: bool = False

    @property
    def total(self) -> float:
        """Its length."""
        return sum(part.median for part in self.parts)

    @property
    def high(self) -> float:
        """The upper end of its range."""
        return sum(part.high for part in self.parts)


@dataclass(frozen=True)
class Panel:
    """Bars on one scale, which starts at 0."""

    title: str
    unit: str
    marks: Sequence[Mark]

    @property
    def height(self) -> int:
        """In pixels."""
        return HEAD + ROW * len(self.marks) + GAP


def draw(summary: Summary, path: Path) -> None:
    """Write the SVG."""
    panels = [panel for panel in _panels(summary) if panel.marks]
    shapes: list[str] = []
    top = 10
    for panel in panels:
        shapes += _drawn(panel, top)
        top += panel.height
    body = "\n".join(shapes)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img"'
        f' aria-label="The sidecar compared with its peers">\n'
        f"<style>{_STYLE}</style>\n{body}\n</svg>\n"
    )


def _panels(summary: Summary) -> Iterator[Panel]:
    agents = [s for s in summary.of_load(STEADY) if s.peer != "control"]
    yield Panel("CPU of one 50 KB span: agent (pale) and forwarder", "ms", [
        Mark(subject.peer, subject.name, tuple(parts), agent_first=True)
        for subject in agents
        if (parts := [part for part in (summary.agent_cpu_ms(subject.key),
                                        summary.forwarder_cpu_ms(subject.key)) if part])
    ])  # fmt: skip
    yield Panel("What a span takes of the agent's loop, p99", "ms", [
        Mark(subject.peer, subject.name, (blocked,))
        for subject in agents
        if (blocked := summary.blocking_ms(subject.key, "p99"))
    ])  # fmt: skip
    for load in (POSTS, ARRAYS):
        subjects = summary.of_load(load)
        yield Panel(f"CPU of the forwarder for one span, {load}", "ms", [
            Mark(subject.peer, subject.name, (cpu,))
            for subject in subjects
            if (cpu := summary.forwarder_cpu_ms(subject.key))
        ])  # fmt: skip
        yield Panel(f"Peak memory of the forwarder, {load}", "MiB", [
            Mark(subject.peer, subject.name, (peak,))
            for subject in subjects
            if (peak := summary.spread(subject.key, peak_mib))
        ])  # fmt: skip


def _drawn(panel: Panel, top: int) -> Iterator[str]:
    yield f'<text class="head" x="10" y="{top + 16}">{escape(panel.title)}</text>'
    scale = (WIDTH - LABEL - VALUE) / max(mark.high for mark in panel.marks)
    for number, mark in enumerate(panel.marks):
        y = top + HEAD + ROW * number
        yield f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(mark.name)}</text>'
        x = float(LABEL)
        for at, part in enumerate(mark.parts):
            paler = " part" if at == 0 and mark.agent_first else ""
            width = max(1.0, scale * part.median)
            yield (
                f'<rect class="{mark.peer}{paler}" x="{x:.1f}" y="{y}" width="{width:.1f}"'
                f' height="{ROW - 7}" rx="2"/>'
            )
            x += width
        last = mark.parts[-1]
        low, high = (x + scale * (edge - last.median) for edge in (last.low, last.high))
        middle = y + (ROW - 7) / 2
        yield f'<path class="range" d="M{low:.1f} {middle}H{high:.1f}"/>'
        yield (
            f'<text x="{max(x, high) + 6:.1f}" y="{y + 12}">{mark.total:.3g} {panel.unit}</text>'
        )

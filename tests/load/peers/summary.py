"""Summarizes repeated runs: the median with minimum and maximum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from .plan import STEADY, Subject
from .proc import Memory
from .runs import Figures

CONTROL = f"{STEADY}: no tracing"


@dataclass(frozen=True)
class Spread:
    """The median of the repetitions, and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize at least one value."""
        return cls(median(values), min(values), max(values))

    def text(self, digits: int = 2) -> str:
        """Format for tables."""
        low, high = f"{self.low:.{digits}f}", f"{self.high:.{digits}f}"
        shown = f"{self.median:.{digits}f}"
        return shown if low == high else f"{shown} ({low}\u2013{high})"


class Summary:
    """All runs of all subjects, in the order in which they were first seen."""

    def __init__(self) -> None:
        self.subjects: dict[str, Subject] = {}
        self.runs: dict[str, list[Figures]] = {}

    def add(self, subject: Subject, figures: Figures) -> None:
        """Add one run."""
        self.subjects[subject.key] = subject
        self.runs.setdefault(subject.key, []).append(figures)

    def of_load(self, load: str) -> list[Subject]:
        """Return the subjects that ran under `load`."""
        return [subject for subject in self.subjects.values() if subject.load == load]

    def spread(self, key: str, figure: Callable[[Figures], float | None]) -> Spread | None:
        """Return the spread of one figure; None if it was not measured."""
        found = [value for run in self.runs.get(key, ()) if (value := figure(run)) is not None]
        return Spread.of(found) if found else None

    def agent_cpu_ms(self, key: str) -> Spread | None:
        """Return the agent's CPU per span, without the cost of making the spans."""
        control = self.spread(CONTROL, lambda run: run.agent_cpu_ms)
        cpu = self.spread(key, lambda run: run.agent_cpu_ms)
        if control is None or cpu is None or key == CONTROL:
            return cpu
        own = control.median
        return Spread(cpu.median - own, cpu.low - own, cpu.high - own)

    def forwarder_cpu_ms(self, key: str) -> Spread | None:
        """Return the forwarder's CPU per span."""
        return self.spread(key, lambda run: run.forwarder_cpu_ms)

    def blocking_ms(self, key: str, quantile: str) -> Spread | None:
        """Return the time that `start` and `end` of a span take on the agent's loop."""
        return self.spread(key, lambda run: run.blocking_ms.get(quantile))

    def lost(self, key: str) -> int:
        """Return the spans lost in all repetitions."""
        return sum(run.lost for run in self.runs.get(key, ()))

    def memory(self, key: str, of: Callable[[Figures], Memory | None]) -> str:
        """Format idle / peak / after, medians in MiB."""
        found = [memory for run in self.runs.get(key, ()) if (memory := of(run)) is not None]
        if not found:
            return "\u2013"
        texts = []
        for name in ("idle", "peak", "after"):
            values = [value for one in found if (value := getattr(one, name)) is not None]
            texts.append(f"{median(values):.0f}" if values else "\u2013")
        return " / ".join(texts)


def peak_mib(run: Figures) -> float | None:
    """Return the forwarder's peak memory."""
    return run.forwarder_mib.peak if run.forwarder_mib else None


def idle_mib(run: Figures) -> float | None:
    """Return the forwarder's memory before the load."""
    return run.forwarder_mib.idle if run.forwarder_mib else None

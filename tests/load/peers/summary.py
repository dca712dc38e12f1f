"""Many runs of one thing as one figure: the median, with the least and the most."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from .plan import STEADY, Subject
from .proc import Memory
from .runs import Figures

CONTROL = f"{STEADY}: no tracing"


@dataclass(frozen=True)
class Spread:
    """The median of the repetitions, and the range of them."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(median(values), min(values), max(values))

    def text(self, digits: int = 2) -> str:
        """For tables."""
        least, most = f"{self.least:.{digits}f}", f"{self.most:.{digits}f}"
        middle = f"{self.middle:.{digits}f}"
        return middle if least == most else f"{middle} ({least}\u2013{most})"


class Summary:
    """All runs of all subjects, in the order in which they were first seen."""

    def __init__(self) -> None:
        self.subjects: dict[str, Subject] = {}
        self.runs: dict[str, list[Figures]] = {}

    def add(self, subject: Subject, figures: Figures) -> None:
        """One more run."""
        self.subjects[subject.key] = subject
        self.runs.setdefault(subject.key, []).append(figures)

    def of_load(self, load: str) -> list[Subject]:
        """What was run under `load`."""
        return [subject for subject in self.subjects.values() if subject.load == load]

    def spread(self, key: str, figure: Callable[[Figures], float | None]) -> Spread | None:
        """Of one figure; None where there is none."""
        found = [value for run in self.runs.get(key, ()) if (value := figure(run)) is not None]
        return Spread.of(found) if found else None

    def agent_cpu_ms(self, key: str) -> Spread | None:
        """CPU of the agent process for a span, without what the spans themselves cost it."""
        control = self.spread(CONTROL, lambda run: run.agent_cpu_ms)
        cpu = self.spread(key, lambda run: run.agent_cpu_ms)
        if control is None or cpu is None or key == CONTROL:
            return cpu
        own = control.middle
        return Spread(cpu.middle - own, cpu.least - own, cpu.most - own)

    def forwarder_cpu_ms(self, key: str) -> Spread | None:
        """CPU of the forwarder for a span."""
        return self.spread(key, lambda run: run.forwarder_cpu_ms)

    def blocking_ms(self, key: str, quantile: str) -> Spread | None:
        """What `start` and `end` of a span take of the agent's loop."""
        return self.spread(key, lambda run: run.blocking_ms.get(quantile))

    def lost(self, key: str) -> int:
        """In all repetitions."""
        return sum(run.lost for run in self.runs.get(key, ()))

    def memory(self, key: str, of: Callable[[Figures], Memory | None]) -> str:
        """Idle / peak / after, medians in MiB."""
        found = [memory for run in self.runs.get(key, ()) if (memory := of(run)) is not None]
        if not found:
            return "\u2013"
        texts = []
        for name in ("idle", "peak", "after"):
            values = [value for one in found if (value := getattr(one, name)) is not None]
            texts.append(f"{median(values):.0f}" if values else "\u2013")
        return " / ".join(texts)


def peak_mib(run: Figures) -> float | None:
    """Of the forwarder."""
    return run.forwarder_mib.peak if run.forwarder_mib else None

"""Numbers and lists as people read them. Arithmetic only."""

from collections.abc import Mapping, Sequence

TENTHS_BELOW_S = 10  # shorter durations are shown with one decimal


def duration(seconds: float) -> str:
    """Format seconds: `40 ms`, `2.5 s`, `40 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if round(seconds * 1000) < 1000:  # noqa: PLR2004 (milliseconds in a second)
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < TENTHS_BELOW_S:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def ago(seconds: float) -> str:
    """How long ago something happened that is looked for once a second."""
    if seconds < 1:
        return "just now"
    whole = round(seconds)
    return f"{whole} s ago" if whole < TENTHS_BELOW_S else f"{duration(whole)} ago"


def counted(count: int, what: str) -> str:
    """`1 write`, `1,200 writes`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def are(count: int) -> str:
    """The verb that goes with so many."""
    return "is" if count == 1 else "are"


def were(count: int) -> str:
    """The same in the past."""
    return "was" if count == 1 else "were"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def reasons(counts: Mapping[str, int]) -> str:
    """`2 refused, 1 too large`: the counts that are not 0."""
    return ", ".join(
        f"{count:,} {word.replace('_', ' ')}" for word, count in counts.items() if count
    )

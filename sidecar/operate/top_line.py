"""One line of `sidecar top`, and how numbers look in it."""

from dataclasses import dataclass

from sidecar.operate.hints import BAD, OK, WARN
from sidecar.process.terminal import visible

WIDTH = 80  # the layout is another one in narrower terminals, which show at least NARROW columns
NARROW = 60
UNKNOWN = "unknown"  # without /proc (macOS), the process does not know its resident memory
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


def bar(share: float, width: int) -> str:
    """Draw a bar of `width` characters and its brackets."""
    return f"[{'#' * round(min(1.0, share) * width):.<{width}}]"


def rate(value: float) -> str:
    """Format a rate, with one decimal below 10."""
    return f"{value:.1f}" if 0 < value < _WHOLE_FROM else f"{value:,.0f}"


def size(count: float) -> str:
    """Format a number of bytes in binary units."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count:.0f} B"

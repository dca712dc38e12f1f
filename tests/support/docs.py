"""The commands in README.md and docs/."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# What stands before `sidecar` where it runs in a pod, or with variables of its own.
_BEFORE = r"(?:kubectl [^`\n]*-- )?(?:[A-Z_]+=\S* )*(?:\.venv/bin/)?"
_INLINE = re.compile(rf"`{_BEFORE}sidecar ([^`]+)`")
_LINE = re.compile(rf"^ *{_BEFORE}sidecar ([a-z-].*)$", re.MULTILINE)


_SCRIPT = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> list[str]:
    """The fenced blocks of a page, or of a part of one, in order."""
    return _BLOCK.findall(text)


def scripts(page: Path) -> list[str]:
    """The blocks of a page that are commands to run, in order: those marked `sh`."""
    return _SCRIPT.findall(page.read_text(encoding="utf-8"))


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return _BLOCK.sub("", text)


def section(page: Path, heading: str) -> str:
    """What is below a heading of a page, up to the next heading."""
    below = page.read_text(encoding="utf-8").partition(f"# {heading}\n")[2]
    assert below, heading
    return below.partition("\n#")[0]


class Command(NamedTuple):
    """A `sidecar` command: its arguments, and whether it is in a fenced block or in text."""

    arguments: list[str]
    in_block: bool


def commands(page: Path) -> Iterator[Command]:
    """The commands in a page; not a synopsis, which has brackets."""
    text = page.read_text(encoding="utf-8")
    found = [(line, True) for block in blocks(text) for line in _LINE.findall(block)]
    found += [(line, False) for line in _INLINE.findall(prose(text))]
    for line, in_block in found:
        if "[" not in line:
            yield Command(shlex.split(re.split(" [|>] ", line)[0], comments=True), in_block)


def anchors(page: Path) -> set[str]:
    """What links to a page may have after their #, as GitHub makes it of the headings."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    made = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="(\w+)">', text))

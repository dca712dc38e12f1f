"""What `sidecar replay` has delivered: ranges of bytes in the files of dead letters.

They are marked in a file of its own, `PATH.replayed`. Each file of letters is known by its first
line, so that it keeps its marks when it is renamed (`PATH` becomes `PATH.1`), also while it is
replayed. Of two replays that end at the same time, one may lose its marks: its letters are replayed
again, which is safe. All of this blocks.
"""

import errno
import os
import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from sidecar.spans.decode import NOT_DECODED

# What a file is known by: this much of its first line.
_FIRST_BYTES = 4096
_CHUNK = 2**18
# A letter ends in this, and nothing else in it does: it has no raw newline.
_END = b"}}}\n"
# Files whose marks are kept: those that are in use, and two that were moved away.
_MAX_MARKED = 4
# The sidecar reads all marks: about 50,000 ranges.
_MAX_BYTES = 2**20

Range = tuple[int, int]


class Place(NamedTuple):
    """Where a letter is: in the file that is known by `file`, from `start` to `end`, in bytes."""

    file: str
    start: int
    end: int


class _Marked(msgspec.Struct):
    first: str  # see `known_by`
    ranges: list[Range]


_MARKS = msgspec.json.Decoder(list[_Marked])


def marks_of(file: Path) -> Path:
    """The file with the marks of a file of letters, and of the older one beside it."""
    return file.with_name(file.name.removesuffix(".1") + ".replayed")


def mark(file: Path, done: Iterable[Place]) -> None:
    """Mark letters that were in `file` when they were read as replayed; raises `OSError`."""
    marks = marks_of(file)
    ranges: defaultdict[str, list[Range]] = defaultdict(list)
    for each in done:
        ranges[each.file].append((each.start, each.end))
    known = {each.first: each.ranges for each in _decoded(read_marks(marks))}
    for first, new in ranges.items():
        known[first] = _joined([*new, *known.pop(first, [])])
    text = msgspec.json.encode([_Marked(*each) for each in known.items()][-_MAX_MARKED:])
    if len(text) > _MAX_BYTES:
        raise OSError(errno.EFBIG, "too many places")
    beside = marks.with_name(f"{marks.name}.{os.getpid()}")
    try:
        beside.write_bytes(text)
        beside.replace(marks)
    finally:
        beside.unlink(missing_ok=True)


def ranges_of(opened: BinaryIO, marks: bytes) -> list[Range]:
    """The ranges of an opened file of letters that are marked as replayed, in order."""
    first = known_by(first_line(opened))
    return next((each.ranges for each in _decoded(marks) if each.first == first), [])


def marked_in(file: Path) -> list[Range]:
    """The ranges of a file of letters that are marked as replayed, in order; raises `OSError`."""
    with file.open("rb") as opened:
        return ranges_of(opened, read_marks(marks_of(file)))


def is_in(ranges: Sequence[Range], start: int) -> bool:
    """Whether the letter that begins at `start` is in one of `ranges`, which are in order."""
    at = bisect_right(ranges, (start, sys.maxsize))
    return at > 0 and start < ranges[at - 1][1]


def waiting_in(opened: BinaryIO, marks: bytes, start: int, end: int) -> int:
    """How many letters that end between two places of a file are not marked; raises `OSError`."""
    done = ranges_of(opened, marks)
    # The end of a letter may have been in both parts of a file that grew.
    start = max(0, start - len(_END) + 1)
    return sum(_letters_in(opened, *piece) for piece in _outside(done, start, end))


def first_line(opened: BinaryIO) -> bytes:
    """The beginning of a file of letters."""
    opened.seek(0)
    return opened.read(_FIRST_BYTES)


def known_by(line: bytes) -> str:
    """What the file of letters is known by that begins with `line`."""
    return sha256(line[:_FIRST_BYTES].partition(b"\n")[0]).hexdigest()


def read_marks(marks: Path) -> bytes:
    """What is marked, nothing if that is more than we write; raises `OSError`."""
    try:
        with marks.open("rb") as opened:
            text = opened.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return b""
    return text if len(text) <= _MAX_BYTES else b""


def _decoded(marks: bytes) -> list[_Marked]:
    with suppress(*NOT_DECODED):
        return _MARKS.decode(marks)
    return []


def _joined(ranges: Iterable[Range]) -> list[Range]:
    joined: list[Range] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _outside(ranges: Iterable[Range], start: int, end: int) -> Iterator[Range]:
    """The parts of `start` to `end` that are in none of `ranges`, which are in order."""
    for first, last in ranges:
        if start < first:
            yield start, min(first, end)
        start = max(start, last)
    if start < end:
        yield start, end


def _letters_in(opened: BinaryIO, start: int, end: int) -> int:
    opened.seek(start)
    left, before, count = end - start, b"", 0
    while left > 0 and (chunk := opened.read(min(_CHUNK, left))):
        left -= len(chunk)
        count += (before + chunk).count(_END)
        before = chunk[-(len(_END) - 1) :]
    return count

"""What is in the files of dead letters, for operators: how many wait for a replay, and the last.

The files are looked at beside the event loop, because others write to them, too: `sidecar replay`
marks what it has delivered (replayed.py), and operators move them away.
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import msgspec

from sidecar.process.blocking import BlockingThread
from sidecar.sinks.dead_letters import LAST, Latest, LetterWriter
from sidecar.sinks.replayed import first_line, known_by, marks_of, read_marks, waiting_in
from sidecar.spans.decode import NOT_DECODED

# How often the files are looked at, and how long the disk may take.
EVERY_S, LIMIT_S = 5.0, 3.0
# Where the last letters are looked for, at the start. A larger letter is not shown.
_TAIL_BYTES = 2**18


class _Span(msgspec.Struct):
    id: str


class _Event(msgspec.Struct):
    event_type: str
    span: _Span


class _Line(msgspec.Struct):
    time: str
    sink: str
    reason: str
    status: int
    event: _Event
    account: str = ""


_LINE = msgspec.json.Decoder(_Line)


class _Counted(NamedTuple):
    """A file up to `size` has `letters` that are not in the ranges of `marks`."""

    first: str  # see `known_by`
    size: int
    letters: int
    marks: bytes


class KeptLetters:
    """Looks into the files of dead letters beside the event loop. Create it in a running loop.

    `kept`: the letters not yet replayed, by file, older file first; None while that is unknown.
    """

    def __init__(self, writer: LetterWriter) -> None:
        self._writer = writer
        self._path = writer.letters.path
        self._thread = BlockingThread("dead letters")
        self._counted: dict[str, _Counted] = {}  # by what the file is known by
        self._read_latest = False
        self.kept: dict[str, int] | None = None
        self._written = 0  # letters that this process had written when the files were looked at

    async def run(self) -> None:
        """Look at the files every `EVERY_S`, until cancelled."""
        while self._path is not None:
            await self.look(self._path)
            await asyncio.sleep(EVERY_S)

    async def look(self, path: Path) -> None:
        """Count the letters in the files, and once, read the last of them."""
        files = [path.with_name(path.name + ".1"), path]
        try:
            if not self._read_latest:
                found = await self._thread.call(_latest, files, limit_s=LIMIT_S)
                self._read_latest = True
                self._add(found)
            self.kept = await self._thread.call(self._count, files, limit_s=LIMIT_S)
            # What was written meanwhile may be counted, too: until the next look, rather one letter
            # too few than one that is not there.
            letters = self._writer.letters
            self._written = letters.written + letters.is_writing
        except OSError:
            self.kept = None

    def _add(self, found: Sequence[Latest]) -> None:
        latest = self._writer.latest
        mine = {each[1:] for each in latest}  # in the file, the time is a little later
        for each in reversed(found):
            if len(latest) < LAST and each[1:] not in mine:
                latest.appendleft(each)

    def _count(self, files: Sequence[Path]) -> dict[str, int]:
        marks = read_marks(marks_of(files[-1]))
        counted: dict[str, _Counted] = {}
        letters: dict[str, int] = {}
        # The newer one first: it may become the older one meanwhile, and must not be missed.
        for file in reversed(files):
            now = self._counted_in(file, marks)
            if now is not None and now.first not in counted:
                counted[now.first] = now
                letters[str(file)] = now.letters
        self._counted = counted
        return dict(reversed(letters.items()))

    def _counted_in(self, file: Path, marks: bytes) -> _Counted | None:
        try:
            opened = file.open("rb")
        except FileNotFoundError:
            return None
        with opened:
            first, size = known_by(first_line(opened)), os.fstat(opened.fileno()).st_size
            before = self._counted.get(first)
            start = letters = 0
            if before is not None and before.marks == marks and before.size <= size:
                start, letters = before.size, before.letters
            if start < size:
                letters += waiting_in(opened, marks, start, size)
        return _Counted(first, size, letters, marks)

    def report(self) -> dict[str, Any]:
        """What `/status` says about dead letters."""
        letters = self._writer.letters
        kept = None if self.kept is None else self.kept.copy()
        if kept is not None and (new := letters.written - self._written) > 0:
            kept[str(self._path)] = kept.get(str(self._path), 0) + new
        waiting = [quote(file) for file, count in (kept or {}).items() if count]
        return {
            "path": str(self._path) if self._path is not None else None,
            "kept": None if kept is None else sum(kept.values()),
            "last": [each._asdict() for each in reversed(self._writer.latest)],
            "replay": " && ".join(f"sidecar replay {file}" for file in waiting) or None,
            "not_kept": letters.dropped + letters.errors,
        }


def _latest(files: Sequence[Path]) -> list[Latest]:
    """The last letters of the files, oldest first."""
    found: list[Latest] = []
    for file in files:
        with suppress(FileNotFoundError), file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - _TAIL_BYTES))
            for line in opened.read(_TAIL_BYTES).split(b"\n"):
                with suppress(*NOT_DECODED):
                    read = _LINE.decode(line)
                    event = read.event
                    found.append(
                        Latest(
                            read.time,
                            event.span.id,
                            read.sink,
                            read.reason,
                            read.status,
                            event.event_type,
                            read.account or None,
                        )
                    )
    return found[-LAST:]

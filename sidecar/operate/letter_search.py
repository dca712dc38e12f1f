"""Looks for the dead letters of a span or a trace, without decoding the others."""

import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import msgspec

from sidecar.sinks.dead_letters import Head
from sidecar.sinks.replayed import is_in, marks_of, ranges_of, read_marks
from sidecar.spans.decode import NOT_DECODED
from sidecar.spans.heads import HEAD_BYTES, Wanted, ids_in

MAX_FOUND = 1000
CHUNK_BYTES = 2**18
# How a line begins (sinks/dead_letters.py), up to the span.
_LINE = re.compile(rb'(\{"time":.*?),"event":\{"event_type":"(start|end)","span":(?=\{)')
_MAX_LINE_HEAD = 2 * HEAD_BYTES
_HEAD = msgspec.json.Decoder(Head)
_KINDS = {b"start": "open", b"end": "complete"}


class FoundLetter(NamedTuple):
    """A dead letter without its content; `kind` is that of its write.

    `replayed`: `sidecar replay` is done with it.
    """

    head: Head
    kind: str
    id: str
    trace_id: str
    replayed: bool


def search(path: str, wanted: Wanted, until: float) -> tuple[list[FoundLetter], bool]:
    """Find the letters of the two files at `path`, oldest first, and the newest `MAX_FOUND` only.

    Returns whether all that may be wanted was read, too: not if a line that has the id is not
    a letter as we write it. Raises `OSError`, and `TimeoutError` at monotonic time `until`.
    """
    found: deque[FoundLetter] = deque(maxlen=MAX_FOUND)
    complete = True
    with ExitStack() as stack:
        # The newer one first: it may become the older one meanwhile, and must not be missed.
        files: dict[int, FileIO] = {}
        for name in (path, f"{path}.1"):
            with suppress(FileNotFoundError):
                file = stack.enter_context(open(name, "rb", buffering=0))  # noqa: PTH123
                files.setdefault(os.fstat(file.fileno()).st_ino, file)
        marks = read_marks(marks_of(Path(path)))
        for file in reversed(files.values()):
            done = ranges_of(file, marks)
            file.seek(0)
            for start, line in _lines(file, wanted.text, until):
                letter = _letter(line, replayed=is_in(done, start))
                if letter is None:
                    complete = False
                elif wanted.matches(letter):
                    found.append(letter)
    return list(found), complete


def _lines(file: FileIO, text: bytes, until: float) -> Iterator[tuple[int, bytes]]:
    """Where the lines that contain `text` begin, and how."""
    line = base = 0  # where the current line, and `data`, begin in the file
    data, skipping = b"", False
    while chunk := file.read(CHUNK_BYTES):
        if monotonic() > until:
            raise TimeoutError
        kept = data[len(data) - len(text) + 1 :] if len(data) >= len(text) else data
        base += len(data) - len(kept)
        data, at = kept + chunk, 0
        if skipping:
            at = data.find(b"\n") + 1
            skipping = not at
        while not skipping and (hit := data.find(text, at)) >= 0:
            start = data.rfind(b"\n", 0, hit) + 1
            start = base + start if start else line
            yield start, os.pread(file.fileno(), _MAX_LINE_HEAD, start).partition(b"\n")[0]
            at = data.find(b"\n", hit) + 1
            skipping = not at
        if newline := data.rfind(b"\n") + 1:
            line = base + newline


def _letter(line: bytes, *, replayed: bool) -> FoundLetter | None:
    found = _LINE.match(line)
    ids = None if found is None else ids_in(line[found.end() :])
    if found is None or ids is None:
        return None
    try:
        head = _HEAD.decode(found[1] + b"}")
    except NOT_DECODED:
        return None
    return FoundLetter(head, _KINDS[found[2]], ids.id, ids.trace_id, replayed)

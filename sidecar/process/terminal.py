r"""Text for people: commands, the demo and the console log print through here.

Span ids, errors, file names and what another process reports were written by others. In a terminal
their control characters could move the cursor, change what is on the screen, or add lines; here
they become visible escapes, such as `\x1b`.
"""

import json
import os
import sys
import traceback
from contextlib import suppress
from typing import Any, TextIO


def visible(text: str) -> str:
    """Return `text` with an escape for each character that is not printable.

    These are controls (also DEL and C1), line ends, every space but the ordinary one, invisible and
    bidirectional formats, surrogates, and what Unicode does not assign. A backslash stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def show(line: str, *, to_stderr: bool = False) -> None:
    """Print one line, visibly, to standard output or error."""
    _write(visible(line) + "\n", sys.stderr if to_stderr else sys.stdout)


def complain(message: str) -> None:
    """Print an error or a warning of a command, as one line on standard error.

    Where that is impossible, nobody can be told; the exit code must still say it.
    """
    with suppress(OSError):
        show(f"sidecar: {message}", to_stderr=True)


def show_traceback(kind: type[BaseException], bug: BaseException, _: object) -> None:
    """Print a bug's traceback on standard error; to be `sys.excepthook`."""
    for part in traceback.format_exception(kind, bug, bug.__traceback__):
        for line in part.rstrip("\n").split("\n"):
            show(line, to_stderr=True)


def show_json(value: object, *, indent: int | None = None) -> None:
    """Print `value` as JSON."""
    for line in to_ascii_json(value, indent=indent).split("\n"):
        show(line)


def show_bytes(data: bytes) -> None:
    """Write bytes, such as a file, to standard output."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def draw(text: str, out: TextIO) -> None:
    """Write `text` with its control characters, which must be our own, at once."""
    _write(text, out)
    out.flush()


def _write(text: str, out: TextIO) -> None:
    """Write `text`, with escapes for characters that the terminal's encoding does not have."""
    encoding = out.encoding or "utf-8"
    out.write(text.encode(encoding, "backslashreplace").decode(encoding))


def to_ascii_json(value: object, **options: Any) -> str:
    """Encode as JSON in printable ASCII; `options` are those of `json.dumps`."""
    # json.dumps escapes all that is not ASCII, and the controls but this one.
    return json.dumps(value, **options).replace("\x7f", "\\u007f")


def open_closed_streams() -> None:
    """Have what is printed to a stream that was closed at the start go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(nowhere, "w", encoding="utf-8", closefd=False))


def close_unwritable_streams() -> None:
    """Redirect a stream that can't be written: else Python's flush at exit would fail.

    Its reader is gone (`| head`), which is no error, or its disk is full.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if not isinstance(error, BrokenPipeError):
                complain(f"the output is incomplete: {error.strerror}")

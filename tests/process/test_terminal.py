"""Text for people: what others wrote is visible in it, and does nothing to a terminal."""

import ast
import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sidecar
from sidecar.process.terminal import complain, draw, show, show_json, to_ascii_json, visible

PACKAGE = Path(sidecar.__file__).parent
# Any text that Python can hold, also what no encoding has.
ANYTHING = st.text(st.characters(codec=None, exclude_categories=()))
SOME = {
    "\x1b[31m": r"\x1b[31m",
    "\x07\r\n\t\0\x7f": r"\x07\r\n\t\x00\x7f",
    "\x85\x9b": r"\x85\x9b",
    "\u202e\u2066\u200b\ufeff": r"\u202e\u2066\u200b\ufeff",
    "\u2028\u2029\xa0": r"\u2028\u2029\xa0",
    "\ud800\udcff": r"\ud800\udcff",
    "\ue000\u0378\U000e0001": r"\ue000\u0378\U000e0001",
    "": "",
    "a b, Größe, 日本語, \\n": "a b, Größe, 日本語, \\n",
}


def written(write: Callable[[TextIO], None], encoding: str) -> str:
    """Return what `write` writes to a stream that fails for what `encoding` does not have."""
    file = io.BytesIO()
    with io.TextIOWrapper(file, encoding, "strict", newline="\n") as out:
        write(out)
        return file.getvalue().decode(encoding)


def test_what_becomes_visible() -> None:
    """Controls, line ends, formats, surrogates and what is not assigned are escaped, no others."""
    assert {text: visible(text) for text in SOME} == SOME


@given(ANYTHING)
def test_nothing_else_is_left(text: str) -> None:
    """The result is printable, the same when made visible again, and unchanged if it was."""
    shown = visible(text)
    assert shown.isprintable()
    assert visible(shown) == shown
    assert (shown == text) == text.isprintable()


def test_every_character_alone() -> None:
    """No character at all gets through unless it is printable."""
    passed = [each for each in map(chr, range(sys.maxunicode + 1)) if visible(each) == each]
    assert "".join(passed).isprintable()


@given(ANYTHING, st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8"]))
def test_one_line_in_any_encoding(text: str, encoding: str) -> None:
    """`show` writes exactly one printable line, whatever the terminal's encoding."""

    def printed(out: TextIO) -> None:
        with redirect_stdout(out):
            show(text)
        out.flush()

    line = written(printed, encoding)
    assert line.endswith("\n")
    assert line[:-1].isprintable()


def test_a_character_that_the_terminal_lacks() -> None:
    """It is escaped; our own control sequences are not."""
    text = written(lambda out: draw("\x1b[1mGröße ▁\x1b[0m", out), "ascii")
    assert text == "\x1b[1mGr\\xf6\\xdfe \\u2581\x1b[0m"


@given(st.recursive(ANYTHING | st.integers(), st.lists) | st.dictionaries(ANYTHING, ANYTHING))
def test_json_is_printable(value: object) -> None:
    """JSON is printable ASCII, also DEL, and is read back as the same value."""
    text = to_ascii_json(value)
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text) == json.loads(json.dumps(value))


def test_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    """Results go to standard output, complaints to standard error with the program's name."""
    show("a\x07")
    show_json({"k": ["\x7f"]}, indent=1)
    complain("b\n")
    shown = capsys.readouterr()
    assert shown.out == 'a\\x07\n{\n "k": [\n  "\\u007f"\n ]\n}\n'
    assert shown.err == "sidecar: b\\n\n"


def test_nobody_reads_complaints(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no reason to fail, or to end with another exit code."""
    with Path("/dev/full").open("w", buffering=1, encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr", full)
        complain("b")
        with suppress(OSError):
            full.close()


def commands() -> list[Path]:
    """The files that print."""
    return [PACKAGE / "cli.py", PACKAGE / "demo/run.py", *(PACKAGE / "operate").glob("*.py")]


@pytest.mark.parametrize("path", commands(), ids=lambda path: path.name)
def test_nothing_prints_in_another_way(path: Path) -> None:
    """Commands print with `show`, `show_json` and `complain`; only `top` draws on a screen."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    called = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not names & {"print"}
    assert not called & {"write", "writelines", "buffer", "print_help", "print_usage"}
    assert path.name == "top.py" or "draw" not in names

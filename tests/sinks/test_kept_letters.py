"""How many dead letters wait for a replay, and which were the last."""

import asyncio
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.sinks import Refused, replayed
from sidecar.sinks.dead_letters import LAST, DeadLetters, LetterWriter
from sidecar.sinks.kept_letters import KeptLetters
from sidecar.sinks.replayed import Place, known_by, mark, marks_of, read_marks, waiting_in
from tests.support.spans import make_span

ERROR = Refused("HTTP 422", 422)
BIG = 1_000_000


def seen(writer: LetterWriter) -> dict[str, Any]:
    """What a process that has just started says about the letters of `writer`."""

    async def look() -> dict[str, Any]:
        kept = KeptLetters(LetterWriter(writer.letters))
        assert kept.report()["kept"] is None
        assert writer.letters.path is not None
        await kept.look(writer.letters.path)
        return kept.report()

    return asyncio.run(look())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where letters are kept."""
    return tmp_path / "dead.jsonl"


def lines_of(file: Path) -> list[Place]:
    """Where the lines of a file are."""
    ends = [0]
    lines = file.read_bytes().splitlines(keepends=True)
    ends += accumulate(map(len, lines))
    return [Place(known_by(lines[0]), *each) for each in pairwise(ends)]


def waiting(file: Path) -> int:
    """How many letters of a file are not marked as replayed."""
    with file.open("rb") as opened:
        return waiting_in(opened, read_marks(marks_of(file)), 0, file.stat().st_size)


def written(file: Path, count: int, max_bytes: int = BIG, *, prefix: str = "s") -> LetterWriter:
    """Letters `s0`, `s1` and so on, in the file. With the same ids, two files may begin alike."""

    async def write() -> LetterWriter:
        writer = LetterWriter(DeadLetters(str(file), max_bytes))
        for number in range(count):
            span = make_span(f"{prefix}{number}", name="}}}")
            await writer.add("sgp", span, "refused", ERROR)
        return writer

    return asyncio.run(write())


def test_no_file_no_letters(file: Path) -> None:
    """Before the first letter there is no file, and no command to run."""
    report = seen(written(file, 0))
    assert (report["kept"], report["last"], report["replay"]) == (0, [], None)


@pytest.mark.parametrize("count", [1, 3, LAST + 5])
def test_letters_of_an_earlier_process(file: Path, count: int) -> None:
    """All are counted, and the last are shown, newest first, without their content."""
    report = seen(written(file, count))
    assert report["kept"] == count
    assert [each["id"] for each in report["last"]] == [f"s{n}" for n in range(count)][::-1][:LAST]
    first = report["last"][0]
    assert first.keys() == {"time", "id", "sink", "reason", "status", "kind", "account"}
    assert (first["sink"], first["reason"], first["status"]) == ("sgp", "refused", 422)
    assert report["replay"] == f"sidecar replay {file}"


def test_what_was_replayed_does_not_count(file: Path) -> None:
    """Marked letters are done, whatever comes after them, and wherever the file is renamed to."""
    writer = written(file, 3)
    places = lines_of(file)
    mark(file, [places[0]])
    assert seen(writer)["kept"] == 2
    mark(file, places[1:])
    assert seen(writer)["kept"] == 0
    file.rename(f"{file}.1")
    written(file, 2, prefix="t")
    report = seen(writer)
    assert (report["kept"], report["replay"]) == (2, f"sidecar replay {file}")


def test_a_file_that_is_replaced_has_no_marks(file: Path) -> None:
    """Letters in a new file of the same name are not taken for those that were replayed."""
    written(file, 2)
    mark(file, lines_of(file))
    file.unlink()
    assert seen(written(file, 1, prefix="t"))["kept"] == 1


def test_marks_that_can_not_be_read(file: Path) -> None:
    """Broken marks are none."""
    writer = written(file, 2)
    marks_of(file).write_bytes(b'[{"first": 1')
    assert seen(writer)["kept"] == 2
    mark(file, lines_of(file))
    assert seen(writer)["kept"] == 0


def test_a_file_that_is_renamed_during_its_replay(file: Path) -> None:
    """What was replayed is marked where it is now, and nothing in the file that took its name."""
    written(file, 3)
    places = lines_of(file)
    file.rename(f"{file}.1")
    writer = written(file, 5, prefix="t")
    mark(file, places)
    report = seen(writer)
    assert (report["kept"], report["replay"]) == (5, f"sidecar replay {file}")


def test_marks_are_bounded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More marks than the sidecar would read are not written, and if they are there, not used."""
    written(file, 4)
    places = lines_of(file)
    mark(file, places[:1])
    monkeypatch.setattr(replayed, "_MAX_BYTES", len(marks_of(file).read_bytes()) + 2)
    with pytest.raises(OSError, match="too many places"):
        mark(file, places[2:3])
    assert waiting(file) == 3
    monkeypatch.setattr(replayed, "_MAX_BYTES", 10)
    assert waiting(file) == 4


def test_marks_of_another_user(file: Path) -> None:
    """Where marks can't be read, letters are kept all the same, and their number is unknown."""
    writer = written(file, 4, max_bytes=4 * len(_line(file)) + 8)
    marks_of(file).mkdir()
    writer.letters.add("sgp", make_span("s4", name="}}}"), "refused", ERROR)
    assert (writer.letters.errors, writer.letters.dropped) == (0, 2)
    assert b'"s4"' in file.read_bytes()
    assert seen(writer)["kept"] is None


def test_a_line_that_is_too_deep(file: Path) -> None:
    """A line that nobody can decode, here or in the marks, is no letter, and no reason to fail."""
    writer = written(file, 1)
    deep = b"[" * 50_000 + b"]" * 50_000
    with file.open("ab") as opened:
        opened.write(_line(file.with_name("other"))[:-4] + b',"x":' + deep + b"}}}\n")
    marks_of(file).write_bytes(b'[{"first":"x","ranges":[],"more":' + deep + b"}]")
    report = seen(writer)
    assert (report["kept"], [each["id"] for each in report["last"]]) == (2, ["s0"])


def test_a_letter_that_is_being_written(file: Path) -> None:
    """It counts once all of it is there, wherever it was cut when the file was looked at."""
    line = _line(file)

    async def live(cut: int) -> list[int]:
        kept = KeptLetters(LetterWriter(DeadLetters(str(file), BIG)))
        counts = []
        for content in (line + line[:cut], line + line):
            await asyncio.to_thread(file.write_bytes, content)
            await kept.look(file)
            counts.append(kept.report()["kept"])
        return counts

    for left in range(1, 6):
        assert asyncio.run(live(len(line) - left)) == [1, 2]


def test_a_file_that_is_written_anew(file: Path) -> None:
    """A file with another first line is another file, even in the same place on the disk."""
    line = _line(file)
    other = line.replace(b'"s0"', b'"s9"')

    async def live() -> int | None:
        kept = KeptLetters(LetterWriter(DeadLetters(str(file), BIG)))
        for content in (line, other * 3):
            await asyncio.to_thread(file.write_bytes, content)
            await kept.look(file)
        count: int | None = kept.report()["kept"]
        return count

    assert asyncio.run(live()) == 3


def test_a_line_that_is_no_letter(file: Path) -> None:
    """Half a letter of a process that was killed is not counted, nor shown."""
    written(file, 1)
    file.write_bytes(file.read_bytes()[:50])
    report = seen(written(file, 2))
    assert (report["kept"], len(report["last"])) == (2, 2)


def test_only_what_was_not_replayed_is_dropped(file: Path) -> None:
    """A letter that makes room for a newer one is no loss once it was replayed."""
    two = 2 * len(_line(file))
    writer = written(file, 4, max_bytes=2 * two + 8)
    older = Path(f"{file}.1")
    mark(older, lines_of(older)[:1])
    writer.letters.add("sgp", make_span("s4", name="}}}"), "refused", ERROR)
    assert writer.letters.dropped == 1


def _line(file: Path) -> bytes:
    written(file, 1)
    line = file.read_bytes()
    file.unlink()
    return line


def test_a_running_process_counts_on(file: Path) -> None:
    """Its own letters count at once, a replay and a file that is moved away at the next look."""

    async def live() -> None:
        writer = LetterWriter(DeadLetters(str(file), BIG))
        kept = KeptLetters(writer)
        await kept.look(file)
        for number in range(2):
            await writer.add("sgp", make_span(f"s{number}"), "refused", ERROR)
        assert kept.report()["kept"] == 2
        await kept.look(file)
        assert kept.report()["kept"] == 2
        mark(file, lines_of(file))
        await kept.look(file)
        assert kept.report()["kept"] == 0
        assert [each["id"] for each in kept.report()["last"]] == ["s1", "s0"]
        await writer.add("sgp", make_span("s2"), "refused", ERROR)
        await kept.look(file)
        assert kept.report()["kept"] == 1
        await asyncio.to_thread(file.unlink)
        await kept.look(file)
        assert kept.report()["kept"] == 0

    asyncio.run(live())


@pytest.mark.parametrize("spoil", [Path.mkdir, lambda path: path.symlink_to(path)])
def test_a_file_that_can_not_be_read(file: Path, spoil: Callable[[Path], None]) -> None:
    """Then the number is unknown, and nothing else happens."""
    spoil(file)
    assert seen(written(file, 0))["kept"] is None


def test_without_a_path() -> None:
    """The last letters are known, although none is kept."""

    async def live() -> dict[str, Any]:
        writer = LetterWriter(DeadLetters("", BIG))
        kept = KeptLetters(writer)
        await kept.run()  # ends at once
        await writer.add("sgp", make_span("a"), "refused", ERROR)
        return kept.report()

    report = asyncio.run(live())
    assert (report["path"], report["kept"], report["replay"]) == (None, None, None)
    assert [each["id"] for each in report["last"]] == ["a"]


@given(st.lists(st.lists(st.integers(0, 9), max_size=10, unique=True), max_size=4))
def test_marks_add_up(tmp_path_factory: pytest.TempPathFactory, runs: list[list[int]]) -> None:
    """After any replays, what waits is what none of them has delivered."""
    file = tmp_path_factory.mktemp("letters") / "dead.jsonl"
    written(file, 10)
    places = lines_of(file)
    for done in runs:
        mark(file, [places[number] for number in done])
    left = set(range(10)).difference(*runs)
    assert waiting(file) == len(left)

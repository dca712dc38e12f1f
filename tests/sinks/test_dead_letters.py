"""Dead letters: content, permissions and size of the file, and disk errors."""

import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from sidecar.operate import letters as reader
from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.spans.span import Span
from tests.support.spans import make_span
from tests.support.spool import no_file_grows_beyond

ERROR = Refused("HTTP 422", 422)
# A little more than the size of a letter of `large`.
LETTER = 850
# The limit on the size of files applies to pytest's own as well, which has the log.
BIG = 50_000


def large(id_: str, size: int = 500, *, complete: bool = True) -> Span:
    """A span whose payload has `size` bytes."""
    return make_span(id_, complete=complete, input=b'{"p":"%b"}' % (b"x" * size))


def add(letters: DeadLetters, *spans: Span) -> None:
    """Add letters of SGP."""
    for span in spans:
        letters.add("sgp", span, "refused", ERROR)


def ids(file: Path) -> tuple[list[str], int]:
    """The ids in the letters of a file, and how many lines can't be read."""
    counts = Counter[str]()
    return [letter.span.id for letter in reader.read(str(file), None, counts)], counts.total()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the letters go."""
    return tmp_path / "letters.jsonl"


def test_the_content_of_a_letter(file: Path) -> None:
    """Sink, reason, status and the write as an event, byte for byte, in a file of mode 0600."""
    letters = DeadLetters(str(file), 10_000)
    letters.add("sgp", make_span(input=b'{"n": 1e400}'), "refused", ERROR)
    letters.add("agentex", make_span(complete=False), "expired", ERROR)
    lines = file.read_bytes().splitlines()
    assert b'"input":{"n": 1e400}' in lines[0]
    letter = orjson.loads(lines[1])
    assert (letter["sink"], letter["reason"], letter["status"]) == ("agentex", "expired", 422)
    assert letter["event"]["event_type"] == "start"
    assert file.stat().st_mode & 0o777 == 0o600


def keep(
    letters: DeadLetters, spans: list[Span], time_left: Callable[[], float] = lambda: 1.0
) -> list[Span]:
    """Keep what is left when the process ends; returns what was kept."""
    kept: list[Span] = []
    letters.keep("sgp", spans, kept, time_left)
    return kept


def test_a_letter_names_its_account(file: Path) -> None:
    """`account` is the id of the span's account; there is none if it is unknown."""
    letters = DeadLetters(str(file), 10_000, {0: "", 2: "acme"}.__getitem__)
    add(letters, make_span("a", account=2), make_span("b"))
    keep(letters, [make_span("c", account=2)])
    found = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    assert [letter.get("account") for letter in found] == ["acme", None, "acme"]


def test_the_files_are_bounded_and_dropped_letters_counted(tmp_path: Path) -> None:
    """The total size never exceeds the limit, also after a restart."""
    file = tmp_path / "letters.jsonl"
    for _ in range(2):
        letters = DeadLetters(str(file), 10_000)
        for _ in range(50):
            add(letters, large("s1", 400))
            total = sum(path.stat().st_size for path in tmp_path.iterdir())
            assert total <= 10_000
    kept = sum(len(path.read_bytes().splitlines()) for path in tmp_path.iterdir())
    assert 0 < letters.dropped <= 100 - kept


def test_a_letter_that_can_never_fit_drops_no_others(file: Path) -> None:
    """A letter larger than half of the limit is counted, and leaves both files as they are."""
    letters = DeadLetters(str(file), 4 * LETTER)
    add(letters, large("a"), large("b"), large("c"), large("huge", 4 * LETTER))
    assert (ids(file), ids(file.with_name("letters.jsonl.1"))) == ((["c"], 0), (["a", "b"], 0))
    assert (letters.errors, letters.dropped) == (1, 0)


def test_a_disk_failure_does_not_stop_the_lane(tmp_path: Path) -> None:
    """It is counted, and nothing is raised."""
    letters = DeadLetters(str(tmp_path / "missing" / "letters.jsonl"), 10_000)
    add(letters, make_span())
    assert letters.errors == 1


def test_without_a_path_nothing_is_kept(tmp_path: Path) -> None:
    """No file is created, and no error counted."""
    letters = DeadLetters("", 10_000)
    add(letters, make_span())
    assert keep(letters, [make_span()]) == []
    assert letters.errors == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("room", [0, 1, BIG // 2])
def test_a_full_disk_costs_only_what_it_does_not_take(file: Path, room: int) -> None:
    """A letter that is cut short leaves no trace, and the next one is whole once there is room."""
    letters = DeadLetters(str(file), 10 * BIG)
    add(letters, large("a", BIG))
    before = file.read_bytes()
    with no_file_grows_beyond(len(before) + room):
        add(letters, large("torn", BIG), large("torn too", BIG))
        assert file.read_bytes() == before
    add(letters, large("b"))
    assert (ids(file), letters.errors) == ((["a", "b"], 0), 2)


def test_the_first_letter_on_a_full_disk(file: Path) -> None:
    """It is cut short to an empty file, to which letters can be added later."""
    letters = DeadLetters(str(file), 10 * BIG)
    with no_file_grows_beyond(BIG):
        add(letters, large("torn", 2 * BIG))
        assert file.read_bytes() == b""
    add(letters, large("a"))
    assert ids(file) == (["a"], 0)


def test_a_torn_letter_that_stays_is_not_glued_to_the_next() -> None:
    """If the file can't be cut back either, the next letter begins on a new line."""
    descriptor = os.memfd_create("letters", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    file = Path(f"/proc/self/fd/{descriptor}")
    try:
        letters = DeadLetters(str(file), 10 * BIG)
        add(letters, large("a", BIG))
        size = file.stat().st_size
        with no_file_grows_beyond(size + 100):
            add(letters, large("torn", BIG))
            assert file.stat().st_size == size + 100
        add(letters, large("b"), large("c"))
        assert (ids(file), letters.errors) == ((["a", "b", "c"], 1), 1)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("left", [b'{"time":"2026', b"\0" * 100, b"\n", b'{"time":"2026\n'])
def test_what_a_killed_process_left_is_not_glued_to_the_next(file: Path, left: bytes) -> None:
    """A file that ends in the middle of a letter costs only that letter."""
    add(DeadLetters(str(file), 100_000), large("a"))
    with file.open("ab") as torn:
        torn.write(left)
    add(DeadLetters(str(file), 100_000), large("b"), large("c"))
    assert ids(file) == (["a", "b", "c"], int(left != b"\n"))


def test_a_newline_in_front_does_not_exceed_the_limit(tmp_path: Path) -> None:
    """The total size stays within the limit where every letter follows a torn one."""
    file = tmp_path / "letters.jsonl"
    for size in range(400, 500):
        add(DeadLetters(str(file), 4 * LETTER), large("a", size))
        with file.open("ab") as torn:
            torn.truncate(file.stat().st_size - 1)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4 * LETTER


def test_a_file_that_cannot_be_rotated_stays_as_it_is(file: Path) -> None:
    """Letters that don't fit are counted as errors; those in the file stay readable."""
    older = file.with_name("letters.jsonl.1")
    older.mkdir()
    letters = DeadLetters(str(file), 4 * LETTER)
    add(letters, large("a"), large("b"), large("c"), large("d"))
    assert (ids(file), letters.errors, letters.dropped) == ((["a", "b"], 0), 2, 0)
    older.rmdir()
    add(letters, large("e"))
    assert (ids(file), ids(older)) == ((["e"], 0), (["a", "b"], 0))


@pytest.mark.parametrize("written", [1, 2])
def test_a_file_that_was_moved_away(file: Path, written: int) -> None:
    """An operator may move the file away after a replay: letters go to a new one."""
    letters = DeadLetters(str(file), 4 * LETTER)
    add(letters, *map(large, "ab"[:written]))
    file.rename(file.with_name("replayed"))
    add(letters, large("c"), large("d"))
    assert (ids(file), letters.errors) == ((["c", "d"], 0), 0)
    assert not file.with_name("letters.jsonl.1").exists()


def test_the_end_of_the_process_drops_no_older_letters(file: Path) -> None:
    """As many are kept as fit beside the older letters, complete writes first."""
    letters = DeadLetters(str(file), 6 * LETTER)
    add(letters, *map(large, "abcd"))
    left = [large("open", complete=False), large("e"), large("huge", 5000), large("f"), large("g")]
    kept = keep(letters, left)
    assert [span.id for span in kept] == ["e", "f"]
    assert ids(file) == (["d", "e", "f"], 0)
    assert ids(file.with_name("letters.jsonl.1")) == (["a", "b", "c"], 0)
    assert (letters.dropped, letters.errors) == (0, 0)
    last = orjson.loads(file.read_bytes().splitlines()[-1])
    assert (last["reason"], last["status"], last["sink"]) == ("shutdown", 0, "sgp")


def test_the_end_of_the_process_may_use_both_files(file: Path) -> None:
    """Without an older file, the current one becomes the older one, and both are filled."""
    letters = DeadLetters(str(file), 6 * LETTER)
    add(letters, large("a"))
    kept = keep(letters, list(map(large, "bcdefgh")))
    assert [span.id for span in kept] == list("bcdef")
    assert ids(file.with_name("letters.jsonl.1")) == (["a", "b", "c"], 0)
    assert ids(file) == (["d", "e", "f"], 0)


def test_the_end_of_the_process_stops_at_a_disk_failure(file: Path) -> None:
    """What was kept before it is returned; the failure is counted once."""
    letters = DeadLetters(str(file), 100 * BIG)
    left = [large(id_, BIG) for id_ in "abcdef"]
    with no_file_grows_beyond(2 * BIG + 2 * LETTER):
        kept = keep(letters, left)
    assert [span.id for span in kept] == ["a", "b"]
    assert (ids(file), letters.errors) == ((["a", "b"], 0), 1)


def counting_down(seconds: Iterator[float]) -> Callable[[], float]:
    """A clock."""
    return lambda: next(seconds)


def test_the_end_of_the_process_stops_when_the_time_is_over(file: Path) -> None:
    """No letter is begun once no time is left."""
    letters = DeadLetters(str(file), 100_000)
    clock = counting_down(iter([0.5, 0.1, 0.0]))
    assert len(keep(letters, list(map(large, "abc")), clock)) == 2
    assert ids(file) == (["a", "b"], 0)

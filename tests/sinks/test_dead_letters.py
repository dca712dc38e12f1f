"""Dead letters: content, permissions and size of the file, and disk errors."""

from pathlib import Path

import orjson

from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from tests.support.spans import make_span

ERROR = Refused("HTTP 422", 422)


def test_the_content_of_a_letter(tmp_path: Path) -> None:
    """Sink, reason, status and the write as an event, byte for byte, in a file of mode 0600."""
    file = tmp_path / "letters.jsonl"
    letters = DeadLetters(str(file), 10_000)
    letters.add("sgp", make_span(input=b'{"n": 1e400}'), "refused", ERROR)
    letters.add("agentex", make_span(complete=False), "expired", ERROR)
    lines = file.read_bytes().splitlines()
    assert b'"input":{"n": 1e400}' in lines[0]
    letter = orjson.loads(lines[1])
    assert (letter["sink"], letter["reason"], letter["status"]) == ("agentex", "expired", 422)
    assert letter["event"]["event_type"] == "start"
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_files_are_bounded_and_dropped_letters_counted(tmp_path: Path) -> None:
    """The total size never exceeds the limit, also after a restart."""
    file = tmp_path / "letters.jsonl"
    for _ in range(2):
        letters = DeadLetters(str(file), 10_000)
        for _ in range(50):
            letters.add("sgp", make_span(input=b'{"p":"%b"}' % (b"x" * 400)), "refused", ERROR)
            total = sum(path.stat().st_size for path in tmp_path.iterdir())
            assert total <= 10_000
    kept = sum(len(path.read_bytes().splitlines()) for path in tmp_path.iterdir())
    assert 0 < letters.dropped <= 100 - kept


def test_a_disk_failure_does_not_stop_the_lane(tmp_path: Path) -> None:
    """It is counted, and nothing is raised."""
    letters = DeadLetters(str(tmp_path / "missing" / "letters.jsonl"), 10_000)
    letters.add("sgp", make_span(), "refused", ERROR)
    assert letters.errors == 1


def test_without_a_path_nothing_is_kept(tmp_path: Path) -> None:
    """No file is created, and no error counted."""
    letters = DeadLetters("", 10_000)
    letters.add("sgp", make_span(), "refused", ERROR)
    assert letters.errors == 0
    assert not list(tmp_path.iterdir())

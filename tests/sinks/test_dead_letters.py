"""Dead letters: a bounded file for a person."""

from pathlib import Path

import orjson

from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from tests.support.world import make_span

ERROR = Refused("HTTP 422", 422)


def test_a_letter_has_all_that_a_person_needs(tmp_path: Path) -> None:
    """Sink, reason, status, time, and the write as an event, byte for byte; mode 0600."""
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


def test_the_file_is_bounded_and_the_oldest_are_counted_out(tmp_path: Path) -> None:
    """Two files of half the size each; also across a restart."""
    file = tmp_path / "letters.jsonl"
    for _ in range(2):
        letters = DeadLetters(str(file), 10_000)
        for _ in range(50):
            letters.add("sgp", make_span(input=b'{"p":"%b"}' % (b"x" * 400)), "refused", ERROR)
            total = sum(each.stat().st_size for each in tmp_path.iterdir())
            assert total <= 10_000
    kept = sum(len(each.read_bytes().splitlines()) for each in tmp_path.iterdir())
    assert 0 < letters.dropped <= 100 - kept


def test_a_disk_that_fails_does_not_stop_the_lane(tmp_path: Path) -> None:
    """It is counted."""
    letters = DeadLetters(str(tmp_path / "missing" / "letters.jsonl"), 10_000)
    letters.add("sgp", make_span(), "refused", ERROR)
    assert letters.errors == 1


def test_without_a_path_nothing_is_kept(tmp_path: Path) -> None:
    """No file, no error."""
    letters = DeadLetters("", 10_000)
    letters.add("sgp", make_span(), "refused", ERROR)
    assert letters.errors == 0
    assert not list(tmp_path.iterdir())

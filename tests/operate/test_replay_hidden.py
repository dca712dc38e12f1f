"""Dead letters from which something was hidden: where `sidecar replay` sends them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sidecar.config_load import load
from sidecar.operate import letters, replay, replay_command
from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.sinks.replayed import marks_of
from tests.support.otlp import OtlpStandIn, attributes
from tests.support.spans import make_span
from tests.support.world import running_app

ERROR = Refused("HTTP 400", 400)


def is_marked(file: Path) -> int:
    """How many letters in a file need no further replay."""
    return len(marks_of(file).read_bytes().splitlines())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of two letters of OTLP: of the first, the input is hidden."""
    path = tmp_path / "letters.jsonl"
    dead = DeadLetters(str(path), 100_000, lambda _: "", {"otlp": 1})
    dead.add("otlp", make_span("cut", input=b'{"q":"prompt-4c1"}'), "refused", ERROR)
    dead.add("otlp", make_span("whole", input=b""), "refused", ERROR)
    return path


def test_what_is_in_the_file(file: Path) -> None:
    """What was hidden is not on the disk."""
    assert b"prompt-4c1" not in file.read_bytes()


async def test_not_through_a_sidecar(file: Path) -> None:
    """There it would replace the whole span elsewhere: it is not sent, and not marked as done."""
    async with OtlpStandIn() as otlp:
        async with running_app({"SIDECAR_OTLP__ENDPOINT": otlp.url}) as app:
            done = await replay.through(str(file), None, app.url)
            assert dict(+done) == {"accepted": 1, "hidden": 1}
        assert set(otlp.spans) == {"whole"}
    assert is_marked(file) == 1


def test_the_command_says_what_to_do(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails, and tells to leave out `--to`; a list says what is not in a letter."""

    async def through(*_: Any) -> Counter[str]:
        return Counter(hidden=1)

    monkeypatch.setattr(replay, "through", through)
    run: Any = replay_command.run
    options: dict[str, Any] = {"config": load(None, {}), "environ": {}}
    assert run(str(file), None, to="http://h", dry_run=False, **options) == 1
    assert "1 not sent: their upstream must not see all of them" in capsys.readouterr().err
    assert run(str(file), None, to=None, dry_run=True, **options) == 0
    cut, whole = capsys.readouterr().out.splitlines()
    assert cut.endswith("  cut  (without input)")
    assert whole.endswith("  whole")


async def test_directly(file: Path) -> None:
    """Its upstream gets what is in it, also if nothing is hidden from it any more."""
    async with OtlpStandIn() as otlp:
        environ = {"SIDECAR_OTLP__ENDPOINT": otlp.url}
        done = await replay.directly(str(file), None, load(None, environ), environ)
        assert dict(+done) == {"forwarded": 2}
        assert "input.value" not in attributes(otlp.spans["cut"].attributes)


async def test_a_letter_that_is_refused_again(file: Path, tmp_path: Path) -> None:
    """It still says what is not in it, besides what is hidden now."""
    again = tmp_path / "again.jsonl"
    async with OtlpStandIn() as otlp:
        otlp.bad = lambda _: True
        environ = {
            "SIDECAR_OTLP__ENDPOINT": otlp.url,
            "SIDECAR_OTLP__HIDE": "output",
            "SIDECAR_DEAD_LETTERS__PATH": str(again),
        }
        done = await replay.directly(str(file), None, load(None, environ), environ)
        assert dict(+done) == {"dead_lettered": 2}
    found = {each.span.id: each.head.hidden for each in letters.read(str(again), None, Counter())}
    assert found == {"cut": ["input", "output"], "whole": ["output"]}


def test_a_letter_with_an_unknown_word(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is no letter of ours: nobody knows what is missing in it."""
    line = json.loads(file.read_text().splitlines()[0])
    file.write_text(json.dumps(line | {"hidden": ["\x1b[2J"]}) + "\n")
    counts = Counter[str]()
    assert list(letters.read(str(file), None, counts)) == []
    assert counts["unreadable"] == 1
    assert "\x1b" not in capsys.readouterr().err

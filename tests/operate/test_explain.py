"""`sidecar explain`: what happened to one span."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.demo.behaviours import Answer
from sidecar.demo.sgp import SgpStandIn
from sidecar.operate import explain
from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.sinks.replayed import Place, known_by, mark
from tests.support.spans import make_event, make_span
from tests.support.world import NOWHERE, Running, running_app

SGP = {"SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}


@pytest.fixture
async def app() -> AsyncIterator[Running]:
    """A sidecar with a working SGP and an unreachable Agentex."""
    async with SgpStandIn() as sgp:
        environ = SGP | {"SGP_CLIENT_BASE_URL": sgp.url, "AGENTEX_BASE_URL": NOWHERE}
        async with running_app(environ, shutdown__grace_s=0) as running:
            yield running


async def ask(
    app: Running, capsys: pytest.CaptureFixture[str], id_: str, letters: str = ""
) -> tuple[int, str]:
    """Run `explain`; return the exit code and what it prints."""
    capsys.readouterr()  # the sidecar's own log
    code = await asyncio.to_thread(explain.run, id_, app.admin_url, letters, as_json=False)
    return code, capsys.readouterr().out


def whats(app: Running, id_: str) -> set[str]:
    """What was decided about the span."""
    return {each.what for each in app.app.decisions.latest(100) if each.id == id_}


async def until(app: Running, id_: str, what: str) -> None:
    """Return once the decision `what` about the span is recorded."""
    async with asyncio.timeout(10):
        while what not in whats(app, id_):  # noqa: ASYNC110
            await asyncio.sleep(0)  # the ring has no event to wait for: it is on the hot path


async def test_accepted_sent_and_waiting(app: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """It shows what happened at each sink and what is still pending, without content."""
    await app.post(make_event(kind="start", input={"secret": "prompt"}))
    await app.post(make_event(kind="end"))
    await until(app, "s1", "forwarded")
    await until(app, "s1", "not accepted")
    waiting = r"  now: Agentex: waiting for a retry \(.* so far, .*\); SGP: delivered\n"
    async with asyncio.timeout(30):
        code, output = await ask(app, capsys, "s1")
        while not re.search(waiting, output):  # it may be just asking again
            code, output = await ask(app, capsys, "s1")
    assert code == explain.KNOWN
    assert "span s1 of account a, trace t1\n" in output
    for words in (
        "accepted     The sidecar accepted its START.",
        "accepted     The sidecar accepted its END.",
        "joined       Its END and its START became one complete write.",
        "sgp      forwarded    SGP accepted the complete write.",
        "agentex  not accepted Agentex did not accept the complete write: 127.0.0.1:1 refuses ",
    ):
        assert words in output
    assert "prompt" not in output


async def test_an_open_span(app: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """It shows that the START waits for its END."""
    await app.post(make_event("open"))
    code, output = await ask(app, capsys, "open")
    assert (code, "now: its START is held for its END\n" in output) == (explain.KNOWN, True)


async def test_a_span_that_never_came(app: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown span has an exit code of its own, for scripts."""
    code, output = await ask(app, capsys, "no/such span?")
    assert (code, "unknown: " in output) == (explain.UNKNOWN, True)


def mark_whole(letters: Path) -> None:
    """Mark all of a file as replayed."""
    mark(letters, [Place(known_by(letters.read_bytes()), 0, letters.stat().st_size)])


async def test_a_dead_letter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dead letter is found in the file, even after the sidecar that wrote it is gone."""
    letters = str(tmp_path / "letters.jsonl")
    async with SgpStandIn() as sgp:
        sgp.rule = lambda _: Answer(422, b"{}")
        environ = SGP | {"SGP_CLIENT_BASE_URL": sgp.url}
        async with running_app(environ, dead_letters__path=letters) as app:
            await app.post(make_event(kind="end"))
            await until(app, "s1", "dead letter")
    async with running_app(shutdown__grace_s=0) as later:
        code, output = await ask(later, capsys, "s1", letters)
        await asyncio.to_thread(mark_whole, Path(letters))
        _, afterwards = await ask(later, capsys, "s1", letters)
    assert code == explain.KNOWN
    assert "dead letter: " in output
    assert "422" in output
    assert "replayed" not in output
    assert "422  complete  replayed since\n  now: SGP: dead letter (refused), replayed since" in (
        afterwards
    )


@pytest.mark.parametrize("older", [True, False])
async def test_a_bad_line_among_the_dead_letters(
    app: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str], older: bool
) -> None:
    """It is reported, and may have been about the span: the rest is shown, with exit code 1."""
    file = tmp_path / "letters.jsonl"
    DeadLetters(str(file), 10_000).add("sgp", make_span("x  s1"), "refused", Refused("", 422))
    DeadLetters(str(file), 10_000).add("sgp", make_span(), "refused", Refused("", 422))
    bad = file.with_name("letters.jsonl.1") if older else file
    with bad.open("ab") as torn:
        torn.write(b'{"time":"secret')
    code = await asyncio.to_thread(explain.run, "s1", app.admin_url, str(file), as_json=False)
    shown = capsys.readouterr()
    assert code == explain.UNKNOWN
    assert shown.out.count("dead letter: ") == 1
    assert "unknown: " not in shown.out
    assert shown.err == f"sidecar: {bad}:{1 if older else 3}: not a dead letter\n"


async def test_dead_letters_that_cannot_be_read(
    app: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the sidecar knows is shown all the same, with exit code 1."""
    await app.post(make_event("open"))
    letters = str(tmp_path)
    code = await asyncio.to_thread(explain.run, "open", app.admin_url, letters, as_json=False)
    shown = capsys.readouterr()
    assert (code, "its START is held" in shown.out) == (explain.UNKNOWN, True)
    assert f"sidecar: {letters}: " in shown.err


async def test_json_for_scripts(app: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints the documented keys."""
    await app.post(make_event("open"))
    capsys.readouterr()  # the sidecar's own log
    await asyncio.to_thread(explain.run, "open", app.admin_url, "", as_json=True)
    known = json.loads(capsys.readouterr().out)
    assert set(known) == {
        "id", "found_by", "text", "remembered", "searched", "spans", "left_off",
    }  # fmt: skip
    assert set(known["spans"][0]["lanes"]) == {"agentex", "sgp"}


def test_no_sidecar_at_the_url(capsys: pytest.CaptureFixture[str]) -> None:
    """An unreachable sidecar has an exit code of its own, and the error names the URL."""
    assert explain.run("s1", NOWHERE, "", as_json=False) == explain.NO_SIDECAR
    error = capsys.readouterr().err
    assert error == f"sidecar: no sidecar responds at {NOWHERE}: Connection refused\n"


async def test_an_id_is_needed(app: Running) -> None:
    """A request without an id gets a 400."""
    async with app.client.get(f"{app.admin_url}/explain") as response:
        assert response.status == 400

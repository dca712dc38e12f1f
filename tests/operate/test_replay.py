"""`sidecar replay`: listing dead letters, and sending them directly or through a sidecar."""

from pathlib import Path

import pytest

from sidecar.config import ConfigError
from sidecar.config_load import load
from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.operate import replay
from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.spans.span import Lanes, SdkFields
from tests.support.spans import make_span
from tests.support.world import running_app

ERROR = Refused("HTTP 422", 422)


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """Return a file of three letters: a complete write of each sink, and an open one of SGP."""
    file = tmp_path / "letters.jsonl"
    dead = DeadLetters(str(file), 100_000)
    dead.add("sgp", make_span("a", input=b'{"secret": "prompt"}'), "refused", ERROR)
    dead.add("agentex", make_span("b"), "failing", ERROR)
    dead.add("sgp", make_span("c", complete=False), "refused", ERROR)
    return file


def test_the_listing_shows_reasons_and_no_content(letters: Path) -> None:
    """There is one line per letter; `sink` selects."""
    lines = list(replay.listing(str(letters), None))
    assert [line.split()[-1] for line in lines] == ["a", "b", "c"]
    assert "refused" in lines[0]
    assert "422" in lines[0]
    assert "prompt" not in "".join(lines)
    assert len(list(replay.listing(str(letters), "agentex"))) == 1


async def test_each_letter_goes_to_the_sink_that_refused_it(letters: Path) -> None:
    """A letter goes to no other sink, and an open one not to SGP, where it could replace a row."""
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        environ = {
            "AGENTEX_BASE_URL": agentex.url,
            "SGP_CLIENT_BASE_URL": sgp.url,
            "SGP_API_KEY": "k",
            "SGP_ACCOUNT_ID": "a",
        }
        done = await replay.directly(str(letters), None, load(None, environ), environ)
        assert dict(+done) == {"forwarded": 2, "skipped": 1}
        assert set(agentex.spans) == {"b"}
        assert {key[1] for key in sgp.spans} == {"a"}


async def test_through_a_running_sidecar(letters: Path) -> None:
    """A running sidecar accepts the complete writes as events."""
    async with AgentexStandIn() as agentex:
        async with running_app({"AGENTEX_BASE_URL": agentex.url}) as app:
            done = await replay.through(str(letters), "sgp", app.url)
            assert dict(+done) == {"accepted": 1, "skipped": 1}
        assert set(agentex.spans) == {"a"}


async def test_a_letter_is_sent_by_its_original_route(tmp_path: Path) -> None:
    """What an SDK sent to one upstream only goes to that upstream only, unchanged."""
    file = tmp_path / "letters.jsonl"
    dead = DeadLetters(str(file), 100_000)
    extra = b'"status":"SUCCESS","type":"CUSTOM"'
    dead.add("sgp", make_span("a", sdk=SdkFields(Lanes.SGP, extra)), "refused", ERROR)
    dead.add("agentex", make_span("b", sdk=SdkFields(Lanes.AGENTEX)), "failing", ERROR)
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        environ = {
            "AGENTEX_BASE_URL": agentex.url,
            "SGP_CLIENT_BASE_URL": sgp.url,
            "SGP_API_KEY": "k",
            "SGP_ACCOUNT_ID": "a",
        }
        async with running_app(environ) as app:
            done = await replay.through(str(file), None, app.url)
            assert dict(+done) == {"accepted": 2}
            await sgp.arrived(1)
            await replay.through(str(file), "sgp", app.url)
            await sgp.arrived(2)  # the refused write does not count as a repeated event
        assert set(agentex.spans) == {"b"}
        (row,) = sgp.spans.values()
        assert "metadata" not in row
        done = await replay.directly(str(file), "sgp", load(None, environ), environ)
        assert dict(+done) == {"forwarded": 1}
        assert list(sgp.spans.values()) == [row]


def test_an_invalid_dead_letter_is_located(tmp_path: Path) -> None:
    """The error names the file, and the line of an invalid letter."""
    file = tmp_path / "letters.jsonl"
    file.write_text("what?\n")
    with pytest.raises(ConfigError, match=r"letters.jsonl:1: not a dead letter"):
        list(replay.listing(str(file), None))
    with pytest.raises(ConfigError, match="No such file"):
        list(replay.listing(str(tmp_path / "none"), None))

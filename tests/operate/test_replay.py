"""`sidecar replay`: sending dead letters directly or through a sidecar."""

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sidecar.config_load import load
from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Answer
from sidecar.operate import replay
from sidecar.operate.letters import read
from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.sinks.replayed import marks_of, read_marks, waiting_in
from sidecar.spans.span import Lanes, SdkFields
from tests.support.faults import Json
from tests.support.spans import make_span
from tests.support.world import running_app, upstream

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


@pytest.mark.parametrize("end", ["", "/below", "/below/"])
async def test_through_a_sidecar_below_a_path(letters: Path, end: str) -> None:
    """The routes are below the path of `--to`, with or without a slash at its end."""
    async with upstream() as sidecar:
        done = await replay.through(str(letters), "agentex", sidecar.url + end)
        paths = [request.path for request in sidecar.requests]
    assert (dict(+done), paths) == ({"accepted": 1}, [f"{end.rstrip('/')}/v1/spans"])


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


def environ_of(agentex: AgentexStandIn, sgp: SgpStandIn, account: str) -> dict[str, str]:
    """The variables of a pod whose SGP account is `account`."""
    return {
        "AGENTEX_BASE_URL": agentex.url,
        "SGP_CLIENT_BASE_URL": sgp.url,
        "SGP_API_KEY": "k",
        "SGP_ACCOUNT_ID": account,
    }


@pytest.fixture
def damaged(letters: Path) -> Path:
    """Return the file of `letters` with two lines before them that are no letters."""
    lines = letters.read_bytes().splitlines(keepends=True)
    letters.write_bytes(b"".join([lines[0][:40], lines[1], b"what?\n", *lines]))
    return letters


async def test_a_bad_line_keeps_no_letter_from_being_sent(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Directly and through a sidecar, the other letters are sent; the bad line is counted."""
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        environ = environ_of(agentex, sgp, "a")
        done = await replay.directly(str(damaged), None, load(None, environ), environ)
        assert dict(+done) == {"forwarded": 2, "skipped": 1, "unreadable": 2}
        assert ({*agentex.spans}, {key[1] for key in sgp.spans}) == ({"b"}, {"a"})
        async with running_app(environ) as app:
            done = await replay.through(str(damaged), None, app.url)
            assert dict(+done) == {"accepted": 2, "skipped": 1, "unreadable": 2}
        assert set(agentex.spans) == {"a", "b"}
    assert capsys.readouterr().err.count("letters.jsonl:2: not a dead letter") == 2


@pytest.fixture
def accounts(tmp_path: Path) -> Path:
    """Return a file with a letter without an account, and letters of two accounts."""
    file = tmp_path / "letters.jsonl"
    dead = DeadLetters(str(file), 100_000, ["", "acme", "other"].__getitem__)
    sdk = SdkFields(Lanes.SGP)
    dead.add("sgp", make_span("none"), "refused", ERROR)
    for number, name in enumerate(["acme", "other"], 1):
        dead.add("sgp", make_span(f"event-{name}", account=number), "refused", ERROR)
        dead.add("sgp", make_span(f"item-{name}", account=number, sdk=sdk), "refused", ERROR)
        dead.add("agentex", make_span(f"agentex-{name}", account=number), "refused", ERROR)
    return file


async def test_no_letter_is_sent_to_sgp_under_another_account(accounts: Path) -> None:
    """Letters of other accounts are counted; those for Agentex do not depend on the account."""
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        environ = environ_of(agentex, sgp, "acme")
        done = await replay.directly(str(accounts), None, load(None, environ), environ)
        assert dict(+done) == {"forwarded": 5, "other_account": 2}
        assert {key[1] for key in sgp.spans} == {"none", "event-acme", "item-acme"}
        assert set(agentex.spans) == {"agentex-acme", "agentex-other"}


async def test_a_letter_keeps_its_account_when_it_is_refused_again(
    accounts: Path, tmp_path: Path
) -> None:
    """Its new dead letter names the same account."""
    again = tmp_path / "again.jsonl"
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        agentex.rule = sgp.rule = lambda _: 422
        environ = environ_of(agentex, sgp, "acme")
        environ |= {"SIDECAR_DEAD_LETTERS__PATH": str(again)}
        done = await replay.directly(str(accounts), None, load(None, environ), environ)
        assert dict(+done) == {"dead_lettered": 5, "other_account": 2}
    counts: Counter[str] = Counter()
    found = {(each.span.id, each.head.account) for each in read(str(again), None, counts)}
    assert found == {
        ("none", "acme"),  # it was sent under the configured account
        ("event-acme", "acme"),
        ("item-acme", "acme"),
        ("agentex-acme", "acme"),
        ("agentex-other", "other"),
    }


async def test_what_the_sink_skips_is_not_counted_as_forwarded(tmp_path: Path) -> None:
    """An open write whose id no URL can hold is not sent to Agentex again either."""
    file = tmp_path / "letters.jsonl"
    DeadLetters(str(file), 10_000).add(
        "agentex", make_span("a/b", complete=False), "failing", ERROR
    )
    async with AgentexStandIn() as agentex:
        environ = {"AGENTEX_BASE_URL": agentex.url}
        done = await replay.directly(str(file), None, load(None, environ), environ)
    assert (dict(+done), agentex.requests) == ({"skipped": 1}, [])


# Written by the sidecar of commit 56dacfc, whose upstreams refused or failed for these spans. None
# of its letters has an account.
OLD = Path(__file__).with_name("letters_56dacfc.jsonl")
OLD_EVENTS = {"refused-event", "unicode", "failing-event", "large-event", "expired-event"}


@pytest.fixture
def old(tmp_path: Path) -> str:
    """A copy, beside which a replay can leave its marks."""
    return str(shutil.copy(str(OLD), tmp_path))


def sent_at(rows: Mapping[Any, Json]) -> dict[str, Json]:
    """The rows of a stand-in by span id."""
    return {row["id"]: row for row in rows.values()}


def test_letters_of_an_older_version_are_listed() -> None:
    """Every letter is read, with its reason."""
    counts: Counter[str] = Counter()
    found = list(read(str(OLD), None, counts))
    assert Counter((each.head.sink, each.head.reason) for each in found) == {
        ("agentex", "refused"): 4,
        ("sgp", "refused"): 5,
        ("agentex", "failing"): 3,
        ("sgp", "failing"): 1,
        ("agentex", "too_large"): 1,
        ("sgp", "too_large"): 1,
        ("agentex", "expired"): 1,
        ("sgp", "expired"): 1,
    }
    assert not counts


async def test_letters_of_an_older_version_are_sent_directly(old: str) -> None:
    """Each goes to its upstream, except for open writes of SGP."""
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        environ = environ_of(agentex, sgp, "acme")
        done = await replay.directly(old, None, load(None, environ), environ)
        assert dict(+done) == {"forwarded": 15, "skipped": 2}
        assert set(agentex.spans) == OLD_EVENTS | {"open-event", "sdk-span", "sdk-end"}
        assert agentex.complete == set(agentex.spans) - {"open-event"}
        rows = sent_at(sgp.spans)
        assert set(rows) == OLD_EVENTS | {"sdk-item"}
        assert (rows["sdk-item"]["type"], rows["sdk-item"]["group_id"]) == ("COMPLETION", "group")
        text = 'Grüße \U0001f600 "quoted" \\ \n'
        assert agentex.spans["unicode"]["input"] == [{"prompt": text}]
        assert rows["unicode"]["input"] == {"items": [{"prompt": text}]}


async def test_letters_of_an_older_version_are_sent_through_a_sidecar(old: str) -> None:
    """Each complete write goes where it first went, on the route on which it arrived."""
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        async with running_app(environ_of(agentex, sgp, "acme")) as app:
            done = await replay.through(old, None, app.url)
            assert dict(+done) == {"accepted": 13, "skipped": 4}
        assert set(agentex.spans) == agentex.complete == OLD_EVENTS | {"sdk-span", "sdk-end"}
        rows = sent_at(sgp.spans)
        assert set(rows) == OLD_EVENTS | {"sdk-item"}
        assert "__source__" not in rows["sdk-item"]["metadata"]


def waiting(file: Path) -> int:
    """How many letters of a file are not marked as replayed."""
    with file.open("rb") as opened:
        return waiting_in(opened, read_marks(marks_of(file)), 0, file.stat().st_size)


async def test_what_was_sent_directly_is_marked(letters: Path) -> None:
    """Delivered letters are done, and so is what is never sent again; one that is left is not."""
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        environ = environ_of(agentex, sgp, "a")
        await replay.directly(str(letters), "agentex", load(None, environ), environ)
        assert waiting(letters) == 2
        await replay.directly(str(letters), "sgp", load(None, environ), environ)
        assert waiting(letters) == 0


async def test_an_upstream_that_is_off_is_not_marked(letters: Path) -> None:
    """Letters of an upstream that is not enabled still wait."""
    async with AgentexStandIn() as agentex:
        environ = {"AGENTEX_BASE_URL": agentex.url}
        done = await replay.directly(str(letters), None, load(None, environ), environ)
    assert dict(+done) == {"forwarded": 1, "off": 2}
    assert waiting(letters) == 2


@pytest.mark.parametrize("is_kept", [True, False])
async def test_what_is_refused_again_waits_again(letters: Path, *, is_kept: bool) -> None:
    """A letter that is refused again waits once: as a new one, or, if there is none, itself."""
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        agentex.rule = lambda _: Answer(422)
        environ = environ_of(agentex, sgp, "a")
        if is_kept:
            environ["SIDECAR_DEAD_LETTERS__PATH"] = str(letters)
        done = await replay.directly(str(letters), None, load(None, environ), environ)
    assert dict(+done) == {"forwarded": 1, "skipped": 1, "dead_lettered": 1}
    assert waiting(letters) == 1


async def test_what_a_sidecar_accepted_is_marked(letters: Path) -> None:
    """A sidecar that accepts letters has them; what it refuses still waits."""
    async with AgentexStandIn() as agentex:
        async with running_app({"AGENTEX_BASE_URL": agentex.url}) as app:
            await replay.through(str(letters), None, app.url)
        assert waiting(letters) == 0
    marks_of(letters).unlink()
    async with AgentexStandIn() as refusing:
        refusing.rule = lambda _: Answer(400, b'{"accepted": 0}')
        done = await replay.through(str(letters), "agentex", refusing.url)
    assert dict(+done) == {"rejected": 1}
    assert waiting(letters) == 3


async def test_a_folder_that_can_not_be_written(
    letters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Letters are sent although nothing can be marked; that is said."""
    marks_of(letters).with_name(f"{marks_of(letters).name}.{os.getpid()}").mkdir()
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        environ = environ_of(agentex, sgp, "a")
        done = await replay.directly(str(letters), None, load(None, environ), environ)
    assert dict(+done) == {"forwarded": 2, "skipped": 1}
    assert "what was replayed can't be marked: " in capsys.readouterr().err
    assert waiting(letters) == 3

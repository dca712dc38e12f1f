"""The words of a timeline, and where a span is now."""

from datetime import UTC, datetime
from typing import Any

import pytest

from sidecar.operate.timeline import FIRST, LAST, Clock, summary, timeline
from sidecar.telemetry.accounting import DEAD_LETTER_REASONS, NOT_TAKEN_REASONS, SKIP_REASONS
from sidecar.telemetry.decisions import Decision

CLOCK = Clock(100.0, datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC))


def decision(
    what: str, sink: str = "sgp", detail: str = "", *, at: float = 99.0, ended: bool = True
) -> Decision:
    """A decision about a span."""
    return Decision(at, sink, what, detail, ended, "s", 1, 2, 0)


def sentence(each: Decision) -> str:
    """What a timeline says of one decision."""
    (entry,), _ = timeline([each], CLOCK)
    text: str = entry["text"]
    return text


def test_an_entry() -> None:
    """It has the time in UTC, how long ago that was, and what was decided."""
    assert timeline([decision("forwarded", at=98.5)], CLOCK)[0] == [
        {
            "at": "2026-01-02T03:04:04.178Z",
            "ago_s": 1.5,
            "sink": "sgp",
            "what": "forwarded",
            "detail": "complete",
            "times": 1,
            "text": "SGP accepted the complete write.",
        }
    ]


@pytest.mark.parametrize(
    ("what", "detail", "ended", "shown", "text"),
    [
        ("accepted", "", False, "start", "The sidecar accepted its START."),
        ("accepted", "", True, "end", "The sidecar accepted its END."),
        ("joined", "", True, "complete", "Its END and its START became one complete write."),
        ("written", "", False, "open", "Its START was passed on as an open write."),
        (
            "written",
            "supplement",
            False,
            "supplement",
            "What its earlier writes lack was passed on in a write of its own.",
        ),
    ],
)
def test_the_intake(what: str, detail: str, ended: bool, shown: str, text: str) -> None:
    """What happened before the lanes is said in one sentence."""
    (entry,), _ = timeline([decision(what, "", detail, ended=ended)], CLOCK)
    assert (entry["detail"], entry["text"]) == (shown, text)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(
    ("what", "details"),
    [
        ("skipped", SKIP_REASONS),
        ("dead letter", DEAD_LETTER_REASONS),
        ("not taken", NOT_TAKEN_REASONS),
        ("not accepted", ("HTTP 503", "timed out")),
        ("forwarded", ("",)),
        ("partly kept", ("",)),
        ("superseded", ("",)),
    ],
)
def test_a_lane(what: str, details: tuple[str, ...], ended: bool) -> None:
    """Each outcome has words of its own, which name the write and the upstream."""
    said = {sentence(decision(what, detail=detail, ended=ended)) for detail in details}
    assert len(said) == len(details)
    for text in said:
        assert f"{'complete' if ended else 'open'} write" in text
        assert "SGP" in text
        assert text.endswith(".")
        assert not any(f": {detail}." in text for detail in details if "_" in detail)


def test_an_end_of_an_open_write() -> None:
    """It says what the upstream shows from then on."""
    text = sentence(decision("not taken", detail="end_of_open"))
    assert text.endswith("The upstream has its START, and keeps showing the span as running.")


def test_failures_that_repeat_are_one_entry() -> None:
    """At the time of the last one, with how many there were and since when, for each sink."""
    failures = [
        decision("not accepted", sink, detail, at=at)
        for at, sink, detail in [
            (90.0, "sgp", "HTTP 503"),
            (91.0, "agentex", "timed out"),
            (92.0, "sgp", "HTTP 503"),
            (93.0, "sgp", "HTTP 500"),
            (94.0, "sgp", "HTTP 503"),
            (95.0, "agentex", "timed out"),
            (1096.0, "agentex", "timed out"),
        ]
    ]
    entries, _ = timeline(failures, CLOCK)
    assert [(each["sink"], each["detail"], each["times"]) for each in entries] == [
        ("sgp", "HTTP 503", 2),
        ("sgp", "HTTP 500", 1),
        ("sgp", "HTTP 503", 1),
        ("agentex", "timed out", 3),
    ]
    text = (
        "Agentex did not accept the complete write: timed out. 3 times, since 2026-01-02T03:03:56"
    )
    assert entries[-1]["text"] == f"{text}.678Z."
    assert entries[0]["at"] == "2026-01-02T03:03:57.678Z"


def test_other_decisions_that_repeat_stay_apart() -> None:
    """Two events of the same kind are two entries."""
    twice, _ = timeline([decision("accepted", ""), decision("accepted", "")], CLOCK)
    assert [each["times"] for each in twice] == [1, 1]


def test_a_long_timeline_is_shortened() -> None:
    """The first and the last entries stay, and those between are counted."""
    failures = [decision("not accepted", detail=f"{n}") for n in range(FIRST + LAST + 3)]
    kept, left_off = timeline(failures, CLOCK)
    assert left_off == 3
    numbers = [*range(FIRST), *range(FIRST + 3, FIRST + LAST + 3)]
    assert [each["detail"] for each in kept] == list(map(str, numbers))
    kept, left_off = timeline(failures[3:], CLOCK)
    assert (len(kept), left_off) == (FIRST + LAST, 0)


RETRY = {"waits_for": "a retry", "failures": 2, "next_attempt_s": 1.5}
FIRST_RETRY = RETRY | {"failures": 1}
LETTER = {"sink": "sgp", "reason": "refused", "kind": "complete", "replayed": False}


REFUSED = decision("dead letter", detail="refused")
FAILED = decision("not accepted", detail="HTTP 503")


@pytest.mark.parametrize(
    ("decisions", "text"),
    [
        ([decision("accepted", "")], "nothing is known of where it went"),
        ([decision("forwarded")], "SGP: delivered"),
        ([FAILED, decision("forwarded")], "SGP: delivered"),
        ([decision("forwarded", ended=False)], "SGP: its START is delivered, its END is not"),
        ([FAILED, REFUSED], "SGP: dead letter (refused)"),
        ([decision("not taken", detail="no_room")], "SGP: not taken, because there was no room"),
        ([decision("skipped", detail="route_gone")], "SGP: not sent on purpose (route_gone)"),
        ([decision("superseded")], "SGP: replaced by a newer write"),
    ],
)
def test_what_was_decided_last(decisions: list[Decision], text: str) -> None:
    """Without a write that waits, a lane's last decision says where the span is."""
    assert summary(decisions, None, {"sgp": None}, [], []) == text


@pytest.mark.parametrize(
    ("later", "text"),
    [
        (decision("forwarded", ended=False), "delivered"),
        (REFUSED, "delivered, but a later write is: dead letter (refused)"),
        (FAILED, "delivered, but a later write is: not delivered (HTTP 503)"),
    ],
)
def test_an_end_stays_delivered(later: Decision, text: str) -> None:
    """What a late START or a repeated END adds does not take back that the END is there."""
    said = summary([decision("forwarded"), later], None, {"sgp": None}, [], [])
    assert said == f"SGP: {text}"


@pytest.mark.parametrize(
    ("waits", "text"),
    [
        ({"waits_for": "its turn"}, "waiting for its turn"),
        (RETRY, "waiting for a retry (2 failures so far, the next attempt is in 1.5 s)"),
        (FIRST_RETRY, "waiting for a retry (1 failure so far, the next attempt is in 1.5 s)"),
    ],
)
def test_what_waits(waits: dict[str, Any], text: str) -> None:
    """A write that waits in memory says where the span is, whatever was decided before."""
    for decisions in ([], [FAILED], [decision("forwarded", ended=False)]):
        assert summary(decisions, None, {"sgp": waits}, [], []) == f"SGP: {text}"


@pytest.mark.parametrize("decisions", [[], [FAILED]])
def test_what_is_on_disk(decisions: list[Decision]) -> None:
    """So does one that waits on disk, and a dead letter, unless the span was delivered since."""
    assert summary(decisions, None, {"sgp": None}, ["sgp"], []) == "SGP: waiting on disk"
    dead = summary(decisions, None, {"sgp": None}, [], [LETTER])
    assert dead == "SGP: dead letter (refused)"
    replayed = [*decisions, decision("forwarded")]
    assert summary(replayed, None, {"sgp": None}, [], [LETTER]) == "SGP: delivered"


def test_a_dead_letter_that_was_replayed() -> None:
    """It says so of the letter that the last decision is about, and of no other."""
    letter = LETTER | {"replayed": True}
    said = "SGP: dead letter (refused), replayed since"
    assert summary([], None, {"sgp": None}, [], [letter]) == said
    assert summary([REFUSED], None, {"sgp": None}, [], [letter]) == said
    for other in ({"reason": "failing"}, {"kind": "open"}, {"replayed": False}):
        about_another = summary([REFUSED], None, {"sgp": None}, [], [letter | other])
        assert about_another == "SGP: dead letter (refused)"


def test_where_its_start_is() -> None:
    """A START that waits for its END comes first."""
    assert summary([], "held for its END", {}, [], []) == "its START is held for its END"
    said = summary([decision("forwarded", ended=False)], "written", {"sgp": None}, [], [])
    assert said == "its START is written; SGP: its START is delivered, its END is not"


def test_each_lane_has_its_sentence() -> None:
    """They are in the order of the lanes."""
    decisions = [decision("forwarded"), decision("forwarded", "agentex")]
    said = summary(decisions, None, {"agentex": None, "sgp": RETRY}, [], [])
    assert said.startswith("Agentex: delivered; SGP: waiting for a retry (")

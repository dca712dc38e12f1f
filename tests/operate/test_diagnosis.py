"""The operator's three questions, answered from a report of `/status`."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sidecar.operate.diagnosis import answers, late_after
from sidecar.operate.hints import HINTS
from sidecar.operate.words import duration

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]

SINK = {
    "state": "up",
    "label": "up",
    "next_attempt": "next attempt now",
    "error": None,
    "last_error": None,
    "requests_in_flight": 0,
    "requests_per_s": 0.0,
    "request_p95_s": None,
    "answer_age_s": None,
    "retrying": 0,
    "catching_up": False,
    "late_until": None,
    "caught_up_in_s": None,
    "full_in_s": None,
    "depth": 0,
    "concurrency_limit": 8,
    "oldest_write_age_s": 0.0,
    "has_credential": True,
    "forwarded_per_s": 0.0,
    "delay_p95_s": None,
    "accounts": [{"id": None, "state": "up", "has_credential": True}],
    "lane_bytes": 0,
    "lane_limit_bytes": 100,
    "not_taken": 0,
    "not_taken_per_s": 0.0,
    "not_taken_by_reason": {"no_room": 0, "end_of_open": 0},
    "not_taken_age_s": 3.0,
    "dead_lettered": 0,
    "dead_lettered_age_s": 3.0,
    "dead_lettered_by_reason": {"refused": 0},
    "lost": 0,
    "lost_age_s": 3.0,
    "lost_by_reason": {"shutdown": 0},
    "imbalance": 0,
}
HEALTHY = {
    "host": "agent-0",
    "time": "2026-03-01T09:00:00Z",
    "uptime_s": 7200.0,
    "ready": True,
    "phase": "running",
    "spool": None,
    "memory": {"rss_bytes": 10, "limit_bytes": None},
    "late_after_s": 5.0,
    "lost_at_last_shutdown": 0,
    "config": {"queue": {"start_hold_s": 2.0}},
    "log": {"lines_dropped": 5, "lines_dropped_lately": 0},
    "queue": {"bytes": 0, "limit_bytes": 100},
    "intake": {
        "url": "http://127.0.0.1:8318",
        "rejected_per_s": 0.0,
        "rejected_now": [],
        "rejected_by_reason": {"invalid": 0},
    },
    "dead_letters": {
        "path": "/letters/dead.jsonl",
        "kept": 0,
        "replay": None,
        "not_kept": 0,
        "not_kept_age_s": None,
    },
    "events": {"received": 2, "replayed": 0, "held": 0, "imbalance": 0},
    "sinks": {"agentex": dict(SINK), "sgp": dict(SINK)},
}


def accounts(*states: tuple[str, str]) -> list[Json]:
    """The accounts of a sink, by id and state; "" is a missing credential."""
    return [
        {"id": id_, "state": state or "up", "has_credential": bool(state)} for id_, state in states
    ]


def not_taken(no_room: int = 0, end_of_open: int = 0, per_s: float = 0.0) -> Json:
    """The changes of a healthy report after writes that SGP's lane did not take."""
    return {
        "sgp__not_taken": no_room + end_of_open,
        "sgp__not_taken_per_s": per_s,
        "sgp__not_taken_by_reason": {"no_room": no_room, "end_of_open": end_of_open},
    }


def diagnose(question: int, **changes: object) -> tuple[str, str, str]:
    """Answer one question as `answered`: its level, answer and detail."""
    answer = answered(question, **changes)
    return answer["level"], answer["answer"], answer["detail"]


def answered(question: int, **changes: object) -> Json:
    """Answer one question after changing a healthy report.

    Keys of `changes` are paths with `__` for dots; `sgp__x` is a key of that sink.
    """
    report: Json = copy.deepcopy(HEALTHY)
    for path, value in changes.items():
        *parents, last = path.split("__")
        part = report["sinks"] if path.startswith(("agentex__", "sgp__", "otlp__")) else report
        for name in parents:
            part = part[name]
        part[last] = value
    return answers(report)[question]


@pytest.mark.parametrize("question", [0, 1, 2])
def test_all_is_well(question: int) -> None:
    """A healthy sidecar gets `ok` for all three questions."""
    report: Json = copy.deepcopy(HEALTHY)
    assert answers(report)[question]["level"] == "ok"


@pytest.mark.parametrize(
    ("received", "detail"),
    [
        (1, "the one event is accounted for"),
        (1234, "all 1,234 events are accounted for"),
    ],
)
def test_what_is_accounted_for(received: int, detail: str) -> None:
    """Nothing is lost: the detail has the number of events."""
    changes = {"events__received": received, "events__replayed": 0}
    assert diagnose(0, **changes) == ("ok", "No", detail)


LETTERS = {"sgp__dead_lettered": 2, "sgp__dead_lettered_by_reason": {"refused": 2}}
ONE_LETTER = {"sgp__dead_lettered": 1, "sgp__dead_lettered_by_reason": {"too_large": 1}}
SET_ASIDE = "2 writes to SGP were set aside (2 refused), the last 3 s ago"
LOSING = [
    (
        {"events__imbalance": 3},
        "bad", "The accounting does not balance", "3 are unaccounted for: this is a bug",
    ),
    (
        {"sgp__imbalance": -1},
        "bad", "The accounting does not balance", "1 is unaccounted for: this is a bug",
    ),
    (
        {"sgp__lost": 4, "sgp__lost_by_reason": {"shutdown": 4}},
        "bad", "Yes", "4 writes to SGP were lost (4 shutdown), the last 3 s ago",
    ),
    (
        {"sgp__lost": 1, "sgp__lost_by_reason": {"spool": 1}, "sgp__lost_age_s": 901.0},
        "ok", "Not now", "1 write to SGP was lost (1 spool), 15 min 1 s ago",
    ),
    (
        {"intake__rejected_per_s": 2.5, "intake__rejected_now": ["no_room"]},
        "bad", "Events are being rejected", "2.5 refusals per second: no room",
    ),
    (
        {"intake__rejected_per_s": 0.2, "intake__rejected_now": ["stopping"]},
        "warn", "Events are being rejected", "0.2 refusals per second: stopping",
    ),
    (
        LETTERS | {"dead_letters__path": None},
        "warn", "Dead letters",
        f"{SET_ASIDE}; no dead letter is kept: dead_letters.path is not set",
    ),
    (
        LETTERS | {"dead_letters__kept": 3, "dead_letters__replay": "sidecar replay /f"},
        "warn", "Dead letters",
        f"{SET_ASIDE}; 3 letters are in /letters/dead.jsonl, not replayed yet",
    ),
    (
        {"dead_letters__kept": 1, "dead_letters__replay": "sidecar replay /f"},
        "warn", "Dead letters", "1 letter is in /letters/dead.jsonl, not replayed yet",
    ),
    (
        ONE_LETTER | {"sgp__dead_lettered_age_s": 1000.0, "dead_letters__kept": None},
        "ok", "Dead letters",
        ("1 write to SGP was set aside (1 too large), 16 min 40 s ago; "
         "/letters/dead.jsonl could not be read yet"),
    ),
    (
        LETTERS, "ok", "No dead letters are left",
        f"{SET_ASIDE}; nothing is left to replay in /letters/dead.jsonl",
    ),
    (
        {"dead_letters__not_kept": 1, "dead_letters__not_kept_age_s": 2.0},
        "bad", "Dead letters are not kept",
        ("1 dead letter is not in the file, for lack of room or because its disk failed, "
         "2 s ago"),
    ),
    (
        not_taken(no_room=1200, per_s=2.5),
        "bad", "Yes, at SGP",
        "its room is full: 2.5 writes per second are not taken, 1,200 so far",
    ),
    (
        not_taken(no_room=2, end_of_open=1, per_s=0.2) | {"sgp__state": "down"},
        "bad", "Yes, at SGP",
        ("its room is full because SGP is down: 0.2 writes per second are not taken, 3 so far; "
         "1 span will be shown as running there"),
    ),
    (
        not_taken(no_room=2, end_of_open=1),
        "warn", "Not now",
        ("3 writes to SGP were not taken for lack of room, the last 3 s ago; "
         "1 span will be shown as running there"),
    ),
    (
        not_taken(no_room=1) | {"sgp__not_taken_age_s": 7200.0},
        "ok", "Not now", "1 write to SGP was not taken for lack of room, 2 h 0 min ago",
    ),
    (
        {"lost_at_last_shutdown": 1, "uptime_s": 60.0},
        "warn", "Lost at the last stop", "the process before this one lost 1 write when it stopped",
    ),
    (
        {"lost_at_last_shutdown": 7},
        "ok", "Lost at the last stop", "the process before this one lost 7 writes when it stopped",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "level", "answer", "detail"), LOSING)
def test_are_we_losing_anything(changes: Json, level: str, answer: str, detail: str) -> None:
    """Every way to lose something is reported with its reason."""
    found = diagnose(0, **changes)
    assert found == (level, answer, detail)


EMPTY = {"events__received": 0}


def test_nothing_has_arrived_yet() -> None:
    """Before the first event, the answer is the command that sends one to this very sidecar."""
    text = "no agent has sent an event in the 2 h 0 min since the start"
    assert diagnose(0, **EMPTY) == ("ok", "Nothing has arrived yet", text)
    assert diagnose(1, **EMPTY) == ("ok", "No", "there was nothing to deliver yet")
    assert diagnose(2, **EMPTY)[2] == "Agentex and SGP answered when last asked"
    hint = answered(0, **EMPTY)["hint"]
    command = hint.partition("curl ")[2]
    assert "http://127.0.0.1:8318/v1/spans " in command
    event = json.loads(command.partition("-d '")[2].removesuffix("'"))
    assert event["event_type"] == "end"
    assert event["span"]["start_time"] == "2026-03-01T09:00:00Z"


def test_what_was_refused_has_arrived() -> None:
    """If all events so far were refused, it does not say that none has arrived."""
    refused = {"intake__rejected_by_reason": {"invalid": 2}}
    text = "no event was accepted in the 2 h 0 min since the start; refused: 2 invalid"
    assert diagnose(0, **EMPTY, **refused) == ("ok", "No", text)


def test_the_refused_key_behind_a_loss_is_named() -> None:
    """The account whose key is refused is named where its writes are not taken, too."""
    changes = not_taken(no_room=1, per_s=0.2)
    found = diagnose(
        0,
        **changes,
        sgp__state="unauthorized",
        sgp__accounts=accounts(("acme", "up"), ("umbrella", "unauthorized")),
    )
    assert "because SGP refuses the key of account umbrella: " in found[2]


def test_every_loss_is_in_the_answer() -> None:
    """The worst one is the answer; the others are in its details."""
    letters = {"agentex__dead_lettered": 1, "agentex__dead_lettered_by_reason": {"refused": 1}}
    letters |= {"dead_letters__path": None}
    found = diagnose(0, **letters, **not_taken(no_room=1, per_s=0.2))
    assert found[:2] == ("bad", "Yes, at SGP")
    others = "; Dead letters: 1 write to Agentex was set aside (1 refused), 3 s ago; "
    assert others in found[2]
    findings = answered(0, **letters, **not_taken(no_room=1, per_s=0.2))["findings"]
    assert [each["level"] for each in findings] == ["bad", "warn"]


def test_a_broken_disk_is_a_danger_not_a_loss() -> None:
    """With a degraded spool nothing is lost yet, but a crash would lose what is waiting."""
    spool = {"degraded": True, "bytes": 0, "limit_bytes": 10}
    assert diagnose(0, spool=spool)[:2] == ("warn", "Not yet")
    assert diagnose(2, spool=spool)[:2] == ("bad", "The spool's disk can't be used")


@pytest.mark.parametrize(
    ("age", "level", "answer"),
    [(4.9, "ok", "No"), (5.0, "warn", "Yes, by 5.0 s"), (61.0, "bad", "Yes, by 1 min 1 s")],
)
def test_is_it_late(age: float, level: str, answer: str) -> None:
    """Lateness is the age of the oldest write in the lane that is furthest behind."""
    found = diagnose(1, sgp__oldest_write_age_s=age, sgp__depth=1)
    assert found[:2] == (level, answer)
    assert level == "ok" or found[2].startswith("SGP: 1 write not delivered yet, the oldest for ")


def test_when_it_will_have_caught_up() -> None:
    """The time until the backlog is delivered is said if it is known."""
    behind = {"sgp__oldest_write_age_s": 9.0, "sgp__depth": 40, "sgp__caught_up_in_s": 90.0}
    assert diagnose(1, **behind)[2].endswith("; caught up in 1 min 30 s at this rate")


def test_an_earlier_process_left_older_writes() -> None:
    """What another process accepted has waited for longer than this one has run."""
    left = {"events__replayed": 3, "uptime_s": 8.0, "sgp__oldest_write_age_s": 7.9}
    assert diagnose(1, **left)[1] == "Yes, by at least 7.9 s"


def three(question: int, **changes: object) -> tuple[str, str, str]:
    """Answer one question about three upstreams, as `diagnose` does about two."""
    sinks: Json = {name: dict(SINK) for name in ("agentex", "sgp", "otlp")}
    for path, value in changes.items():
        name, _, key = path.partition("__")
        sinks[name][key] = value
    return diagnose(question, sinks=sinks)


def test_three_upstreams_on_time() -> None:
    """All of them are named, with a comma and an `and`."""
    delays = {f"{name}__delay_p95_s": 0.3 for name in ("agentex", "sgp", "otlp")}
    detail = three(1, **delays)[2]
    assert detail.endswith("within 300 ms at Agentex, 300 ms at SGP and 300 ms at OTLP")
    assert three(2)[2] == (
        "Agentex, SGP and OTLP answered when last asked; there is capacity to spare"
    )
    assert three(2, otlp__lane_bytes=90)[2] == (
        "once it is full, OTLP gets no new spans; Agentex and SGP are not affected"
    )


@pytest.mark.parametrize(
    ("name", "changes", "hint"),
    [
        ("sgp", {"state": "unauthorized"}, "the file at sgp.api_key_file is read again"),
        ("otlp", {"state": "unauthorized"}, "the file at otlp.headers_file is read again"),
        ("sgp", {"state": "braked"}, "check sgp.base_url"),
        ("otlp", {"state": "braked"}, "check otlp.endpoint"),
        ("sgp", {"has_credential": False}, "or have the agents send their key"),
        ("otlp", {"has_credential": False}, "make the file at otlp.headers_file readable"),
    ],
)
def test_hints_name_the_upstreams_own_settings(name: str, changes: Json, hint: str) -> None:
    """An OTLP receiver has an endpoint and headers, and no agent sends its key."""
    sink: Json = {**SINK, **changes}
    sink["accounts"] = [{"id": None, "state": sink["state"], "has_credential": True, **changes}]
    answer = answered(2, sinks={name: sink})
    assert hint in answer["hint"]
    assert ("agent's key" in answer["detail"]) == (name == "sgp" and "has_credential" in changes)


def test_what_an_upstream_did_not_keep() -> None:
    """It is lost, and only those who run the upstream can say why."""
    lost = {"otlp__lost": 2, "otlp__lost_by_reason": {"shutdown": 0, "partial_success": 2}}
    answer = answered(0, sinks={"otlp": dict(SINK)}, **lost)
    assert answer["detail"] == "2 writes to OTLP were lost (2 partial success), the last 3 s ago"
    assert "in the log of what receives the spans" in answer["hint"]
    lost["otlp__lost_by_reason"] = {"shutdown": 1, "partial_success": 1}
    assert "shutdown.grace_s" in answered(0, sinks={"otlp": dict(SINK)}, **lost)["hint"]


def test_no_longer_late() -> None:
    """After it was late, the answer says until when."""
    past = {"agentex__late_until": "2026-03-01T11:31:05Z", "agentex__delay_p95_s": 200.0}
    assert diagnose(1, **past) == ("ok", "No longer", "Agentex was late until 11:31:05 UTC")


def test_on_time_says_how_fast() -> None:
    """When nothing is late, the answer gives the delay of recent deliveries."""
    one, two = {"sgp__delay_p95_s": 0.3}, {"agentex__delay_p95_s": 1.2}
    within = "in the last minute, 95% were delivered within"
    assert diagnose(1, **one)[2] == f"{within} 300 ms at SGP"
    assert diagnose(1, **one, **two)[2] == f"{within} 1.2 s at Agentex and 300 ms at SGP"


ERROR = {"kind": "unavailable", "text": "HTTP 503", "age_s": 3.0}
BEHIND = {
    "agentex__oldest_write_age_s": 6.0,
    "agentex__depth": 900,
    "agentex__forwarded_per_s": 9,
    "agentex__requests_in_flight": 8,
    "agentex__requests_per_s": 4.0,
    "agentex__request_p95_s": 1.5,
    "agentex__answer_age_s": 0.2,
}
WHY: list[tuple[Json, str, str, str]] = [
    (
        {"sgp__state": "down", "sgp__error": "HTTP 503", "sgp__full_in_s": 2400.0},
        "bad", "SGP is down",
        "HTTP 503; next attempt now; its room will be full in 40 min 0 s at this rate",
    ),
    ({"sgp__state": "throttled"}, "warn", "SGP asked us to back off", "next attempt now"),
    ({"agentex__state": "braked"}, "bad", "Agentex is rejecting most writes", "next attempt now"),
    ({"sgp__state": "unauthorized"}, "bad", "SGP is rejecting the credential", "next attempt now"),
    (
        {
            "sgp__state": "unauthorized",
            "sgp__accounts": accounts(("a", "unauthorized"), ("b", "up"), ("c", "unauthorized")),
        },
        "bad", "SGP refuses the key of accounts a, c", "next attempt now",
    ),
    (
        {"sgp__state": "down", "sgp__accounts": accounts(("a", "up"), ("b", "down"))},
        "bad", "SGP is down for account b", "next attempt now",
    ),
    (
        {"sgp__state": "down", "sgp__accounts": accounts(("a", "down"), ("b", "down"))},
        "bad", "SGP is down", "next attempt now",
    ),
    (
        {"sgp__has_credential": False, "sgp__accounts": accounts(("a", "up"), ("b", ""))},
        "bad", "SGP has no credential for account b", "waiting for a key file or an agent's key",
    ),
    (
        {"sgp__lane_bytes": 80, "sgp__full_in_s": 30.0},
        "bad", "The room for SGP is 80% full",
        ("it will be full in 30 s at this rate; "
         "once it is full, SGP gets no new spans; Agentex is not affected"),
    ),
    (
        {"sgp__lane_bytes": 99.9} | not_taken(no_room=1, per_s=0.2),
        "bad", "The room for SGP is full", "SGP gets no new spans; Agentex is not affected",
    ),
    (
        {"sgp__has_credential": False},
        "bad", "SGP has no credential", "waiting for a key file or an agent's key",
    ),
    (
        {"sgp__state": "not_asked", "sgp__last_error": ERROR | {"kind": "connection"}},
        "warn", "SGP could not be reached at the start", "HTTP 503, 3 s ago",
    ),
    (
        {"agentex__retrying": 7, "agentex__last_error": ERROR},
        "warn", "Writes to Agentex wait for their next attempt",
        "7 writes; last error 3 s ago: HTTP 503",
    ),
    (
        {"agentex__retrying": 1, "agentex__last_error": ERROR},
        "warn", "A write to Agentex waits for its next attempt",
        "1 write; last error 3 s ago: HTTP 503",
    ),
    (
        BEHIND | {"agentex__last_error": ERROR},
        "warn", "Writes to Agentex wait after an error",
        "HTTP 503, 3 s ago; 900 writes are waiting",
    ),
    (
        BEHIND | {"agentex__catching_up": True, "agentex__caught_up_in_s": 100.0},
        "warn", "Agentex is getting its backlog",
        "900 writes are waiting; caught up in 1 min 40 s at this rate",
    ),
    (
        BEHIND | {"agentex__requests_per_s": 0.0, "agentex__requests_in_flight": 1},
        "warn", "Agentex takes long to answer", "1 request is under way; 900 writes are waiting",
    ),
    (  # every answer of the last seconds was quick, and none came for two
        BEHIND | {"agentex__request_p95_s": 0.1, "agentex__answer_age_s": 2.5},
        "warn", "Agentex takes long to answer", "8 requests are under way; 900 writes are waiting",
    ),
    (  # it always takes so long
        BEHIND | {"agentex__answer_age_s": 2.5},
        "warn", "Agentex is slower than the agents",
        "900 writes are waiting, at most 8 concurrent requests",
    ),
    (
        BEHIND,
        "warn", "Agentex is slower than the agents",
        "900 writes are waiting, at most 8 concurrent requests",
    ),
    (
        {"queue": {"bytes": 81, "limit_bytes": 100}, "intake__rejected_now": ["no_room"]},
        "bad", "Memory for spans is 81% full", "requests that do not fit get 429",
    ),
    (
        {"memory": {"rss_bytes": 95, "limit_bytes": 100}},
        "warn", "The container uses 95% of its memory", "at 100% the kernel kills the container",
    ),
    (
        {"intake__rejected_now": ["invalid", "too_large"]},
        "warn", "Agents send what can't be accepted",
        "refused in the last seconds: invalid, too large",
    ),
    ({"phase": "starting"}, "warn", "The sidecar is starting", "it accepts no events yet"),
    (
        {"phase": "stopping"},
        "warn", "The sidecar is stopping", "it still accepts events, until the agents are quiet",
    ),
    (
        {"phase": "stopping", "ready": False, "sgp__depth": 1},
        "warn", "The sidecar is stopping", "it is forwarding the 1 write that it still holds",
    ),
    (
        {"phase": "stopping", "ready": False},
        "warn", "The sidecar is stopping", "nothing is left to forward",
    ),
    (
        {"log__lines_dropped_lately": 1200},
        "warn", "Log lines were dropped", "1,200 lines in the last minute",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "level", "answer", "detail"), WHY)
def test_why(changes: Json, level: str, answer: str, detail: str) -> None:
    """Each cause has its own text and level."""
    assert diagnose(2, **changes) == (level, answer, detail)


WITHOUT_ADVICE = {
    "The sidecar is stopping",
    "The sidecar is starting",
    "Agentex is getting its backlog",
}


@pytest.mark.parametrize("changes", [changes for changes, *_ in (*LOSING, *WHY)])
def test_every_warning_says_what_to_do(changes: Json) -> None:
    """Whatever is wrong has advice, unless time alone ends it."""
    for question in range(3):
        for finding in answered(question, **changes)["findings"]:
            passes = finding["level"] == "ok" or finding["text"] in WITHOUT_ADVICE
            passes = passes or finding["detail"] == "0.2 refusals per second: stopping"
            assert finding["runbook"] or passes
            assert "{" not in str(finding["hint"])


@pytest.mark.parametrize("runbook", {runbook for _, runbook in HINTS.values()})
def test_every_runbook_exists(runbook: str) -> None:
    """Hints name headings of pages that exist."""
    page, _, anchor = runbook.partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    slugs = {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}
    assert anchor in slugs


NOT_WELL = [
    LETTERS | {"dead_letters__path": None},
    not_taken(no_room=1),
    {"sgp__oldest_write_age_s": 6.0, "sgp__catching_up": True},
]


@pytest.mark.parametrize("changes", NOT_WELL)
def test_all_is_well_only_if_nothing_else_is_wrong(changes: Json) -> None:
    """While another answer is no `ok`, the third never says that all is well."""
    assert diagnose(2, **changes)[1] != "All is well"


def test_what_was_never_asked_is_not_up() -> None:
    """An upstream without an answer is neither up nor well."""
    names = {"agentex__state": "not_asked", "agentex__label": "not asked yet"}
    text = "Agentex was not asked yet, SGP answered when last asked; there is capacity to spare"
    assert diagnose(2, **names)[2] == text
    names["agentex__label"] = "no answer yet"
    assert "Agentex has not answered yet" in diagnose(2, **names)[2]


def test_there_is_no_capacity_to_spare() -> None:
    """Nearly full memory is no trouble by itself, but it is not capacity to spare."""
    assert "capacity" not in diagnose(2, queue={"bytes": 90, "limit_bytes": 100})[2]


def test_a_start_is_held_on_purpose() -> None:
    """A START that waits for its END, for longer than by default, is not late for that."""
    held = {"config": {"queue": {"start_hold_s": 10.0}}, "late_after_s": 13.0}
    waiting = {"sgp__oldest_write_age_s": 11.0, "sgp__depth": 1}
    assert diagnose(1, **held, **waiting)[0] == diagnose(2, **held, **waiting)[0] == "ok"
    assert (late_after(2.0), late_after(10.0)) == (5.0, 13.0)


def test_the_room_of_the_only_upstream() -> None:
    """With one upstream, agents are refused once its room is full."""
    report: Json = copy.deepcopy(HEALTHY)
    del report["sinks"]["agentex"]
    report["sinks"]["sgp"]["lane_bytes"] = 90
    assert answers(report)[2]["detail"] == "once it is full, agents get 429"


def test_memory_that_open_spans_fill_is_no_trouble() -> None:
    """Open spans leave memory when room is needed; only refusals make it a cause."""
    assert diagnose(2, queue={"bytes": 99, "limit_bytes": 100})[0] == "ok"


def test_the_worst_cause_comes_first() -> None:
    """When the sidecar is stopping and an upstream is down, the outage comes first."""
    found = diagnose(2, phase="stopping", ready=False, sgp__state="down")
    assert found[:2] == ("bad", "SGP is down")
    assert found[2].endswith("The sidecar is stopping: nothing is left to forward")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.0421, "42 ms"),
        (2.54, "2.5 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (0.9996, "1.0 s"),
        (9.96, "10 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    """A duration has at most two units."""
    assert duration(seconds) == text

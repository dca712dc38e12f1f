"""The operator's three questions, answered from a report of `/status`."""

import copy
from typing import Any

import pytest

from sidecar.operate.diagnosis import answers, duration

Json = dict[str, Any]

SINK = {
    "state": "up",
    "next_attempt_s": 0.0,
    "last_error": None,
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
    "dead_lettered": 0,
    "dead_lettered_by_reason": {"refused": 0},
    "lost": 0,
    "lost_by_reason": {"shutdown": 0},
    "imbalance": 0,
}
HEALTHY = {
    "ready": True,
    "spool": None,
    "log": {"lines_dropped": 5, "lines_dropped_lately": 0},
    "queue": {"bytes": 0, "limit_bytes": 100},
    "intake": {"rejected_per_s": 0.0, "rejected_now": []},
    "events": {"received": 2, "replayed": 0, "imbalance": 0},
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
    """Answer one question after changing a healthy report.

    Keys of `changes` are paths with `__` for dots; `sgp__x` is a key of that sink.
    """
    report: Json = copy.deepcopy(HEALTHY)
    for path, value in changes.items():
        *parents, last = path.split("__")
        part = report["sinks"] if path.startswith(("agentex__", "sgp__")) else report
        for name in parents:
            part = part[name]
        part[last] = value
    answer = answers(report)[question]
    return answer["level"], answer["answer"], answer["detail"]


@pytest.mark.parametrize("question", [0, 1, 2])
def test_all_is_well(question: int) -> None:
    """A healthy sidecar gets `ok` for all three questions."""
    report: Json = copy.deepcopy(HEALTHY)
    assert answers(report)[question]["level"] == "ok"


@pytest.mark.parametrize(
    ("received", "detail"),
    [
        (0, "all 0 events are accounted for"),
        (1, "the one event is accounted for"),
        (1234, "all 1,234 events are accounted for"),
    ],
)
def test_what_is_accounted_for(received: int, detail: str) -> None:
    """Nothing is lost: the detail has the number of events."""
    changes = {"events__received": received, "events__replayed": 0}
    assert diagnose(0, **changes) == ("ok", "No", detail)


LOSING = [
    ({"events__imbalance": 3}, "bad", "The accounting does not balance", "3 unaccounted for"),
    ({"sgp__imbalance": -2}, "bad", "The accounting does not balance", "2 unaccounted for"),
    (
        {"sgp__lost": 4, "sgp__lost_by_reason": {"shutdown": 4}},
        "bad", "Yes", "lost writes: SGP 4 shutdown",
    ),
    (
        {"intake__rejected_per_s": 2.5, "intake__rejected_now": ["no_room"]},
        "bad", "Events are being rejected", "2.5 refusals per second: no room",
    ),
    (
        {"agentex__dead_lettered": 1, "agentex__dead_lettered_by_reason": {"too_large": 1}},
        "warn", "Dead letters", "writes set aside: Agentex 1 too large",
    ),
    (
        not_taken(no_room=1200, per_s=2.5),
        "bad", "Yes, at SGP",
        "its room is full: 2.5 writes per second are not taken, 1,200 so far",
    ),
    (
        not_taken(no_room=2, end_of_open=1, per_s=0.2) | {"sgp__state": "down"},
        "bad", "Yes, at SGP",
        ("its room is full because SGP is down: 0.2 writes per second are not taken, 3 so far, "
         "1 of them ENDs of spans that it shows as running"),
    ),
    (
        not_taken(no_room=2, end_of_open=1),
        "warn", "Not now", "writes not taken earlier: SGP 2 no room, SGP 1 end of open",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "level", "answer", "detail"), LOSING)
def test_are_we_losing_anything(changes: Json, level: str, answer: str, detail: str) -> None:
    """Every way to lose something is reported with its reason."""
    found = diagnose(0, **changes)
    assert found[:2] == (level, answer)
    assert found[2].startswith(detail)


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
    found = diagnose(0, **letters, **not_taken(no_room=1, per_s=0.2))
    assert found[:2] == ("bad", "Yes, at SGP")
    assert found[2].endswith("; Dead letters: writes set aside: Agentex 1 refused")


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
    assert level == "ok" or found[2].startswith("SGP: 1 write waiting")


def test_on_time_says_how_fast() -> None:
    """When nothing is late, the answer gives the delay of recent deliveries."""
    assert diagnose(1, sgp__delay_p95_s=0.3)[2] == "95% are delivered within: SGP 300 ms"


ERROR = {"kind": "unavailable", "text": "HTTP 503", "age_s": 1.0}
WHY: list[tuple[Json, str, str, str]] = [
    (
        {"sgp__state": "down", "sgp__last_error": ERROR, "sgp__next_attempt_s": 2.0},
        "bad", "SGP is down", "HTTP 503; next attempt in 2.0 s",
    ),
    ({"sgp__state": "throttled"}, "bad", "SGP asked us to back off", "next attempt now"),
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
        {"sgp__has_credential": False, "sgp__accounts": accounts(("a", "up"), ("b", ""))},
        "bad", "SGP has no credential for account b", "waiting for a key file or an agent's key",
    ),
    (
        {"sgp__lane_bytes": 80},
        "bad", "The room for SGP is 80% full",
        "once it is full, SGP gets no new spans; Agentex is not affected",
    ),
    (
        {"sgp__has_credential": False},
        "bad", "SGP has no credential", "waiting for a key file or an agent's key",
    ),
    (
        {"agentex__oldest_write_age_s": 3.0, "agentex__depth": 900, "agentex__forwarded_per_s": 9},
        "warn", "Agentex is slower than the agents",
        "900 writes waiting, at most 8 concurrent requests",
    ),
    (
        {"queue": {"bytes": 81, "limit_bytes": 100}, "intake__rejected_now": ["no_room"]},
        "bad", "Memory for spans is 81% full", "requests that do not fit get 429",
    ),
    ({"ready": False}, "warn", "The sidecar is stopping", "it is forwarding what it still holds"),
    (
        {"log__lines_dropped_lately": 1200},
        "warn", "Log lines were dropped",
        "1,200 in the last minute: check what reads the container's log",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "level", "answer", "detail"), WHY)
def test_why(changes: Json, level: str, answer: str, detail: str) -> None:
    """Each cause has its own text and level."""
    assert diagnose(2, **changes) == (level, answer, detail)


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
    found = diagnose(2, ready=False, sgp__state="down")
    assert found[:2] == ("bad", "SGP is down")
    assert found[2].endswith("The sidecar is stopping: it is forwarding what it still holds")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.0421, "42 ms"),
        (2.54, "2.5 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    """A duration has at most two units."""
    assert duration(seconds) == text

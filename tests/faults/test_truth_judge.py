"""The judge of the truth test finds lies: each one is planted into a report that is true."""

# ruff: noqa: E501 (sentences as they are said)

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.faults import end, ids_in, run_fast, span, start
from tests.support.truth_answers import judge_answers
from tests.support.truth_claims import Moment
from tests.support.truth_log import judge_line
from tests.support.truth_stage import Said, Stage
from tests.support.truth_top import judge_top

Json = dict[str, Any]


async def _play(stage: Stage) -> None:
    """SGP is not asked for a while, answers, is down, comes back, and refuses a span."""
    async with stage.life() as w:
        await stage.post(w, *[start(span(f"open{number}")) for number in range(3)])
        stage.look(w)
        await stage.quiet(w, 5, step_s=1.0137)
        await stage.agent(w, 10, lambda number: [end(span(f"w{number}"))])
        stage.rule(lambda _: 503, "sgp")
        await stage.agent(w, 30, lambda number: [end(span(f"d{number}"))])
        stage.rule(None, "sgp")
        await stage.quiet(w, 100, step_s=3.0137)
        stage.rule(lambda request: 422 if ids_in(request) & {"x1", "x2"} else None, "sgp")
        await stage.agent(w, 3, lambda number: [end(span(f"x{number}"))])
        await stage.quiet(w, 100, step_s=5.0137)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A scenario that was played, and in which nothing false was said."""
    stage = Stage(tmp_path_factory.mktemp("truth"))
    run_fast(_play(stage))
    stage.judge()
    return stage


def _times(factor: int) -> Callable[[re.Match[str]], str]:
    """Multiplies the number in group 1."""

    def multiplied(found: re.Match[str]) -> str:
        return found[0].replace(found[1], str(int(found[1]) * factor + 1), 1)

    return multiplied


Lie = tuple[str, str | Callable[[re.Match[str]], str]]
DOWN = r"SGP is down: HTTP 503; [^\"]+"
LIES: dict[str, Lie] = {
    "the wrong upstream is down": (r"SGP is down", "Agentex is down"),
    "the wrong trouble": (r"SGP is down", "SGP refuses the key"),
    "an asking to back off": (r"SGP is down", "SGP asked us to back off"),
    "most writes rejected": (r"SGP is down", "SGP is rejecting most writes"),
    "another status": (r"HTTP 503", "HTTP 500"),
    "a wrong time of the next attempt": (r"next attempt in (\d+)\.?\d* s", "next attempt in 40 s"),
    "an attempt": (r"next attempt in [\d.]+ s", "an attempt is under way"),
    "more writes wait": (r"(\d+) writes not delivered", _times(1)),
    "an older write": (r"the oldest for (\d+)\.?\d* m?s", "the oldest for 3 min 20 s"),
    "the wrong upstream is late": (r"SGP: (\d+) writes not", r"Agentex: \1 writes not"),
    "all is well while it is down": (DOWN, "All is well: Agentex and SGP answered when last asked"),
    "slow while it is down": (
        DOWN, "SGP is slower than the agents: 3 writes are waiting, at most 8 concurrent requests",
    ),
    "silent while it is down": (
        DOWN, "SGP takes long to answer: 1 request is under way; 3 writes are waiting",
    ),
    "full while there is room": (
        DOWN, "The room for SGP is full: SGP gets no new spans; Agentex is not affected",
    ),
    "nearly full": (
        DOWN,
        "The room for SGP is 90% full: once it is full, SGP gets no new spans; Agentex is not affected",
    ),
    "the disk": (DOWN, "The spool's disk can't be used: new events are kept in memory only"),
    "stopping": (DOWN, "The sidecar is stopping: nothing is left to forward"),
    "memory": (DOWN, "The container uses 95% of its memory: at 100% the kernel kills the container"),
    "dropped lines": (DOWN, "Log lines were dropped: 3 lines in the last minute"),
    "bad events": (DOWN, "Agents send what can't be accepted: refused in the last seconds: invalid"),
    "on time while it is late": (
        r"Yes, by [^\"]+", "No: nothing was delivered in the last minute, and nothing has been waiting for long",
    ),
    "no longer late, but it is": (r"Yes, by [^\"]+", "No longer: SGP was late until 00:00:00 UTC"),
    "up, though it was not asked": (
        r"Agentex and SGP were not asked yet", "Agentex and SGP answered when last asked",
    ),
    "not asked, though it was": (
        r"Agentex and SGP answered when last asked", "Agentex and SGP were not asked yet",
    ),
    "a quantile above the largest delay": (r"[\d.]+ m?s at Agentex", "4.9 s at Agentex"),
    "a quantile below all": (r"[\d.]+ s at SGP", "1 ms at SGP"),
    "more events": (r"all (\d+) events are accounted", _times(1)),
    "nothing arrived": (
        r"No: all \d+ events are accounted for",
        "Nothing has arrived yet: no agent has sent an event in the 2.0 s since the start",
    ),
    "a loss": (
        r"No: all \d+ events are accounted for",
        "Yes: 3 writes to SGP were lost (3 shutdown), just now",
    ),
    "not taken": (
        r"No: all \d+ events are accounted for",
        "Yes, at SGP: its room is full: 2.0 writes per second are not taken, 3 so far",
    ),
    "an imbalance": (
        r"No: all \d+ events are accounted for",
        "The accounting does not balance: 1 is unaccounted for: this is a bug",
    ),
    "rejections": (
        r"No: all \d+ events are accounted for",
        "Events are being rejected: 2.0 refusals per second: invalid",
    ),
    "late until another time": (r"was late until \d\d:(\d\d)", "was late until 00:59"),
    "another end of the backlog": (
        r"not delivered yet, the oldest for (\d+)\.?\d* s$",
        r"\g<0>; caught up in 3 h 20 min at this rate",
    ),
    "more dead letters": (r"(\d+) writes to SGP were set aside", _times(1)),
    "dead letters of the other": (r"writes to SGP were set aside", "writes to Agentex were set aside"),
    "more letters in the file": (r"(\d+) letters are in", _times(1)),
    "letters of long ago": (r"the last (?:just now|[^\"]+? ago)", "the last 3 h 20 min ago"),
    "no letters left": (r"Dead letters: [^\"]+", "No dead letters are left: 2 writes to SGP were set aside (2 refused), just now; nothing is left to replay in letters.jsonl"),
    "letters not kept": (
        r"Dead letters: [^\"]+", "Dead letters are not kept: 2 dead letters are not in the file, for lack of room or because its disk failed, the last just now",
    ),
    "all accounted for beside dead letters": (
        r"Dead letters: [^\"]+", "No: all 600 events are accounted for",
    ),
    "all is well beside dead letters": (r"Nothing is wrong now", "All is well"),
    "the wrong plural": (r"2 writes to SGP were", "2 writes to SGP was"),
    "an unknown sentence": (DOWN, "SGP is on holiday: nobody answers"),
}  # fmt: skip


def _answers_with(said: Said, lie: Lie) -> Json | None:
    """The report in which the first sentence that fits is a lie; None if none fits."""
    status: Json = json.loads(json.dumps(said.status))
    for answer in status["answers"]:
        for finding in answer["findings"] or [answer]:
            key = "text" if answer["findings"] else "answer"
            sentence = f"{finding[key]}: {finding['detail']}"
            false = re.sub(lie[0], lie[1], sentence, count=1)
            if false != sentence:
                finding[key], finding["detail"] = false.split(": ", 1)
                return status
    return None


@pytest.mark.parametrize("name", LIES)
def test_a_false_sentence_is_found(stage: Stage, name: str) -> None:
    """Each lie contradicts the books, wherever it is planted: here in the middle."""
    lies = [(said, _answers_with(said, LIES[name])) for said in stage.said]
    told = [(said, status) for said, status in lies if status is not None]
    assert told, "there is no such sentence"
    said, status = told[len(told) // 2]
    moment = Moment(stage.books, said.at, said.wall)
    wrong = [f"{sentence}: {because}" for _, sentence, because in judge_answers(moment, status)]
    # That the lead differs from the first finding is no judgement of the sentence.
    known = name == "an unknown sentence"
    others = ["first finding says something else", *([] if known else ["claims fit"])]
    assert [each for each in wrong if not any(other in each for other in others)], wrong


TOP: dict[str, Lie] = {
    "more accepted": (r"accepted +(\d+)", _times(1)),
    "a higher rate": (r"listener +(\d+)", _times(9)),
    "refusals": (r"refused +0(?:\.0)?/s", "refused 7.0/s"),
    "on disk": (r"in memory", "on disk"),
    "another state": (r"sgp      down", "sgp      up  "),
    "up, but not asked": (r"sgp      not asked yet", "sgp      up           "),
    "more spans": (r"open spans +(\d+)", _times(1)),
    "more joined": (r"joined +(\d+)", _times(1)),
    "another uptime": (r"up (\d+) s", _times(2)),
    "more forwarded": (r"(?m)^agentex +\d+ +(\d+)(?=(?: +\d+){6}$)", _times(1)),
}


@pytest.mark.parametrize("name", TOP)
def test_a_false_number_in_top_is_found(stage: Stage, name: str) -> None:
    """The same of the numbers that `sidecar top` shows."""
    told = [
        (said, false)
        for said in stage.said
        if (false := re.sub(*TOP[name], said.top[80], count=1)) != said.top[80]
    ]
    assert told, "there is no such number"
    said, text = told[len(told) // 2]
    moment = Moment(stage.books, said.at, said.wall)
    assert [*judge_top(moment, text, 80, said.status["answers"])]


@pytest.mark.parametrize(
    ("event", "changed"),
    [
        ("upstream_down", {"sink": "agentex"}),
        ("upstream_down", {"error": "HTTP 500"}),
        ("upstream_down", {"hint": ""}),
        ("upstream_down", {"hint": "set sgp.no_such_key (docs/runbooks.md#nowhere)"}),
        ("write_dead_lettered", {"sink": "agentex"}),
        ("write_dead_lettered", {"span_id": "w1"}),
        ("write_dead_lettered", {"status": 413}),
        ("stopped", {"text": "stopped: nothing was lost; 1 event received"}),
        ("started", {"event": "something_new"}),
    ],
)
def test_a_false_line_of_the_log_is_found(stage: Stage, event: str, changed: Json) -> None:
    """The same of the log."""
    line = next(line for line in stage.log if line.fields["event"] == event)
    moment = Moment(stage.books, line.at, line.wall)
    assert judge_line(moment, line.fields) == []
    assert judge_line(moment, {**line.fields, **changed})


@pytest.mark.parametrize(
    ("hint", "runbook"),
    [
        (None, None),
        ("set sgp.no_such_key", "docs/runbooks.md#tracesidecarupstreamdown"),
        ("run: sidecar replay letters", "docs/runbooks.md#tracesidecarupstreamdown"),
        ("look", "docs/runbooks.md#nowhere"),
    ],
)
def test_bad_advice_is_found(stage: Stage, hint: str | None, runbook: str | None) -> None:
    """No advice, and advice that leads nowhere."""
    said = next(s for s in stage.said if s.status["answers"][2]["answer"] == "SGP is down")
    status = json.loads(json.dumps(said.status))
    status["answers"][2]["findings"][0] |= {"hint": hint, "runbook": runbook}
    moment = Moment(stage.books, said.at, said.wall)
    wrong = [because for *_, because in judge_answers(moment, status)]
    assert [each for each in wrong if each != "the first finding says something else"]

"""Reading a dead-letter file: bad lines are reported and counted, the others are read."""

from collections import Counter
from pathlib import Path

import orjson
import pytest

from sidecar.config import ConfigError
from sidecar.operate import letters
from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.spans.span import Lanes, SdkFields
from tests.support.spans import make_span

ERROR = Refused("HTTP 422", 422)


def line(head: dict[str, object] | None = None, event: object = None, **span: object) -> bytes:
    """A letter with changed members; one that is `...` is left out."""
    body: dict[str, object] = {"id": "s", "trace_id": "t", "name": "n"}
    body |= {"start_time": "2026-01-02T03:04:05Z", "end_time": "2026-01-02T03:04:06Z"}
    body |= {"input": {"q": "secret"}} | span
    letter: dict[str, object] = {"time": "2026-01-02T03:04:07.000+00:00", "sink": "sgp"}
    letter |= {"reason": "refused", "status": 422}
    letter["event"] = event or {"event_type": "end", "span": body}
    letter |= head or {}
    return orjson.dumps({key: value for key, value in letter.items() if value is not ...})


NOT_A_LETTER = [
    b"what?",
    b"{}",
    b"[]",
    b"null",
    b"\0\0\0",
    b'{"time":"2026-',
    line()[:-30],
    line()[:100] + line(),  # two letters, glued together by a version that did not prevent it
    line().replace(b"secret", b"secr\xff"),
    line({"status": "422"}),
    line({"reason": ...}),
    line({"account": 7}),
    line(event={"event_type": "other", "span": {}}),
    line(event={"event_type": "end"}),
    line(event=7),
    line().replace(b'{"q":"secret"}', b"[" * 50_000 + b"]" * 50_000),
]
UNKNOWN_SINK = [line({"sink": "elsewhere"}), line({"sink": ""})]
BAD_ACCOUNT = [line({"account": "a\r\nx: y"}), line({"account": "é"})]
BAD_EVENT = [
    line(event={"event_type": "end", "span": {"id": "s", "name": "secret"}}),
    line(event={"event_type": "end", "span": "secret"}),
    line(end_time=None),
    line(input="secret"),
    line(data=7),
    line(output=["secret"]),
    line(route=4, extra={}),
    line(route=3, extra={}),
    line(route=2, extra="secret"),
    line(route="secret"),
]
BAD = [
    *((bad, "not a dead letter") for bad in NOT_A_LETTER),
    *((bad, "a dead letter of an unknown sink") for bad in UNKNOWN_SINK),
    *((bad, "a dead letter with an invalid account") for bad in BAD_ACCOUNT),
    *((bad, "a dead letter whose event can't be decoded") for bad in BAD_EVENT),
]


@pytest.mark.parametrize(("bad", "why"), BAD)
def test_a_bad_line_costs_no_other_letter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: bytes, why: str
) -> None:
    """It is located on standard error without its content, and counted."""
    file = tmp_path / "letters.jsonl"
    file.write_bytes(b"\n".join([line(id="a"), bad, line(id="b"), b"", line(id="c")]))
    counts = Counter[str]()
    found = [letter.span.id for letter in letters.read(str(file), None, counts)]
    assert (found, counts) == (["a", "b", "c"], {"unreadable": 1})
    assert capsys.readouterr().err == f"sidecar: {file}:2: {why}\n"


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    """Every kind of write is read as it was: an event, a supplement, or an item of an SDK."""
    file = tmp_path / "letters.jsonl"
    dead = DeadLetters(str(file), 100_000, {0: "", 1: "acme"}.__getitem__)
    extra = b'"status":"SUCCESS","type":"CUSTOM"'
    spans = [
        make_span("a", account=1, key=("t1", "a", "account 1")),
        make_span("b", complete=False, input=b"", data=b'[{"a":1e400}]'),
        make_span("c", sdk=SdkFields(Lanes.SGP, extra), parent_id="p"),
        make_span("d", sdk=SdkFields(Lanes.AGENTEX), task_id="t"),
        make_span("e", complete=False, sdk=SdkFields(Lanes.AGENTEX, b'"supplement":true')),
    ]
    for span in spans:
        dead.add("sgp", span, "refused", ERROR)
    counts = Counter[str]()
    found = [
        letter.span
        for letter in letters.read(str(file), None, counts, {"": 0, "acme": 1}.__getitem__)
    ]
    assert not counts
    for span, read in zip(spans, found, strict=True):
        for field in span.__struct_fields__:
            if field != "accepted_at":
                assert getattr(read, field) == getattr(span, field), field


def test_a_line_shows_no_content(tmp_path: Path) -> None:
    """A letter is shown with its sink, reason, status and id; `sink` selects."""
    file = tmp_path / "letters.jsonl"
    file.write_bytes(b"\n".join([line(id="a"), line({"sink": "agentex", "status": 0}, id="b")]))
    shown = [str(letter).split() for letter in letters.read(str(file), None, Counter())]
    time = "2026-01-02T03:04:07.000+00:00"
    assert shown == [
        [time, "sgp", "refused", "422", "end", "a"],
        [time, "agentex", "refused", "-", "end", "b"],
    ]
    assert [each.span.id for each in letters.read(str(file), "agentex", Counter())] == ["b"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """The error names the file."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            list(letters.read(str(path), None, Counter()))

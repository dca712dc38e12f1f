"""`Spans.start` and `finish`, for callbacks; spans where tracing is forbidden or turned off."""

import pytest
from trace_sidecar_client import Sender, Spans, current

from tests.client.kept import Kept
from tests.support.client import scripted


@pytest.fixture
def sender() -> Kept:
    return Kept()


@pytest.fixture
def spans(sender: Kept) -> Spans:
    return Spans(sender=sender)


def test_a_started_span_is_not_current(spans: Spans, sender: Kept) -> None:
    """It is a child of what is current, and a parent only of those that name it."""
    with spans.span("turn") as turn:
        started = spans.start("tool", input={"q": 1})
        assert current() is turn
        child = spans.start("request", parent=started)
        child.end()
        spans.finish(started, output={"a": 1})
    assert sender.parents == {"turn": None, "tool": "turn", "request": "tool"}
    assert (sender.ends["tool"]["input"], sender.ends["tool"]["output"]) == ({"q": 1}, {"a": 1})
    assert sender.ends["tool"]["end_time"] >= sender.ends["request"]["end_time"]
    assert sender.ids("end") == sender.ids("start")


def test_however_often_a_span_is_ended_it_sends_one_end(spans: Spans, sender: Kept) -> None:
    """The first call counts; later ones change nothing."""
    with spans.span("block") as block:
        spans.finish(block, output={"first": 1})
        spans.finish(block, output={"second": 2}, error=ValueError())
        block.end()
    started = spans.start("started")
    started.end()
    ended_at = started.end_time
    spans.finish(started, output={"late": 1})
    assert (started.end_time, started.output) == (ended_at, None)
    assert sender.ends["block"]["output"] == {"first": 1}
    assert "data" not in sender.ends["block"]
    assert sender.ids("end") == sender.ids("start")


def test_finish_records_the_error(spans: Spans, sender: Kept) -> None:
    """Callbacks get the exception as an argument."""
    spans.finish(spans.start("chain", data={"k": 1}), error=ValueError("boom"))
    details = {"type": "ValueError", "message": "boom", "category": "unknown"}
    assert sender.ends["chain"]["data"] == {"k": 1, "__error__": details}


def test_where_ids_and_clocks_are_forbidden_the_body_runs_untraced() -> None:
    """As in Temporal's workflow sandbox: nothing raises, and the spans are counted."""

    class Restricted(Exception):
        pass

    def uuid4() -> str:
        raise Restricted

    with scripted() as sidecar, pytest.MonkeyPatch.context() as patch:
        sender = Sender(sidecar.url)
        spans = Spans(sender=sender)
        patch.setattr("trace_sidecar_client.spans.uuid4", uuid4)
        with spans.span("block") as span:
            span.output = {"a": 1}
            assert current() is None
            spans.finish(spans.start("started", parent=span), output={"a": 1})
        assert spans.traced(len)("abc") == 3
        assert sender.dropped == {"span not started: Restricted": 3}
        patch.undo()
        with spans.span("next", parent=span) as following:
            assert following.parent_id is None
            assert following.trace_id


def test_with_tracing_turned_off_spans_are_still_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have ids and nest, so that an agent may rely on them; no value is even looked at."""

    class Untouched:
        def __repr__(self) -> str:
            raise AssertionError

    monkeypatch.setenv("TRACE_SIDECAR_DISABLED", "1")
    sender = Sender("http://127.0.0.1:1")
    spans = Spans(sender=sender)
    with spans.span("turn", input={"v": Untouched()}) as turn:
        assert current() is turn
        child = spans.start("child", input={"v": Untouched()})
        spans.finish(child, output={"v": Untouched()})
        assert (child.parent_id, child.trace_id) == (turn.id, turn.trace_id)
    assert turn.end_time
    assert current() is None
    assert (sender.waiting_bytes, sender.dropped) == (0, {})

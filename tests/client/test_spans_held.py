"""`Spans` and spans that outlive a call: copied, pickled, inherited by a forked child."""

import copy
import dataclasses
import gc
import os
import pickle
import weakref

import pytest
from trace_sidecar_client import Sender, Span, Spans, current

from tests.client.kept import Kept
from tests.support.client import DEADLINE_S, scripted


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_a_copy_of_spans_is_itself(make: object) -> None:
    """Also deep inside the state of an agent."""
    spans = Spans(sender=Kept())
    assert callable(make)
    assert make(spans) is spans
    assert copy.deepcopy({"state": [spans]})["state"][0] is spans


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_spans_sends_to_the_same_sidecar(protocol: int) -> None:
    """It holds the URL, whether the sender is the shared one or not."""
    with scripted() as sidecar:
        for spans in (Spans(sidecar.url), Spans(sender=Sender(sidecar.url))):
            loaded = pickle.loads(pickle.dumps(spans, protocol))  # noqa: S301 - our own
            with loaded.span(f"turn {protocol}"):
                pass
            assert loaded.flush(DEADLINE_S)
            assert sidecar.names[-2:] == [f"turn {protocol}"] * 2


@pytest.mark.parametrize("end_first", [False, True])
def test_a_copy_of_a_span_is_data_that_sends_nothing(end_first: bool) -> None:
    """Pickled, copied or replaced, it has the same fields, and only the original ends."""
    sender = Kept()
    spans = Spans(sender=sender)
    with spans.span("turn", input={"q": [1]}, task_id="task") as span:
        if end_first:
            span.end()
        copies = [
            pickle.loads(pickle.dumps(span)),  # noqa: S301 - our own
            copy.copy(span),
            copy.deepcopy(span),
            dataclasses.replace(span),
            Span(**dataclasses.asdict(span)),
        ]
        for each in copies:
            assert each == span
            each.end()
            spans.finish(each, output={"a": 1})
            assert not each.is_open
        assert len(sender.all("end")) == end_first
        with spans.span("child", parent=copies[0]) as child:
            assert (child.trace_id, child.parent_id) == (span.trace_id, span.id)
    assert [end["name"] for end in sender.all("end")].count("turn") == 1


@pytest.mark.parametrize("kind", ["block", "started"])
def test_an_ended_span_is_garbage_without_a_collection(kind: str) -> None:
    """A span and what records it make no cycle that has to wait for the collector."""
    spans = Spans(sender=Kept())
    gc.disable()
    try:
        if kind == "block":
            with spans.span("turn") as span:
                pass
        else:
            span = spans.start("turn")
            span.end()
        gone = weakref.ref(span)
        del span
        assert current() is None
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.process
def test_a_fork_inside_a_block_ends_the_span_once() -> None:
    """The END belongs to the process that began the span; to the child it is a parent."""
    sender = Kept()
    spans = Spans(sender=sender)
    reading, writing = os.pipe()
    with spans.span("parent") as parent:
        held = spans.start("held")
        inherited = len(sender.events)
        child = os.fork()
        if child == 0:
            with os.fdopen(writing, "wb") as pipe:
                _trace_in_child(spans, held, parent)
                pipe.write(b"\n".join(sender.events[inherited:]))
            os._exit(0)
        os.close(writing)
        held.end()
    with os.fdopen(reading, "rb") as pipe:
        theirs = Kept()
        theirs.events = pipe.read().split(b"\n")
    assert os.waitpid(child, 0)[1] == 0
    assert [span["name"] for span in theirs.all("end")] == ["in child", "after"]
    assert theirs.ends["in child"]["parent_id"] == parent.id
    assert "parent_id" not in theirs.ends["after"]
    assert sender.ids("end") == sender.ids("start")


def _trace_in_child(spans: Spans, held: Span, parent: Span) -> None:
    """What a forked worker does: use what it inherited, and leave the blocks that it is in."""
    with spans.span("in child"):
        held.end()
    parent.end()
    with spans.span("after"):
        pass

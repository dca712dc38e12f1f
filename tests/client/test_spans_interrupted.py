"""`Spans` and Ctrl-C: an exception raised between any two instructions of the client."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from trace_sidecar_client import Span, Spans, current

from tests.client.interrupt import interruptions
from tests.client.kept import Kept


def with_block(spans: Spans) -> None:
    with spans.span("turn", input={"q": 1}) as span:
        span.output = {"a": 1}


def failing_block(spans: Spans) -> None:
    with contextlib.suppress(ValueError), spans.span("turn"):
        raise ValueError


def nested_blocks(spans: Spans) -> None:
    with spans.span("outer"), spans.span("inner"):
        pass


def ended_in_its_block(spans: Spans) -> None:
    with spans.span("turn") as span:
        span.end()


def async_block(spans: Spans) -> None:
    async def turn() -> None:
        async with spans.span("turn"):
            pass

    with contextlib.suppress(StopIteration):
        turn().send(None)


def traced(spans: Spans) -> None:
    @spans.traced
    def turn(question: str) -> str:
        return question

    turn("q")


def traced_generator(spans: Spans) -> None:
    @spans.traced
    def turn() -> Iterator[int]:
        yield 1

    for _ in turn():
        pass


BLOCKS = [
    with_block,
    failing_block,
    nested_blocks,
    ended_in_its_block,
    async_block,
    traced,
    traced_generator,
]


@pytest.mark.parametrize("block", BLOCKS)
def test_an_interrupt_at_any_instruction_ends_the_span(block: Callable[[Spans], None]) -> None:
    """The agent sees it, each START has one END, and what was current before is current again."""
    sender = Kept()
    spans = Spans(sender=sender)
    seen = 0
    with Spans(sender=Kept()).span("parent") as parent:
        for where in interruptions(block, spans):
            seen += 1
            assert current() is parent, where
            starts, ends = sender.ids("start"), sender.ids("end")
            assert starts.keys() <= ends.keys(), where
            assert set(starts.values()) | set(ends.values()) <= {1}, where
            sender.events.clear()
    assert seen > 100
    assert current() is None


def test_an_interrupt_while_a_stack_enters_a_block_ends_the_span() -> None:
    """`ExitStack` has not yet got the block that it would have to leave."""
    sender = Kept()
    stack = contextlib.ExitStack()

    def enter(spans: Spans) -> None:
        stack.enter_context(spans.span("turn"))

    for where in interruptions(enter, Spans(sender=sender)):
        if span := current():
            # On the way back, as in `start` below.
            assert where.startswith("SpanContextManager.__enter__"), where
            span.end()
        assert sender.ids("start").keys() <= sender.ids("end").keys(), where
    stack.close()
    assert current() is None


def test_start_and_finish_may_be_interrupted_at_any_instruction() -> None:
    """What `start` raises leaves no START without an END; `finish` may be called again."""
    sender = Kept()
    spans = Spans(sender=sender)
    started: list[Span] = []

    def start(spans: Spans) -> None:
        started.append(spans.start("turn"))

    def finish(spans: Spans) -> None:
        spans.finish(started[-1], output={"a": 1})

    for where in interruptions(start, spans):
        # On its way back, `start` has a span that its caller does not get. CPython interrupts
        # after calls and at the beginning of functions and loops, not there.
        if not sender.ids("start").keys() <= sender.ids("end").keys():
            assert where.startswith("Spans.start")
        sender.events.clear()
    sender.events.clear()
    started.append(spans.start("turn"))
    for where in interruptions(finish, spans):
        finish(spans)
        assert sender.ids("start") == sender.ids("end") == Counter([started[-1].id]), where
        assert not started[-1].is_open
        sender.events.clear()
        started.append(spans.start("turn"))

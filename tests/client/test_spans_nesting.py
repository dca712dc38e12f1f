"""Which span is current, when spans end out of order, elsewhere or not at all."""

import asyncio
import contextlib
import contextvars
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from trace_sidecar_client import Span, Spans, current

from tests.client.kept import Kept
from tests.support.client import DEADLINE_S


@pytest.fixture
def sender() -> Kept:
    return Kept()


@pytest.fixture
def spans(sender: Kept) -> Spans:
    return Spans(sender=sender)


def test_a_span_that_another_task_ends_leaves_that_task_its_own(spans: Spans) -> None:
    """The other task goes on with its span; the first one goes back to what was current before."""

    async def end(block: contextlib.AbstractContextManager[Span]) -> None:
        with spans.span("theirs") as theirs:
            block.__exit__(None, None, None)
            assert current() is theirs

    async def main() -> None:
        with spans.span("outer") as outer:
            block = spans.span("inner")
            block.__enter__()
            await asyncio.create_task(end(block))
            assert current() is outer
        assert current() is None

    asyncio.run(main())


@pytest.mark.parametrize("end", [Span.end, lambda span: None])
def test_a_parent_that_ends_before_its_child_is_not_current_again(
    spans: Spans, end: Callable[[Span], None]
) -> None:
    """The child stays current until it ends; then it is the nearest span that is still open."""
    grandparent, parent, child = (spans.span(name) for name in ("grandparent", "parent", "child"))
    with grandparent as oldest:
        parent.__enter__()
        child.__enter__()
        end(parent.span)
        parent.__exit__(None, None, None)
        assert current() is child.span
        child.__exit__(None, None, None)
        assert current() is oldest
    assert current() is None


def test_a_span_that_ends_in_its_block_is_not_current_in_the_rest_of_it(
    spans: Spans, sender: Kept
) -> None:
    """`end()` sends the END, and the end of the block adds nothing."""
    with spans.span("outer") as outer, spans.span("inner") as inner:
        inner.end()
        assert current() is outer
        with spans.span("next") as following:
            assert following.parent_id == outer.id
    assert sender.ids("end") == sender.ids("start")


def test_a_generator_left_early_leaves_nothing_current(spans: Spans) -> None:
    """Whether it is closed in the block it began in, or after it."""

    def stream() -> Iterator[int]:
        with spans.span("stream"):
            yield 1
            yield 2

    with spans.span("turn") as turn:
        for _ in stream():
            break
        assert current() is turn
        items = stream()
        next(items)
    del items
    assert current() is None


def test_leaving_a_generator_early_is_no_error(spans: Spans, sender: Kept) -> None:
    """Its consumer had enough; the span ends without an `__error__`."""

    def stream() -> Iterator[int]:
        with spans.span("stream"):
            yield 1

    next(stream())
    assert "data" not in sender.ends["stream"]


async def test_an_async_generator_that_the_loop_closes_leaves_nothing_current(
    spans: Spans, sender: Kept
) -> None:
    """The loop closes it in a task of its own, and the consumer goes on with its own span."""
    closed = asyncio.Event()

    async def stream() -> AsyncIterator[int]:
        try:
            async with spans.span("stream"):
                yield 1
        finally:
            closed.set()

    async with spans.span("turn") as turn:
        async for _ in stream():
            break
        await closed.wait()
        assert current() is turn
        with spans.span("after") as after:
            assert after.parent_id == turn.id
        task = asyncio.create_task(a_child(spans))
        assert (await task).parent_id == turn.id
    assert current() is None
    assert sender.ids("end") == sender.ids("start")


async def a_child(spans: Spans) -> Span:
    """A span that a task opens and ends."""
    async with spans.span("child") as span:
        await asyncio.sleep(0)
    return span


def test_an_async_generator_open_at_the_end_of_the_loop_ends_its_span(
    spans: Spans, sender: Kept
) -> None:
    """`asyncio.run` closes it."""

    async def stream() -> AsyncIterator[int]:
        async with spans.span("stream"):
            yield 1

    held = []

    async def main() -> None:
        items = stream()
        held.append(items)
        await anext(items)

    asyncio.run(main())
    assert sender.ids("end") == sender.ids("start")


async def test_a_task_that_outlives_its_parent_stays_nested(spans: Spans, sender: Kept) -> None:
    """All its spans belong to the span it was created in, and its children to it."""
    over = asyncio.Event()

    async def late(name: str, end: asyncio.Event) -> None:
        with spans.span(f"{name} across"):
            await end.wait()
            with spans.span(f"{name} inner"):
                pass
        with spans.span(f"{name} after"):
            pass

    with spans.span("request") as request:
        tasks = [asyncio.create_task(late("task", over))]
        context = contextvars.copy_context()
    over.set()
    await asyncio.gather(*tasks)
    with ThreadPoolExecutor(1) as pool:
        child = pool.submit(context.run, spans.start, "thread").result(DEADLINE_S)
    assert child.parent_id == request.id
    assert sender.parents["task across"] == sender.parents["task after"] == "request"
    assert sender.parents["task inner"] == "task across"
    assert current() is None


async def test_siblings_in_a_task_group_are_independent(spans: Spans, sender: Kept) -> None:
    """Each nests below the group's span, also when one of them fails."""

    async def work(name: str) -> None:
        async with spans.span(name):
            await asyncio.sleep(0)
            async with spans.span(name + ".inner"):
                await asyncio.sleep(0)
            if name == "b":
                raise ValueError

    with contextlib.suppress(ExceptionGroup):
        async with spans.span("group"), asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(work(name))
    for name in "abc":
        assert (sender.parents[name], sender.parents[name + ".inner"]) == ("group", name)
    assert current() is None


def test_a_span_that_another_thread_ends_is_not_current_any_more(
    spans: Spans, sender: Kept
) -> None:
    """Many threads at once send one END."""
    with spans.span("outer") as outer:
        block = spans.span("inner")
        inner = block.__enter__()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: inner.end(), range(8)))
        assert current() is outer
    assert sender.ids("end") == sender.ids("start")


def test_blocks_in_an_exit_stack_end_in_its_order(spans: Spans, sender: Kept) -> None:
    """`ExitStack` takes the methods from the class."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(spans.span("a"))
        inner = stack.enter_context(spans.span("b"))
        assert current() is inner
    assert sender.parents == {"a": None, "b": "a"}
    assert [span["name"] for span in sender.all("end")] == ["b", "a"]
    assert current() is None


async def test_blocks_in_an_async_exit_stack_record_the_error(spans: Spans, sender: Kept) -> None:
    """Both kinds of blocks."""
    with contextlib.suppress(ValueError):
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(spans.span("a"))
            stack.enter_context(spans.span("b"))
            raise ValueError
    assert {name: span["data"]["__error__"]["type"] for name, span in sender.ends.items()} == {
        "a": "ValueError",
        "b": "ValueError",
    }
    assert current() is None


def test_spans_of_two_sidecars_nest_in_each_other(spans: Spans) -> None:
    """What is current does not depend on where the events go."""
    others = Kept()
    with spans.span("ours") as ours, Spans(sender=others).span("theirs") as theirs:
        assert theirs.parent_id == ours.id
        with spans.span("inner") as inner:
            assert inner.parent_id == theirs.id
    assert [span["name"] for span in others.all("end")] == ["theirs"]
    assert current() is None


def test_a_block_that_is_entered_twice_is_entered_once(spans: Spans, sender: Kept) -> None:
    """Blocks are not reusable; the inner one ends the span."""
    block = spans.span("turn")
    with block, block:
        pass
    with block:
        assert current() is None
    assert list(sender.ids("start").values()) == list(sender.ids("end").values()) == [1]


def test_looking_at_a_block_does_not_end_it(spans: Spans, sender: Kept) -> None:
    """Frameworks look for `__exit__` before and after they enter a block."""
    block = spans.span("turn")
    assert hasattr(block, "__exit__")
    with block:
        assert hasattr(block, "__exit__")
        assert hasattr(block, "__aexit__")
        assert not sender.all("end")
        assert current() is block.span
    assert sender.ids("end") == sender.ids("start")


def test_an_explicit_parent_may_come_from_anywhere(spans: Spans, sender: Kept) -> None:
    """Its ids win over those of the current span, which is current again afterwards."""
    started: list[Span] = []
    thread = threading.Thread(target=lambda: started.append(spans.start("elsewhere", task_id="t")))
    thread.start()
    thread.join()
    with spans.span("here") as here:
        with spans.span("child", parent=started[0]) as child:
            assert (child.trace_id, child.task_id) == (started[0].trace_id, "t")
            assert current() is child
        assert current() is here
    assert sender.parents == {"elsewhere": None, "here": None, "child": "elsewhere"}


def test_contexts_that_are_copied_on_and_on_keep_no_spans() -> None:
    """A callback that schedules the next one inside its span leaves nothing of its spans."""
    spans = Spans(sender=Kept())
    made: list[weakref.ref[Span]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def tick(left: int) -> None:
            with spans.span("tick") as span:
                made.append(weakref.ref(span))
                if left:
                    loop.call_soon(tick, left - 1)
                else:
                    done.set_result(None)

        tick(50)
        await done
        gc.collect()
        assert sum(each() is not None for each in made) <= 2

    asyncio.run(main())


def test_blocks_that_overlap_on_and_on_keep_no_spans() -> None:
    """Each block is left after the next one was entered."""
    spans = Spans(sender=Kept())
    made: list[weakref.ref[Span]] = []
    block = None
    for _ in range(50):
        following = spans.span("turn")
        made.append(weakref.ref(following.__enter__()))
        if block is not None:
            block.__exit__(None, None, None)
        block = following
    del following
    gc.collect()
    assert sum(each() is not None for each in made) <= 2
    assert block is not None
    block.__exit__(None, None, None)
    assert current() is None

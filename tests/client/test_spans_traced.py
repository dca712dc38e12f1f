"""`@spans.traced`: functions, coroutines, generators and methods of every kind."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import pytest
from trace_sidecar_client import Spans, current

from tests.client.kept import Kept


@pytest.fixture
def sender() -> Kept:
    return Kept()


@pytest.fixture
def spans(sender: Kept) -> Spans:
    return Spans(sender=sender)


def test_a_traced_call_records_its_arguments_and_its_result(spans: Spans, sender: Kept) -> None:
    """By the names of the parameters; nested calls nest."""

    @spans.traced
    def inner(first: int, *rest: int, **options: int) -> list[int]:
        return [first, *rest]

    @spans.traced("outer", data={"k": 1})
    def outer() -> dict[str, Any]:
        return {"inner": inner(1, 2, 3, limit=4)}

    assert outer() == {"inner": [1, 2, 3]}
    name = inner.__qualname__
    assert sender.parents == {"outer": None, name: "outer"}
    assert sender.ends[name]["input"] == {"first": 1, "rest": [2, 3], "options": {"limit": 4}}
    assert sender.ends[name]["output"] == {"items": [1, 2, 3]}
    assert (sender.ends["outer"]["input"], sender.ends["outer"]["data"]) == ({}, {"k": 1})
    assert sender.ids("end") == sender.ids("start")


def test_methods_leave_out_what_they_are_called_on(spans: Spans, sender: Kept) -> None:
    """`self` and `cls`, whichever decorator comes first."""

    class Made:
        @spans.traced(name="method")
        def method(self, value: int) -> int:
            return value

        @spans.traced(name="class outside")
        @classmethod
        def class_outside(cls, value: int) -> int:
            return value

        @classmethod
        @spans.traced(name="class inside")
        def class_inside(cls, value: int) -> int:
            return value

        @spans.traced(name="static")
        @staticmethod
        def static(value: int) -> int:
            return value

    made = Made()
    for call in (made.method, made.class_outside, Made.class_inside, made.static, Made.static):
        assert call(7) == 7
    assert [span["input"] for span in sender.all("end")] == [{"value": 7}] * 5


def test_a_traced_function_keeps_its_signature_and_kind(spans: Spans) -> None:
    """Frameworks look at both."""

    def plain(value: int) -> int:
        """Double it."""
        return value * 2

    async def coroutine(value: int) -> int:
        return value

    def generator(value: int) -> Iterator[int]:
        yield value

    async def async_generator(value: int) -> AsyncIterator[int]:
        yield value

    kinds: list[Callable[[object], bool]] = [
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    ]
    for function in (plain, coroutine, generator, async_generator):
        traced = spans.traced(function)
        assert inspect.signature(traced) == inspect.signature(function)
        assert (traced.__name__, traced.__doc__) == (function.__name__, function.__doc__)
        assert [kind(traced) for kind in kinds] == [kind(function) for kind in kinds]


def test_what_to_record_can_be_turned_off(spans: Spans, sender: Kept) -> None:
    """For secrets, and for results that are large."""

    @spans.traced(name="turn", capture_input=False, capture_output=False)
    def turn(secret: str) -> str:
        return secret

    assert turn("hunter2") == "hunter2"
    assert not {"input", "output"} & sender.ends["turn"].keys()


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()])
def test_an_error_in_a_traced_function_is_recorded(
    spans: Spans, sender: Kept, error: BaseException
) -> None:
    """And propagates."""

    @spans.traced("turn")
    def turn() -> None:
        raise error

    with pytest.raises(type(error)):
        turn()
    assert sender.ends["turn"]["data"]["__error__"]["type"] == type(error).__name__


def test_a_call_with_wrong_arguments_raises_the_function_s_own_error(spans: Spans) -> None:
    """Tracing adds nothing to it."""

    @spans.traced
    def turn(question: str) -> str:
        return question

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'question'"):
        turn()  # type: ignore[call-arg]


async def test_a_traced_coroutine_is_current_while_it_runs(spans: Spans, sender: Kept) -> None:
    """The span lasts until the result."""

    @spans.traced("turn")
    async def turn(question: str) -> str | None:
        await asyncio.sleep(0)
        span = current()
        return span.name + question if span else None

    assert await asyncio.gather(turn("1"), turn("2")) == ["turn1", "turn2"]  # type: ignore[comparison-overlap]
    assert [span["output"]["value"] for span in sender.all("end")] == ["turn1", "turn2"]


def test_a_traced_generator_is_current_only_while_it_runs(spans: Spans, sender: Kept) -> None:
    """Its consumer's spans are not its children; `send`, `throw` and the result pass through."""

    @spans.traced("stream")
    def stream() -> Generator[object, str, str]:
        seen: list[str] = []
        while True:
            with spans.span("step"):
                pass
            try:
                seen.append((yield current() and len(seen)))
            except ValueError:
                return "".join(seen)

    def consume() -> Generator[object, str, None]:
        results.append((yield from stream()))

    results: list[str] = []
    consumer = consume()
    with spans.span("turn") as turn:
        assert next(consumer) == 0
        assert current() is turn
        with spans.span("between"):
            assert consumer.send("a") == 1
        assert consumer.send("b") == 2
        assert sender.all("end")[-1]["name"] != "stream"
        with pytest.raises(StopIteration):
            consumer.throw(ValueError())
    assert results == ["ab"]
    assert sender.parents["step"] == "stream"
    assert (sender.parents["stream"], sender.parents["between"]) == ("turn", "turn")
    assert sender.ends["stream"]["output"] == {"value": "ab"}
    assert sender.ids("end") == sender.ids("start")


@pytest.mark.parametrize("last", ["exhausted", "left", "failed"])
async def test_a_traced_async_generator_is_current_only_while_it_runs(
    spans: Spans, sender: Kept, last: str
) -> None:
    """Its span ends when it does, or when its consumer has had enough."""
    closed = []

    @spans.traced("stream")
    async def stream() -> AsyncIterator[str | None]:
        try:
            for _ in range(2):
                async with spans.span("step"):
                    await asyncio.sleep(0)
                span = current()
                yield span.name if span else None
            if last == "failed":
                raise ValueError
        finally:
            closed.append(last)

    async with spans.span("turn") as turn:
        items = stream()
        try:
            async for item in items:
                assert item == "stream"
                assert current() is turn
                if last == "left":
                    await items.aclose()  # type: ignore[attr-defined]
        except ValueError:
            assert last == "failed"
    assert closed == [last]
    assert sender.parents["step"] == "stream"
    assert ("data" in sender.ends["stream"]) == (last == "failed")
    assert sender.ids("end") == sender.ids("start")


async def test_a_traced_async_generator_passes_on_what_is_sent_and_thrown(spans: Spans) -> None:
    """Like the generator itself."""

    @spans.traced
    async def echo() -> Any:  # noqa: ANN401 - an async generator
        sent = None
        while True:
            try:
                sent = yield sent
            except ValueError as error:
                sent = str(error)

    items = echo()
    assert await items.asend(None) is None
    assert await items.asend("a") == "a"
    assert await items.athrow(ValueError("b")) == "b"
    await items.aclose()


def test_anything_callable_may_be_traced(spans: Spans, sender: Kept) -> None:
    """Objects, partials, and functions written in C."""

    class Doubles:
        def __call__(self, value: int) -> int:
            return 2 * value

    traced: list[Callable[..., int]] = [
        spans.traced(Doubles()),
        spans.traced(functools.partial(max, 8)),
        spans.traced(len),
    ]
    assert [traced[0](4), traced[1](1), traced[2]("12345678")] == [8, 8, 8]
    assert sender.ids("end") == sender.ids("start")
    assert len(sender.all("end")) == 3


def test_the_first_parameter_only_is_left_out() -> None:
    """`cls` and `self` are names like others elsewhere."""
    sender = Kept()

    @Spans(sender=sender).traced
    def compare(this: int, cls: str) -> None: ...

    compare(1, cls="b")
    assert sender.all("end")[0]["input"] == {"this": 1, "cls": "b"}


@pytest.mark.parametrize("target", [property(len), int, functools.cached_property(len), 3])
def test_what_is_no_function_is_refused(target: object) -> None:
    """Where the decorator is written, with what to do, instead of failing silently later."""
    with pytest.raises(TypeError, match="write it below them"):
        Spans(sender=Kept()).traced(target)


async def test_an_object_with_an_async_call() -> None:
    """Its span covers the work, and the output is the result."""
    sender = Kept()

    class Search:
        async def __call__(self, query: str) -> list[str]:
            await asyncio.sleep(0)
            return [query]

    assert await Spans(sender=sender).traced(Search())("x") == ["x"]
    assert sender.all("end")[0]["output"] == {"items": ["x"]}

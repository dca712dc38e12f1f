"""`Spans` and what values, signal handlers and other threads raise."""

import ctypes
import gc
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest
from trace_sidecar_client import Sender, Span, Spans, current
from trace_sidecar_client.interrupts import is_interrupt

from tests.client.kept import Kept
from tests.support.client import DEADLINE_S, scripted

# When an interrupt that Python dropped is repeated (seconds).
AGAIN_S = DEADLINE_S / 4


class Raises:
    """A value whose `repr` raises."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __repr__(self) -> str:
        raise self._error


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), ValueError()])
def test_what_a_value_raises_stays_inside(error: BaseException) -> None:
    """The agent goes on, and its span is ended."""
    with scripted() as sidecar:
        spans = Spans(sender=Sender(sidecar.url))
        with spans.span("turn", input={"v": Raises(error)}) as span:
            span.output = {"v": Raises(error)}
        with spans.span("next") as following:
            assert following.parent_id is None
        assert spans.flush(DEADLINE_S)
        assert "next" in sidecar.names


def test_an_interrupt_that_a_value_repeats_still_ends_the_span() -> None:
    """The END then has no values, and the agent sees the interrupt."""
    sender = Kept()
    spans = Spans(sender=sender)

    def turn() -> None:
        with spans.span("turn") as span:
            span.output = {"v": Raises(KeyboardInterrupt())}

    with pytest.raises(KeyboardInterrupt):
        turn()
    assert current() is None
    assert sender.ids("start") == sender.ids("end")


class TimeLimit(Exception):
    """What some frameworks raise from a signal handler."""


@pytest.mark.parametrize("error", [SystemExit(), TimeLimit(), TimeoutError()])
def test_what_a_signal_handler_raises_reaches_the_agent(error: BaseException) -> None:
    """Whatever its type, even while the client hides the errors of the agent's values."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise error

    class Signals(Exception):
        def __str__(self) -> str:
            signal.raise_signal(signal.SIGUSR1)
            return ""

    sender = Kept()
    spans = Spans(sender=sender)

    def turn() -> None:
        with spans.span("turn"):
            raise Signals

    before = signal.signal(signal.SIGUSR1, on_signal)
    try:
        with pytest.raises(type(error)) as caught:
            turn()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert caught.value is error
    assert sender.ids("start") == sender.ids("end")


class Stop(BaseException):
    """What another thread raises."""


@pytest.mark.parametrize(
    ("modules", "error", "interrupt"),
    [
        (["trace_sidecar_client.values"], Stop(), True),
        (["trace_sidecar_client.values"], SystemExit(), True),
        (["trace_sidecar_client.values"], KeyError(), False),
        (["trace_sidecar_client.values", "json.encoder"], Stop(), True),
        (["trace_sidecar_client.values", "agent"], Stop(), False),
        (["trace_sidecar_client.values", "agent"], SystemExit(), False),
        (["trace_sidecar_client.values", "agent", "argparse"], SystemExit(), False),
        (["trace_sidecar_client.values", "agent"], KeyboardInterrupt(), True),
    ],
)
def test_an_interrupt_is_told_from_an_error_in_a_value(
    modules: list[str], error: BaseException, interrupt: bool
) -> None:
    """By the innermost code: the client's, or the library's for it, if another thread raises."""
    scope: dict[str, Any] = {"__name__": modules.pop(), "error": error}
    code = "raise error"
    for module in reversed(modules):
        scope = {"__name__": module, "callee": (code, scope)}
        code = "exec(*callee)"
    with pytest.raises(type(error)):
        exec(code, scope)  # noqa: S102 - our own
    assert is_interrupt(error) == interrupt


@pytest.fixture
def without_gc_callbacks() -> Iterator[None]:
    """Hypothesis has one, and an exception that strikes there is lost."""
    callbacks, gc.callbacks[:] = gc.callbacks[:], []
    yield
    gc.callbacks[:] = callbacks
    gc.collect()  # and not in another test: what an interrupt kept from being closed


@pytest.mark.slow
@pytest.mark.usefixtures("without_gc_callbacks")
def test_exceptions_from_another_thread_at_random_moments() -> None:
    """300 of them: each reaches the agent, no dead current span, each START has one END."""
    sender = Kept()
    spans = Spans(sender=sender)
    ready = threading.Semaphore(0)
    left: list[Span | None] = []

    def agent() -> None:
        for _ in range(300):
            try:
                ready.release()
                while True:
                    with spans.span("outer"), spans.span("inner"):
                        pass
            except Stop:
                left.append(current())

    def stop() -> None:
        assert thread.ident
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(Stop)
        )

    thread = threading.Thread(target=agent)
    thread.start()
    moments = random.Random(23)
    for _ in range(300):
        # Python itself drops one that strikes while it finalizes an object: it is repeated.
        while not ready.acquire(timeout=AGAIN_S):
            stop()
        time.sleep(moments.uniform(0, 1e-3))
        stop()
    while thread.is_alive():
        thread.join(AGAIN_S)
        stop()
    assert left == [None] * 300
    starts, ends = sender.ids("start"), sender.ids("end")
    assert starts.keys() <= ends.keys()
    assert set(starts.values()) == set(ends.values()) == {1}


@pytest.mark.slow
@pytest.mark.usefixtures("without_gc_callbacks")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_at_random_moments() -> None:
    """300 of them: no dead current span, each START has one END, and the buffer empties."""
    moments = random.Random(23)
    interrupts = 0

    def on_alarm(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def turn() -> None:
        with spans.span("outer", input={"q": "x" * 100}) as outer:
            for _ in range(5):
                with spans.span("inner") as inner:
                    assert inner.parent_id == outer.id

    before = signal.signal(signal.SIGALRM, on_alarm)
    with scripted() as sidecar:
        spans = Spans(sender=Sender(sidecar.url))
        try:
            while interrupts < 300:
                try:
                    # Again, if Python drops one because it strikes while an object is finalized.
                    signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-5, 2e-3), AGAIN_S)
                    while True:
                        turn()
                except KeyboardInterrupt:
                    interrupts += 1
                    assert current() is None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert spans.flush(DEADLINE_S)
        events = [event for request in sidecar.requests for event in request.events]
    starts, ends = (
        Counter(event["span"]["id"] for event in events if event["event_type"] == kind)
        for kind in ("start", "end")
    )
    assert starts.keys() <= ends.keys()
    assert set(starts.values()) == set(ends.values()) == {1}


class Handler:
    """A handler that is an object."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        raise TimeLimit


def limited(number: int, frame: FrameType | None) -> None:
    """A time limit is over."""
    raise TimeLimit


@pytest.mark.parametrize("handler", [limited, partial(limited), Handler(), Handler().__call__])
def test_a_time_limit_ends_a_flush(handler: Any) -> None:  # noqa: ANN401 - of any kind
    """What a handler of any kind raises reaches the agent, and no event is lost by it."""
    with scripted() as sidecar:
        sender = Sender(sidecar.url)
        sidecar.may_respond.clear()
        sender.send(b'{"span":{"name":"x"}}')
        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(TimeLimit):
                sender.flush(DEADLINE_S)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        sidecar.may_respond.set()
        assert sender.flush(DEADLINE_S)
        assert (sidecar.names, sender.dropped) == (["x"], {})


def test_a_time_limit_of_another_thread_is_told_from_an_error_in_a_value() -> None:
    """An exception that only an agent has comes from outside, unless a value is being encoded."""
    for module, error, interrupt in (
        ("trace_sidecar_client.buffer", TimeLimit(), True),
        ("trace_sidecar_client.buffer", OSError(), False),
        ("trace_sidecar_client.forms", TimeLimit(), False),
        ("trace_sidecar_client_of_mine", TimeLimit(), False),
    ):
        with pytest.raises(type(error)):
            exec("raise error", {"__name__": module, "error": error})  # noqa: S102 - our own
        assert is_interrupt(error) == interrupt, module

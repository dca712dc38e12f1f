"""What an agent may do to a tracing client, without any framework.

Argument: the name of a situation, which is also that of its outermost span. Each has a process of
its own, because some of them change it.
"""

import asyncio
import contextvars
import copy
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from typing import Any

from trace_sidecar_client import Spans, current

spans = Spans()
TIMES = 50


def copied() -> None:
    """Hold it in state that is copied and stored."""
    state: dict[str, Any] = {"spans": spans, "messages": []}
    with spans.span("copied"):
        with copy.deepcopy(state)["spans"].span("by deepcopy"):
            pass
        with copy.copy(spans).span("by copy"):
            pass
        with pickle.loads(pickle.dumps(spans)).span("by pickle"):  # noqa: S301 - made here
            pass


def signaled() -> None:
    """Trace in a signal handler while the program traces, from its first span on."""
    handled = made = 0

    def handle(number: int, frame: object) -> None:
        nonlocal handled
        if handled < TIMES:
            handled += 1
            with spans.span(f"handler {handled}"):
                pass

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    with spans.span("signaled") as top:
        while handled < TIMES:
            made += 1
            with spans.span(f"inner {made}"):
                pass
            assert current() is top
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.write(f"{made}\n")


def closed() -> None:
    """Close every file after the first spans were sent, as daemonizers do."""
    with spans.span("closed"):
        with spans.span("before"):
            pass
        spans.flush()
        os.closerange(0, 1024)
        for number in range(3):
            assert os.open(os.devnull, os.O_RDWR) == number
        with spans.span("after"):
            pass


def daemonized() -> None:
    """Become a daemon after the first spans: fork twice, close every file, trace, end."""
    with spans.span("daemonized"):
        with spans.span("before"):
            pass
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.setsid()
            if os.fork():
                os._exit(0)
            os.closerange(0, writing)
            os.closerange(writing + 1, 1024)
            for number in range(3):
                assert os.open(os.devnull, os.O_RDWR) == number
            with spans.span("daemon"):
                pass
            sys.exit()
        os.waitpid(child, 0)
        os.close(writing)
        assert os.read(reading, 1) == b""  # until the daemon has ended


def threads() -> None:
    """Trace in many threads that start at once, with and without the context of their caller."""
    barrier = threading.Barrier(TIMES)

    def work(number: int) -> None:
        barrier.wait()
        with spans.span(f"worker {number}"), spans.span(f"worker {number}'s step"):
            pass
        assert current() is (top if number % 2 else None)

    with spans.span("threads") as top, ThreadPoolExecutor(TIMES) as pool:
        for number in range(TIMES):
            if number % 2:
                pool.submit(contextvars.copy_context().run, work, number)
            else:
                pool.submit(work, number)


def late_thread() -> None:
    """Make the first span in a thread that outlives the main thread."""
    main = threading.main_thread()

    def work() -> None:
        main.join()
        with spans.span("late_thread"):
            pass

    threading.Thread(target=work).start()


def tasks() -> None:
    """Nest spans across tasks, generators that are left early, and spans that end out of order."""

    async def numbers(closed: asyncio.Event) -> AsyncIterator[int]:
        try:
            with spans.span("generator"):
                yield 1
                yield 2
        finally:
            closed.set()

    async def late(go: asyncio.Event) -> None:
        await go.wait()
        with spans.span("late child"):
            pass

    async def main() -> None:
        go = asyncio.Event()
        with spans.span("tasks"):
            with spans.span("ended early"):
                task = asyncio.create_task(late(go))
            go.set()
            await task
            async with asyncio.TaskGroup() as group:
                for number in range(3):
                    group.create_task(child(number))
            closed = asyncio.Event()
            async for _ in numbers(closed):
                break
            await closed.wait()  # the event loop closes it, in a task of its own
            with spans.span("after the generator"):
                pass
        assert current() is None

    async def child(number: int) -> None:
        async with spans.span(f"task {number}"):
            await asyncio.sleep(0)
            with spans.span(f"task {number}'s step"):
                await asyncio.sleep(0)

    asyncio.run(main())


def out_of_order() -> None:
    """End a parent before its child, and a span in another context than the one it began in."""

    def left() -> Generator[None, None, None]:
        with spans.span("left open"):
            yield

    with spans.span("out_of_order"):
        outer = spans.span("outer")
        outer.__enter__()
        inner = spans.span("inner")
        inner.__enter__()
        outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)
        generator = left()
        next(generator)
        contextvars.copy_context().run(generator.close)
        with spans.span("after"):
            pass
    assert current() is None


def subinterpreter() -> None:
    """Trace in a subinterpreter, which may have no daemon threads."""
    old = sys.version_info < (3, 13)
    interpreters: Any = import_module("_xxsubinterpreters" if old else "_interpreters")
    code = f"""if True:
        import sys
        sys.path[:] = {sys.path!r}
        from trace_sidecar_client import Spans, current
        spans = Spans()
        with spans.span("inside"), spans.span("inside it"):
            pass
        assert current() is None
        spans.flush(until="accepted")
    """
    with spans.span("subinterpreter"):
        made = interpreters.create()
        failure = interpreters.run_string(made, code)
        assert failure is None, failure.formatted
        interpreters.destroy(made)


def interrupted_loop() -> None:
    """Get Ctrl-C in an event loop, which cancels the task that it runs."""

    async def main() -> None:
        async with spans.span("interrupted_loop"):
            with spans.span("awaiting"):
                signal.raise_signal(signal.SIGINT)
                await asyncio.Event().wait()

    # What a shell runs in the background ignores it, and so would asyncio.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
    assert current() is None


def trace(name: str) -> None:
    """Trace one span."""
    with spans.span(name):
        pass


def trace_and_wait(name: str, ready: Any) -> None:  # noqa: ANN401 - an event of multiprocessing
    """Trace in a child that waits to be terminated."""
    trace(name)
    ready.set()
    threading.Event().wait()


def terminated() -> None:
    """Terminate children that have just traced, and pools, as their `with` blocks do."""
    for method in ("fork", "spawn", "forkserver"):
        context: Any = multiprocessing.get_context(method)
        ready = context.Event()
        child = context.Process(target=trace_and_wait, args=(method, ready))
        child.start()
        ready.wait()
        child.terminate()
        child.join()
        assert child.exitcode == -signal.SIGTERM
        with context.Pool(1) as pool:
            pool.apply(trace, (f"{method}'s pool",))


def raising() -> None:
    """Leave spans by every kind of exception, and values that raise."""

    class Hostile:
        def __repr__(self) -> str:
            raise SystemExit("from a value")

    with spans.span("raising"):
        for kind in (ValueError, KeyboardInterrupt, SystemExit, GeneratorExit):
            with suppress(kind), spans.span(kind.__name__, input={"value": Hostile()}):
                raise kind
    assert current() is None


SITUATIONS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        *(copied, signaled, closed, daemonized, threads, late_thread, tasks, out_of_order),
        *(subinterpreter, interrupted_loop, terminated, raising),
    )
}


if __name__ == "__main__":
    SITUATIONS[sys.argv[1]]()

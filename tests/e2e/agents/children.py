"""Children of `multiprocessing`, each of which ends right after its last span.

Argument: the start method.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from typing import NamedTuple

from trace_sidecar_client import Spans, current

spans = Spans()


class Work(NamedTuple):
    """A span's name, and the trace and parent of one from another process."""

    name: str
    trace_id: str | None = None
    parent_id: str | None = None

    def __call__(self) -> str:
        """Trace a span with a step in it."""
        span = spans.span(self.name, trace_id=self.trace_id, parent_id=self.parent_id)
        with span, spans.span(f"{self.name}'s step"):
            return self.name


def call(work: Work) -> str:
    """Do some work."""
    return work()


def fail(work: Work) -> None:
    """Do some work and end with status 1."""
    work()
    sys.exit(1)


def have_child(work: Work) -> None:
    """Do some work, and more in a child of this process."""
    work()
    context = multiprocessing.get_context()
    child = context.Process(target=call, args=(work._replace(name=f"{work.name}'s child"),))
    child.start()
    child.join()


def ended(context: BaseContext, target: Callable[[Work], object], work: Work) -> int | None:
    """Run a process to its end; return its exit code."""
    process = context.Process(target=target, args=(work,))  # type: ignore[attr-defined]
    process.start()
    process.join()
    code: int | None = process.exitcode
    return code


def main(method: str) -> None:
    """Run every kind of child, all within one span."""
    multiprocessing.set_start_method(method)
    context = multiprocessing.get_context(method)
    with spans.span("parent") as parent:
        # A child that is forked here inherits what is current; any other is told. So is one that
        # replaces another in a pool, because a thread of the pool starts it.
        told = (parent.trace_id, parent.id)
        ids = (None, None) if method == "fork" else told
        assert ended(context, call, Work("process", *ids)) == 0
        assert ended(context, fail, Work("failure", *ids)) == 1
        assert ended(context, have_child, Work("process with a child", *ids)) == 0
        for limit in (None, 1):
            pool = context.Pool(2, maxtasksperchild=limit)
            pool.map(
                call, [Work(f"pool({limit}) {n}", *(told if limit else ids)) for n in range(4)], 1
            )
            pool.close()
            pool.join()
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            list(executor.map(call, [Work(f"executor {n}", *ids) for n in range(4)]))
        if method == "fork":
            forked = os.fork()
            if not forked:
                Work("os.fork")()
                sys.exit()  # leaves the parent's span, too
            assert os.waitpid(forked, 0) == (forked, 0)
    assert current() is None


if __name__ == "__main__":
    main(*sys.argv[1:])

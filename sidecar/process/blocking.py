"""Blocking calls beside the event loop, each with a time limit: what hangs never stops the loop."""

import asyncio
import errno
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")


class Stalled(OSError):
    """A call did not return in time. It goes on, and may still have its effect."""


class _DaemonThread(Executor):
    """One thread, for which nothing waits at the end of the process, unlike a pool's."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], object]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        if self._thread.ident is None:
            self._thread.start()  # with the first call: most of these threads are never needed
        call = Future[_T]()
        self._jobs.put((call, partial(fn, *args, **kwargs)))
        return call

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, function = job
            if not call.set_running_or_notify_cancel():
                continue
            try:
                call.set_result(function())
            except BaseException as error:  # noqa: BLE001 (it is the caller's)
                call.set_exception(error)
            del job, call, function

    def close(self) -> None:
        """End the thread after the calls that wait."""
        self._jobs.put(None)


def within(limit_s: float, function: Callable[..., _T], *arguments: object) -> _T:
    """Make one call, for whoever has no event loop yet; raises `TimeoutError` after `limit_s`."""
    thread = _DaemonThread("one call")
    call = thread.submit(function, *arguments)
    thread.close()
    return call.result(limit_s)


class BlockingThread:
    """Makes blocking calls one after the other, on a daemon thread of its own.

    `name` is what it works with, for people. Create it inside a running loop.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.stalls = 0  # calls that did not return in time
        # Held by whoever makes a call, so that its limit has no time of other calls in it.
        self.turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._thread = _DaemonThread(name)
        self._hanging: asyncio.Future[object] | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()

    @property
    def is_hanging(self) -> bool:
        """Whether a call that did not return in time still has not."""
        return self._hanging is not None and not self._hanging.done()

    def start(self, function: Callable[..., _T], *arguments: object) -> "asyncio.Future[_T]":
        """Start a call, or have it wait for the one before. Raises `OSError` if there is no thread.

        A container may have a limit for threads, and others may use it up.
        """
        try:
            call = self._loop.run_in_executor(self._thread, function, *arguments)
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, str(error)) from None
        call.add_done_callback(_retrieve)
        return call

    async def result(self, call: "asyncio.Future[_T]", limit_s: float) -> _T:
        """Wait for a call; raises `Stalled` after `limit_s`, or what the call raises."""
        if not call.done():
            waiting: set[asyncio.Future[object]] = {call, self._ended}  # type: ignore[arg-type]
            await asyncio.wait(waiting, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if not call.done():
            if not self.is_hanging:
                self.stalls += 1
                self._hanging = call  # type: ignore[assignment]
            raise Stalled(errno.ETIMEDOUT, "no answer in time")
        return call.result()

    async def call(self, function: Callable[..., _T], *arguments: object, limit_s: float) -> _T:
        """Make a call when it is its turn. While an earlier one hangs, raises `Stalled` at once."""
        async with self.turn:
            if self.is_hanging or self._ended.done():
                raise Stalled(errno.ETIMEDOUT, "an earlier call has no answer yet")
            return await self.result(self.start(function, *arguments), limit_s)

    def end_at(self, when: float) -> None:
        """From loop time `when` on, no caller waits any more: the process is about to end."""
        self._loop.call_at(when, self._end)

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def close(self) -> None:
        """Make no more calls."""
        self._thread.close()


def _retrieve(call: "asyncio.Future[_T]") -> None:
    """Mark the exception of a call that nobody waits for as retrieved."""
    if not call.cancelled():
        call.exception()

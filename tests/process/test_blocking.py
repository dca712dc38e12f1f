"""Blocking calls beside the loop: their time limits, and what becomes of calls that hang."""

import asyncio
import subprocess
import sys
import textwrap
import threading

import pytest

from sidecar.process.blocking import BlockingThread, Stalled, within
from tests.support.faults import fast, fast_loop, now


class Gate:
    """A call that hangs until `opened`."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.made: list[str] = []
        self._loop = fast_loop()

    def hang(self, name: str) -> str:
        """Made once the gate is open."""
        if not self.opened.is_set():
            self._loop.hang(self.opened)
        return self.call(name)

    def call(self, name: str) -> str:
        """Made at once."""
        self.made.append(name)
        return name


def fail() -> None:
    """Fails."""
    raise PermissionError(13, "not allowed")


def test_one_call_without_a_loop() -> None:
    """Its result or its error is the caller's, and nobody waits longer than the limit."""
    assert within(60, len, "abc") == 3
    with pytest.raises(ValueError, match="x"):
        within(60, int, "x")
    never = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.01, never.wait)
    never.set()


@fast
async def test_calls_are_made_in_order() -> None:
    """Each gives its result or raises its error, and none counts as stalled."""
    thread, gate = BlockingThread("disk"), Gate()
    calls = [thread.call(gate.call, name, limit_s=1.0) for name in "abc"]
    assert await asyncio.gather(*calls) == ["a", "b", "c"] == gate.made
    with pytest.raises(PermissionError):
        await thread.call(fail, limit_s=1.0)
    assert (thread.stalls, thread.is_hanging) == (0, False)
    thread.close()


@fast
async def test_a_slow_disk_is_not_one_that_hangs() -> None:
    """The limit is for each call, however many wait for their turn."""
    thread, loop = BlockingThread("disk"), fast_loop()

    def slow(done: threading.Event) -> None:
        loop.call_soon_threadsafe(loop.call_later, 1.0, done.set)
        loop.hang(done)

    began = now()
    await asyncio.gather(*(thread.call(slow, threading.Event(), limit_s=2.0) for _ in range(10)))
    assert now() - began >= 10.0
    assert thread.stalls == 0
    thread.close()


@fast
async def test_a_call_that_hangs() -> None:
    """It stalls after its limit, others at once; when it has returned, calls are made again."""
    thread, gate = BlockingThread("disk"), Gate()
    began = now()
    with pytest.raises(Stalled):
        await thread.call(gate.hang, "first", limit_s=3.0)
    assert now() - began == pytest.approx(3.0)
    with pytest.raises(Stalled):
        await thread.call(gate.call, "refused", limit_s=3.0)
    assert now() - began == pytest.approx(3.0)
    assert (thread.stalls, thread.is_hanging) == (1, True)
    waiting = thread.start(gate.call, "second")
    gate.opened.set()
    assert await thread.result(waiting, 3.0) == "second"
    assert not thread.is_hanging
    assert gate.made == ["first", "second"]
    thread.close()


@fast
async def test_the_result_of_a_late_call_can_still_be_had() -> None:
    """Several may wait for one call, each for as long as it likes; it counts as one stall."""
    thread, gate = BlockingThread("disk"), Gate()
    call = thread.start(gate.hang, "late")
    for _ in range(3):
        with pytest.raises(Stalled):
            await thread.result(call, 1.0)
    gate.opened.set()
    assert await asyncio.gather(*(thread.result(call, 1.0) for _ in range(2))) == ["late", "late"]
    assert thread.stalls == 1
    thread.close()


@fast
async def test_a_call_that_is_cancelled_while_it_waits() -> None:
    """It is never made, and the thread makes the next one."""
    thread, gate = BlockingThread("disk"), Gate()
    hanging = thread.start(gate.hang, "first")
    thread.start(gate.call, "cancelled").cancel()
    await asyncio.sleep(0)  # until then, the thread does not know
    last = thread.start(gate.call, "last")
    gate.opened.set()
    await asyncio.wait([hanging, last])
    assert gate.made == ["first", "last"]
    thread.close()


@fast
async def test_nobody_waits_at_the_end() -> None:
    """When the process is about to end, calls under way stall, as do later ones that hang."""
    thread, gate = BlockingThread("disk"), Gate()
    thread.end_at(now() + 0.5)
    began = now()
    with pytest.raises(Stalled):
        await thread.call(gate.hang, "first", limit_s=30.0)
    assert now() - began == pytest.approx(0.5)
    assert thread.is_hanging
    gate.opened.set()
    thread.close()


@fast
async def test_the_error_of_a_late_call_is_nobodys() -> None:
    """It is neither raised nor logged by the loop, since the caller has given up long ago."""
    complaints: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    thread, gate = BlockingThread("disk"), Gate()

    def late() -> None:
        gate.hang("late")
        fail()

    with pytest.raises(Stalled):
        await thread.call(late, limit_s=1.0)
    gate.opened.set()
    await asyncio.wait([thread.start(gate.call, "next")])
    assert (gate.made, complaints) == (["late", "next"], [])
    thread.close()


@fast
async def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container at its limit of threads, that is an error like the disk's."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="can't start new thread"):
        await BlockingThread("disk").call(fail, limit_s=1.0)


@pytest.mark.process
def test_the_end_of_the_process_waits_for_no_thread() -> None:
    """A command ends although a call of it hangs."""
    script = """
        import asyncio, threading
        from sidecar.process.blocking import BlockingThread, Stalled, within

        async def main():
            try:
                await BlockingThread("disk").call(threading.Event().wait, limit_s=0.01)
            except Stalled:
                print("given up")

        asyncio.run(main())
    """
    run = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(run, capture_output=True, timeout=60, check=True, text=True)
    assert done.stdout == "given up\n"

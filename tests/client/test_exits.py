"""The ends of a process, and forks: every event arrives once, or the log says how many did not."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from trace_sidecar_client import Sender, exits

from tests.support.client import DEADLINE_S, scripted

ROOT = Path(__file__).parents[2]


def event(name: str) -> bytes:
    """An encoded event with this span name."""
    return json.dumps({"event_type": "start", "span": {"name": name}}).encode()


AGENT = """
import sys, trace_sidecar_client as client
spans = client.Spans(sys.argv[1])
with spans.span("last"):
    pass
{}
"""


def agent(url: str, last: str = "") -> "subprocess.Popen[str]":
    """Start a process that traces one span, then runs `last`."""
    command = [sys.executable, "-c", AGENT.format(last), url]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.mark.process
def test_buffered_events_are_sent_at_exit() -> None:
    """A process that exits right after its last span loses nothing."""
    with scripted() as sidecar, agent(sidecar.url) as process:
        assert process.wait(DEADLINE_S) == 0
        assert sidecar.names == ["last", "last"]


@pytest.mark.process
def test_a_process_without_a_sidecar_exits_at_once() -> None:
    """One line says early what to set, another at exit how many events were not delivered."""
    process = agent("http://127.0.0.1:1", "client.exits.EXIT_TIMEOUT_S = 1000")
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert stderr == (
        "the sidecar at http://127.0.0.1:1 can't be reached ([Errno 111] Connection refused): spans"
        " wait in memory, up to 64 MiB; set TRACE_SIDECAR_URL, or TRACE_SIDECAR_DISABLED=1\n"
        "span events dropped: 2 (not delivered at exit) (sidecar: http://127.0.0.1:1)\n"
    )


@pytest.mark.process
def test_the_flush_at_exit_gives_up_on_a_sidecar_that_hangs() -> None:
    """A sender thread that is blocked in a request does not keep the process alive."""
    with scripted() as sidecar:
        sidecar.may_respond.clear()
        process = agent(sidecar.url, "client.exits.EXIT_TIMEOUT_S = 0.1")
        _, stderr = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, stderr.count("not delivered at exit")) == (0, 1)


@pytest.mark.process
def test_a_sigterm_handler_that_exits_flushes() -> None:
    """A handler that raises `SystemExit`, as servers have, lets the flush at exit run."""
    last = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "spans.flush(); print('up', file=sys.stderr, flush=True)\n"
        "with spans.span('open'): signal.pause()"
    )
    with scripted() as sidecar, agent(sidecar.url, last) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "up\n"
        sidecar.wait_for_requests(2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
        assert sidecar.names == ["last", "last", "open", "open"]


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_fork_each_process_sends_its_own_events() -> None:
    """The child opens its own connection and does not resend what the parent holds."""
    with scripted() as sidecar:
        sender = Sender(sidecar.url)
        sender.send(event("warm"))
        assert sender.flush(DEADLINE_S)
        sidecar.may_respond.clear()
        sender.send(event("parent 1"))
        sidecar.wait_for_requests(2)
        sender.send(event("parent 2"))
        child = os.fork()
        if child == 0:
            # _exit: neither the rest of the test nor its cleanup may run in the child.
            sender.send(event("child"))
            os._exit(0 if sender.flush(DEADLINE_S) and sender.sent == 1 else 1)
        sidecar.wait_for_requests(3)
        sidecar.may_respond.set()
        assert os.waitpid(child, 0)[1] == 0
        assert sender.flush(DEADLINE_S)
        assert sorted(sidecar.names) == ["child", "parent 1", "parent 2", "warm"]


# From 3.12 on, Python itself warns of a fork beside the client's thread.
FORKING = """
import os, warnings
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
child = os.fork()
if child == 0:
    with spans.span("child"):
        pass
    sys.exit()
os.waitpid(child, 0)
"""


@pytest.mark.process
def test_a_forked_child_that_exits_flushes_its_own_events_only() -> None:
    """What the parent still held at the fork comes from the parent, once."""
    with scripted() as sidecar, agent(sidecar.url, FORKING) as process:
        _, stderr = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, stderr) == (0, "")
        assert sorted(sidecar.names) == ["child", "child", "last", "last"]


def test_a_fork_ends_the_flushes_that_were_going_on() -> None:
    """In the child, nothing delivers what they wait for: a signal handler may have forked."""
    sender = Sender("http://127.0.0.1:1")
    sender.send(event("parent's"))
    with ThreadPoolExecutor(1) as other:
        flushed = other.submit(sender.flush, 1e6)
        while not sender._buffer._waiters:
            time.sleep(0.001)
        sender.after_fork()
        assert not flushed.result(DEADLINE_S)
    assert sender.waiting_bytes == 0


def test_all_hooks_of_an_exit_share_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent that has loaded `multiprocessing` has two; a sidecar that hangs costs 5 s, once."""
    allowed = []

    class Hanging:
        def after_fork(self) -> None:
            """Not called."""

        def finish(self, deadline: float) -> None:
            allowed.append(deadline - time.monotonic())
            time.sleep(max(allowed[-1], 0.0))

    monkeypatch.setattr(exits, "_SENDERS", {Hanging()})
    monkeypatch.setattr(exits, "_spent_s", 0.0)
    monkeypatch.setattr(exits, "EXIT_TIMEOUT_S", 0.2)
    exits.finish_all()
    exits.finish_all()
    assert allowed[1] < allowed[0] / 2


@pytest.mark.process
def test_a_callback_that_traces_after_the_flush_at_exit() -> None:
    """What was registered earlier runs later, even when the time for the flush is over."""
    late = """
def traced():
    for sender in client.exits._SENDERS:
        sender._exit_deadline -= client.exits.EXIT_TIMEOUT_S + 1
    with spans.span("late"):
        pass
import atexit
atexit.unregister(client.exits.finish_all)
atexit.register(traced)
atexit.register(client.exits.finish_all)
"""
    with scripted() as sidecar, agent(sidecar.url, late) as process:
        assert process.wait(DEADLINE_S) == 0
        assert sidecar.names == ["last", "last", "late", "late"]


def test_ctrl_c_while_the_exit_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every sender says what is lost, and the interrupt goes on."""

    def interrupted(self: Sender, deadline: float, *, last_try: bool) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sender, "_settle", interrupted)
    senders = [Sender(f"http://127.0.0.1:{port}") for port in (1, 2)]
    for sender in senders:
        sender._buffer.offer(event("lost"))
    monkeypatch.setattr(exits, "_SENDERS", set(senders))
    with pytest.raises(KeyboardInterrupt):
        exits.finish_all()
    assert sorted(caplog.messages) == [
        f"span events dropped: 1 (not delivered at exit) (sidecar: http://127.0.0.1:{port})"
        for port in (1, 2)
    ]


def test_senders_that_hang_leave_time_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without threads, one after the other delivers: each has its share of the time."""
    deadlines: list[float] = []

    class Hanging:
        def after_fork(self) -> None: ...

        def give_up(self) -> None: ...

        def go_on(self) -> None: ...

        def finish(self, deadline: float) -> None:
            deadlines.append(deadline - time.monotonic())

    monkeypatch.setattr(exits, "_SENDERS", {Hanging(), Hanging()})
    monkeypatch.setattr(exits, "_spent_s", 0.0)
    monkeypatch.setattr(exits, "EXIT_TIMEOUT_S", 1000.0)
    exits.finish_all()
    assert deadlines[0] == pytest.approx(500, abs=10)
    assert deadlines[1] == pytest.approx(1000, abs=10)

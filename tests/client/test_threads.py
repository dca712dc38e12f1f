"""Where there is no thread to deliver, or no descriptor: events arrive all the same, once."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

import pytest
from trace_sidecar_client import Sender, Spans, exits

from tests.support.client import DEADLINE_S, scripted

ROOT = Path(__file__).parents[2]


def event(name: str) -> bytes:
    """An encoded event with this span name."""
    return json.dumps({"event_type": "start", "span": {"name": name}}).encode()


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The sender's thread can't be started, until the patch is undone."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == "trace-sidecar":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return monkeypatch


def test_a_flush_delivers_where_no_thread_can_be_started(no_threads: pytest.MonkeyPatch) -> None:
    """All batches arrive in order, on the thread that flushes; later, a thread takes over."""
    with scripted((503, {}, b""), (413, {}, b"")) as sidecar:
        sender = Sender(sidecar.url)
        for number in range(600):
            sender.send(event(str(number)))
        assert not sidecar.requests
        assert sender.flush(DEADLINE_S)
        assert sidecar.names[512:] == [str(number) for number in range(600)]
        sender._start_at = 0.0
        no_threads.undo()
        sender.send(event("later"))
        assert sender.flush(DEADLINE_S)
        assert sender._thread is not None
        assert (sender.sent, sender.waiting_bytes, sender.dropped) == (601, 0, {})


@pytest.mark.usefixtures("no_threads")
def test_a_flush_without_a_thread_ends_at_its_deadline() -> None:
    """A sidecar that refuses or hangs holds it up no longer; the events are kept."""
    with scripted() as sidecar:
        sidecar.may_respond.clear()
        sender, refused = Sender(sidecar.url), Sender("http://127.0.0.1:1")
        for each in (sender, refused):
            each.send(event("kept"))
            assert not each.flush(0.05)
        sidecar.may_respond.set()
        assert sender.flush(DEADLINE_S)
        assert (sender.sent, refused.waiting_bytes > 0) == (1, True)


@pytest.mark.usefixtures("no_threads")
def test_a_bug_does_not_reach_who_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is dropped, and counted."""
    sender = Sender("http://127.0.0.1:1")
    monkeypatch.setattr(sender._delivery, "_post", lambda *_: 1 / 0)
    sender.send(event("a"))
    assert sender.flush(DEADLINE_S, "accepted")
    assert sender.dropped == {"internal error": 1}


def test_a_sandbox_that_forbids_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sandbox raises, a span does not."""

    class Forbidden(Exception):
        pass

    def forbid(*_: object) -> NoReturn:
        raise Forbidden

    with scripted() as sidecar:
        sender = Sender(sidecar.url)
        monkeypatch.setattr(threading, "Thread", forbid)
        with Spans(sender=sender).span("turn"):
            pass
        monkeypatch.undo()
        assert sender._thread is None
        assert sender.flush(DEADLINE_S)
        assert sidecar.names == ["turn", "turn"]


@pytest.mark.parametrize("forbidden", ["os.register_at_fork", "os.getpid", "os.environ"])
def test_a_sandbox_that_forbids_calls(monkeypatch: pytest.MonkeyPatch, forbidden: str) -> None:
    """Neither a new sender nor an event raises; the event is counted if it will not arrive."""

    class Forbidding:
        def get(self, *_: object, **__: object) -> NoReturn:
            raise RuntimeError(forbidden)

        __call__ = get

    monkeypatch.setattr(exits, "_hooks_forks", False)
    with monkeypatch.context() as patch:
        patch.setattr(forbidden, Forbidding())
        sender = Sender("http://127.0.0.1:1")
        sender.send(event("a"))
        flushed = sender.flush(0.0)
    assert not flushed or sender.dropped == {"not sent: RuntimeError": 1}


def test_closed_descriptors_lose_nothing_and_touch_no_other_file(tmp_path: Path) -> None:
    """Daemons close every descriptor; the number of ours is then that of the file opened next."""
    with scripted() as sidecar:
        sender = Sender(sidecar.url)
        sender.send(event("before"))
        assert sender.flush(DEADLINE_S)
        connection = sender._transport._connection
        assert connection is not None
        assert connection.sock is not None
        descriptor = connection.sock.fileno()
        os.close(descriptor)
        path = tmp_path / "agent.log"
        with path.open("w") as log:
            assert log.fileno() == descriptor
            sender.send(event("after"))
            assert sender.flush(DEADLINE_S)
            log.write("line")
        assert path.read_text() == "line"
        assert (sidecar.names, sender.dropped) == (["before", "after"], {})


def test_a_process_out_of_descriptors_keeps_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """As any refused connection: retried until there are some again."""
    with scripted() as sidecar:
        sender = Sender(sidecar.url)

        def exhausted(*_: object, **__: object) -> NoReturn:
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr("socket.create_connection", exhausted)
            sender.send(event("a"))
            assert not sender.flush(0.05)
        assert sender.flush(DEADLINE_S)
        assert (sidecar.names, sender.dropped) == (["a"], {})


SUBINTERPRETER = """
import os, sys
import _xxsubinterpreters as interpreters
code = '''
import sys
sys.path.insert(0, {path!r})
from trace_sidecar_client import Spans
spans = Spans({url!r})
with spans.span("isolated"):
    pass
spans.flush()
'''
interpreter = interpreters.create()
interpreters.run_string(interpreter, code.format(path=sys.argv[2], url=sys.argv[1]))
interpreters.destroy(interpreter)
print("ended", flush=True)
os._exit(0)  # Python 3.12 may crash later, because the subinterpreter has imported ssl
"""
LATE = """
import sys, threading
from trace_sidecar_client import Spans

def late():
    threading.main_thread().join()
    with Spans(sys.argv[1]).span("late"):
        pass
    print("ended")

threading.Thread(target=late).start()
"""
AT_EXIT = """
import atexit, sys
from trace_sidecar_client import Spans
spans = Spans(sys.argv[1])

def close():
    with spans.span("close"):
        pass
    print("ended")

atexit.register(close)
with spans.span("turn"):
    pass
"""


@pytest.mark.process
@pytest.mark.parametrize("code", [SUBINTERPRETER, LATE, AT_EXIT], ids=["sub", "late", "atexit"])
def test_unusual_ends(code: str) -> None:
    """In a subinterpreter, after the main thread and in a later exit hook, nothing is lost."""
    if sys.version_info >= (3, 13) and code is SUBINTERPRETER:
        pytest.skip("the module of the standard library has another name")
    with scripted() as sidecar:
        agent = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, sidecar.url, str(ROOT / "client")],
            env={"PYTHONPATH": str(ROOT / "client")},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert (agent.returncode, agent.stdout, agent.stderr) == (0, "ended\n", "")
        assert sorted(sidecar.names[-2:]) in (["isolated"] * 2, ["late"] * 2, ["close"] * 2)

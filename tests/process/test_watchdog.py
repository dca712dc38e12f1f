"""The watchdog: which signals stop the process, which do nothing, and what a hang leads to.

The signals of a whole process: tests/e2e/test_signals.py.
"""

import signal
import subprocess
import sys
import textwrap

import pytest

from sidecar.process import signals

# A process may take so long on a busy machine.
DEADLINE_S = 60.0


def run(script: str) -> tuple[int, list[str]]:
    """Run a script whose watchdog is `watchdog`; its exit code and what it prints."""
    prelude = """
        import os, signal, threading
        from sidecar.process import signals
        signals.block()
        import structlog
        structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
        from sidecar.process.watchdog import Watchdog
        watchdog = Watchdog()
        ended = threading.Event()

        def send(*names):
            for name in names:
                os.kill(os.getpid(), getattr(signal, name))

        def end():
            print("overdue", flush=True)
            os._exit(3)
    """
    source = textwrap.dedent(prelude) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
        text=True,
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.mark.process
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_that_came_early(name: str) -> None:
    """It waits until there is something to stop."""
    script = f"""
        send("{name}")
        watchdog.start()
        watchdog.attach(lambda age_s: (print("stop", age_s >= 0), ended.set()), end, (60.0, 0.0))
        ended.wait()
    """
    assert run(script) == (0, ["stop True"])


@pytest.mark.process
def test_a_start_that_hangs() -> None:
    """A second signal ends it at once: nothing was accepted."""
    assert run("""
        watchdog.start()
        send("SIGTERM")
        while signal.SIGTERM in signal.sigpending():  # or the kernel sees one signal
            pass
        send("SIGTERM")
        threading.Event().wait()
    """) == (0, [])


@pytest.mark.process
def test_a_stop_that_hangs() -> None:
    """`overdue` is called when the time is over."""
    assert run("""
        watchdog.start()
        watchdog.attach(lambda _: None, end, (0.05, 0.0))
        send("SIGTERM")
        threading.Event().wait()
    """) == (3, ["overdue"])


@pytest.mark.process
def test_a_stop_without_an_end() -> None:
    """A time that is longer than any thread can wait is no limit."""
    assert run("""
        stopping = threading.Event()
        watchdog.start()
        watchdog.attach(lambda _: stopping.set(), end, (1e300, 0.0))
        send("SIGTERM")
        stopping.wait()
        send("SIGTERM")
        threading.Event().wait()
    """) == (3, ["overdue"])


@pytest.mark.process
def test_a_second_signal() -> None:
    """The time is over at once."""
    assert run("""
        stopping = threading.Event()
        watchdog.start()
        watchdog.attach(lambda _: stopping.set(), end, (3600.0, 0.0))
        send("SIGTERM")
        stopping.wait()
        send("SIGTERM")
        threading.Event().wait()
    """) == (3, ["overdue"])


@pytest.mark.process
def test_a_second_signal_delays_nothing() -> None:
    """The limit of the first one stands, if it is over earlier."""
    assert run("""
        watchdog.start()
        watchdog.attach(lambda _: None, end, (0.05, 3600.0))
        send("SIGTERM")
        while signal.SIGTERM in signal.sigpending():
            pass
        send("SIGTERM")
        threading.Event().wait()
    """) == (3, ["overdue"])


@pytest.mark.process
def test_a_stop_that_raises() -> None:
    """Not even that keeps the next signal, or the end, from having its effect."""
    assert run("""
        calls = []

        def stop(_):
            calls.append(1)
            if len(calls) == 1:
                raise RuntimeError("can't start new thread")
            ended.set()

        watchdog.start()
        watchdog.attach(stop, end, (3600.0, 3600.0))
        send("SIGTERM")
        while not calls:
            pass
        send("SIGTERM")
        ended.wait()
        print("stopped")
    """) == (0, ["stopped"])


@pytest.mark.process
def test_stacks_without_a_disk() -> None:
    """Where each thread is comes from its frames: the source files may hang as well."""
    assert run("""
        import linecache
        from sidecar.process.watchdog import stacks

        def hang(*_):
            threading.Event().wait()

        linecache.checkcache = linecache.getline = linecache.updatecache = hang
        found = stacks()["MainThread"]
        print(found[-1].split()[-1])
    """) == (0, ["<module>"])


@pytest.mark.process
def test_signals_that_do_nothing() -> None:
    """None of the others ends the process, not even a real-time signal."""
    assert run("""
        watchdog.start()
        watchdog.attach(lambda _: ended.set(), end, (3600.0, 0.0))
        left = signals.taken() - signals.STOPS
        assert {signal.SIGUSR1, signal.SIGALRM, signal.SIGPROF, signal.SIGRTMAX} <= left
        for number in left:
            os.kill(os.getpid(), number)
        send("SIGTERM")
        ended.wait()
        print("still there")
    """) == (0, ["still there"])


@pytest.mark.process
def test_nohup() -> None:
    """A SIGHUP that is ignored at the start stays ignored."""
    script = """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        watchdog.start()
        watchdog.attach(lambda _: print("stop"), end, (3600.0, 0.0))
        send("SIGHUP")
        print(signal.SIGHUP in signals.taken())
    """
    assert run(script) == (0, ["False"])


def test_what_is_never_taken() -> None:
    """What can't be blocked, a fault of the program, and job control keep their meaning."""
    assert not signals.taken() & {signal.SIGKILL, signal.SIGSEGV, signal.SIGTSTP, signal.SIGCHLD}
    assert signals.STOPS | {signal.SIGQUIT} <= signals.taken() | {signal.SIGHUP}

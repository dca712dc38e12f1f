"""Interrupts and forks at any moment: no dead thread, no lock held for ever, no deaf child."""

import gc
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest
import trace_sidecar_client
from trace_sidecar_client import Sender

from tests.support.client import DEADLINE_S, scripted
from tests.support.interrupts import interrupted

# An interrupt may keep a flush from closing its socket, which the collector then does.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ROOT = Path(__file__).parents[2]
FOLDER = str(Path(trace_sidecar_client.__file__).parent)


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Collect here, and not in another test, what an interrupt kept from being closed."""
    yield
    gc.collect()


def event(name: str) -> bytes:
    """An encoded event with this span name."""
    return json.dumps({"event_type": "start", "span": {"name": name}}).encode()


@pytest.mark.slow
def test_an_interrupt_anywhere_leaves_the_sender_working() -> None:
    """Wherever Ctrl-C hits the first `send` or a flush, the next events arrive, and once each."""
    with scripted() as sidecar:
        sender = Sender(sidecar.url)

        def use() -> None:
            sender.send(event("first"))
            sender.flush(DEADLINE_S)
            sender.flush(0.0, "accepted")

        def make_call() -> Callable[[], None]:
            nonlocal sender
            sender = Sender(sidecar.url, linger_s=0.0)
            return use

        interrupts = 0
        for number in interrupted(make_call, FOLDER):
            interrupts += 1
            sender.send(event(f"next {number}"))
            assert sender.flush(DEADLINE_S), number
            assert (sender.waiting_bytes, sender.dropped) == (0, {})
        assert interrupts > 60
        names = [name for name in sidecar.names if name.startswith("next")]
        assert sorted(names) == sorted(f"next {number}" for number in range(interrupts))
        assert sidecar.names.count("first") <= interrupts + 1


def test_interrupts_at_random_moments() -> None:
    """300 signals whose handler raises: at the end, all that was queued has arrived, once."""
    chance = random.Random(23)
    sent = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with scripted() as sidecar:
        sender = Sender(sidecar.url, linger_s=0.0)
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            for _ in range(300):
                with suppress(KeyboardInterrupt):
                    # Again, if Python drops one because it strikes while an object is finalized.
                    moment = chance.uniform(0.0001, 0.005)
                    signal.setitimer(signal.ITIMER_REAL, moment, DEADLINE_S / 4)
                    while True:
                        sender.send(event(str(sent)))
                        sent += 1
                        if chance.random() < 0.2:
                            sender.flush(DEADLINE_S, chance.choice(["accepted", "disk"]))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        sender.send(event("last"))
        assert sender.flush(DEADLINE_S)
        assert (sender.waiting_bytes, sender.dropped) == (0, {})
        numbers = [int(name) for name in sidecar.names[:-1]]
        assert numbers == sorted(numbers), "one thread delivers"
        assert set(range(sent)) <= set(numbers)
        assert sidecar.names[-1] == "last"


def test_a_signal_handler_that_traces_while_the_thread_starts() -> None:
    """However many events come from handlers meanwhile, one thread is started."""
    with scripted() as sidecar:
        for number in range(50):
            sender = Sender(sidecar.url, linger_s=0.0)
            seen = []

            def trace(signalnum: int, frame: FrameType | None) -> None:
                sender.send(event("handler"))  # noqa: B023 - used in this round only
                seen.append(sender._thread)  # noqa: B023

            before = signal.signal(signal.SIGALRM, trace)
            try:
                signal.setitimer(signal.ITIMER_REAL, 2e-6 * number + 1e-6, 1e-4)
                sender.send(event("agent"))
                signal.setitimer(signal.ITIMER_REAL, 0)
            finally:
                signal.signal(signal.SIGALRM, before)
            assert len({sender._thread, *seen} - {None}) == 1
            assert sender.flush(DEADLINE_S)
            sent = sidecar.names.count("agent"), sidecar.names.count("handler")
            assert sent == (1, len(seen))
            sidecar.requests.clear()


FORKS = """
import os, random, sys, threading
from trace_sidecar_client import Sender
sender = Sender(sys.argv[1], linger_s=0.0)
chance, stop = random.Random(23), threading.Event()

def load(name):
    while not stop.wait(0.0005):
        sender.send(b'{"span":{"name":"%s"}}' % name)
        sender.flush(5.0, "accepted")

threads = [threading.Thread(target=load, args=[name]) for name in (b"a", b"b")]
for thread in threads:
    thread.start()
deaf = 0
for number in range(int(sys.argv[2])):
    stop.wait(chance.uniform(0, 0.002))
    child = os.fork()
    if child == 0:
        sender.send(b'{"span":{"name":"child"}}')
        os._exit(not (sender.flush(10.0, "accepted") and sender.sent == 1))
    deaf += os.waitpid(child, 0)[1] != 0
stop.set()
for thread in threads:
    thread.join()
print(deaf, sender.flush(10.0), sender.waiting_bytes, sender.dropped)
"""


@pytest.mark.process
@pytest.mark.parametrize("forks", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_child_is_never_deaf(forks: int) -> None:
    """Forked while other threads send and flush, each child delivers its event, once."""
    with scripted() as sidecar:
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS]
        agent = subprocess.run(
            [*command, sidecar.url, str(forks)],
            env={"PYTHONPATH": str(ROOT / "client")},
            capture_output=True,
            text=True,
            timeout=10 * DEADLINE_S,
            check=False,
        )
        assert (agent.stdout, agent.stderr) == ("0 True 0 {}\n", "")
        assert sidecar.names.count("child") == forks

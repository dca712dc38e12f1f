"""Interrupts and forks at random moments while a program traces.

Arguments: `interrupts` or `forks`, how many, and a seed. Prints what is left of each as JSON.
"""

import json
import os
import random
import signal
import sys
import threading
from contextlib import suppress

from trace_sidecar_client import Sender, Spans, current

sender = Sender()
spans = Spans(sender=sender)
# Large enough that an event takes a while, so that many interrupts hit the client.
PROMPT = {"messages": [{"role": "user", "content": "x" * 100}] * 20}
MAX_DELAY_S = 0.003
DEADLINE_S = 20.0
MAX_CHILDREN = 8


def interrupts(count: int, moments: random.Random) -> list[str]:
    """Interrupt nested spans; return what each interrupt left behind."""
    wrong = []
    for number in range(count):
        spans_made = 0
        with suppress(KeyboardInterrupt):
            try:
                # Again, if Python drops one because it strikes while an object is finalized.
                moment = moments.uniform(1e-4, MAX_DELAY_S)
                signal.setitimer(signal.ITIMER_REAL, moment, DEADLINE_S / 4)
                while True:
                    spans_made += 1
                    name = f"{number} {spans_made}"
                    with spans.span(f"turn {name}", input=PROMPT), spans.span(f"step {name}"):
                        pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        left = current()
        if left is not None:
            wrong.append(left.name)
        with spans.span(f"after {number}"):
            pass
    return wrong


def interrupt(number: int, frame: object) -> None:
    """Do as Ctrl-C does."""
    raise KeyboardInterrupt


def forks(count: int, moments: random.Random) -> list[int]:
    """Fork while two threads trace; return how the children ended that could not send a span."""
    stop = threading.Event()

    def work(thread: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with spans.span(f"thread {thread} {number}", input=PROMPT):
                # Paced, for the forks to be what keeps the machine busy.
                stop.wait(moments.uniform(0, MAX_DELAY_S))

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    failed = []
    children = 0
    for number in range(count):
        stop.wait(moments.uniform(0, MAX_DELAY_S / 3))
        child = os.fork()
        if not child:
            sent = False
            try:
                with spans.span(f"child {number}"):
                    pass
                sent = spans.flush(DEADLINE_S, until="accepted")
            finally:
                os._exit(not sent)
        children += 1
        while children == MAX_CHILDREN or (children and number == count - 1):
            _, status = os.wait()
            children -= 1
            if status:
                failed.append(status)
    stop.set()
    for thread in threads:
        thread.join()
    return failed


def main(what: str, count: int, seed: int) -> None:
    """Do it, and report."""
    moments = random.Random(seed)
    signal.signal(signal.SIGALRM, interrupt)
    wrong = interrupts(count, moments) if what == "interrupts" else forks(count, moments)
    flushed = spans.flush(DEADLINE_S, until="accepted")
    report = {"wrong": wrong, "flushed": flushed, "waiting": sender.waiting_bytes}
    sys.stdout.write(json.dumps(report | {"dropped": sender.dropped}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

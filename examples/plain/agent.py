"""An agent that traces itself with the standard library alone.

`python3 agent.py` answers one question; with `--forever`, one a second until SIGTERM or Ctrl-C.
To trace an agent of your own, copy everything above `search`.
"""

import atexit
import http.client
import json
import os
import queue
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

URL = os.environ.get("TRACE_SIDECAR_URL", "http://127.0.0.1:8318") + "/v1/spans"
GIVE_UP_S = 20  # for one request, and at exit for all that is left
# Never through a proxy, whatever HTTP_PROXY says: the sidecar is on this machine.
connect = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
waiting: queue.Queue[str | None] = queue.Queue(maxsize=1000)  # events as JSON; None: the end
current: ContextVar[dict[str, Any] | None] = ContextVar("current span", default=None)


def post(events: list[str]) -> None:
    """Send events; for a while, try again what may pass (no sidecar yet, 408, 429, 503)."""
    body = f"[{','.join(events)}]".encode()
    request = urllib.request.Request(URL, body, {"Content-Type": "application/json"})
    give_up, pause = time.monotonic() + GIVE_UP_S, 0.1
    while True:
        wait = pause
        try:
            with connect(request, timeout=5) as reply:
                for rejected in json.load(reply)["rejected"]:
                    print("event rejected:", rejected["error"], file=sys.stderr)
                return
        except urllib.error.HTTPError as error:
            if error.code not in {408, 429, 503}:
                print("events refused:", error.read().decode(), file=sys.stderr)
                return
            wait = max(pause, int(error.headers.get("Retry-After", 0)))
        except (OSError, http.client.HTTPException):
            pass  # nothing listens yet, or the connection broke; sending twice is harmless
        if time.monotonic() + wait > give_up:
            print(f"{len(events)} events dropped: no sidecar at {URL}", file=sys.stderr)
            return
        time.sleep(wait)
        pause = min(2 * pause, 2)


def deliver() -> None:
    """Post what is waiting, at most 100 events a request. Runs in a thread of its own."""
    while True:
        events = [waiting.get()]
        with suppress(queue.Empty):
            while len(events) < 100:
                events.append(waiting.get_nowait())
        if batch := [event for event in events if event]:
            post(batch)
        if None in events:
            return


def finish() -> None:
    """Wait until everything is delivered, but not for long."""
    with suppress(queue.Full):
        waiting.put(None, timeout=GIVE_UP_S)
    thread.join(GIVE_UP_S)


thread = threading.Thread(target=deliver, daemon=True)
thread.start()
atexit.register(finish)


@contextmanager
def span(name: str, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Trace a block: its START, and however it ends, its END. Set `output` in the block."""

    def send(event_type: str) -> None:
        with suppress(queue.Full):  # the agent never waits: what does not fit is dropped
            waiting.put_nowait(json.dumps({"event_type": event_type, "span": made}, default=repr))

    parent, start = current.get(), datetime.now(UTC)
    made: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "trace_id": parent["trace_id"] if parent else str(uuid.uuid4()),
        "parent_id": parent["id"] if parent else None,
        "name": name,
        "start_time": start.isoformat(),
        "input": asked,
    }
    send("start")
    token = current.set(made)
    try:
        yield made
    except Exception as error:
        kind, message = type(error).__name__, str(error)
        made["data"] = {"__error__": {"type": kind, "message": message, "category": "unknown"}}
        raise
    finally:
        current.reset(token)
        made["end_time"] = max(start, datetime.now(UTC)).isoformat()  # clocks are set back, too
        send("end")


def search(question: str) -> str:
    """A tool that works."""
    with span("search", {"query": question}) as made:
        made["output"] = {"parcels": [{"number": 7, "status": "delivered"}]}
        return "delivered"


def notify(number: int) -> None:
    """A tool that fails: its span ends all the same, with the error."""
    with span("notify", {"parcel": number}):
        raise TimeoutError("the mail server gives no answer")


def answer(question: str) -> str:
    """One turn of the agent: two tools, then the model."""
    with span("turn", {"question": question}) as turn:
        status = search(question)
        with suppress(TimeoutError):
            notify(7)
        prompt = [{"role": "user", "content": f"{question} Its status is: {status}."}]
        with span("model", {"messages": prompt}) as model:
            model["output"] = {"role": "assistant", "content": "It was delivered."}
        turn["output"] = {"answer": model["output"]["content"]}
    return str(turn["output"]["answer"])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that spans end, and `finish` runs
    print(answer("Where is my parcel?"))
    while "--forever" in sys.argv:
        time.sleep(1)
        print(answer("Where is my parcel?"))

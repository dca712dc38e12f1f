"""The agent in the tests' pod: makes spans until SIGTERM, then flushes and ends.

Runs in its own container of the image, with the repository's `tests` mounted. Prints one line of
JSON per ended span, and a last one with the outcomes of its events.
"""

import json
import signal
import sys

from trace_sidecar_client import Spans
from trace_sidecar_client.sender import Sender

from sidecar.demo.bodies import digest_of

PACE_S = 0.01
FLUSH_S = 20.0
PROMPT = "Where is my parcel? " * 150


def main() -> None:
    """Trace until SIGTERM; one span stays open throughout."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    sender = Sender()
    spans = Spans(sender=sender)
    session = {"prompt": "session"}
    number = 0
    with spans.span("session", input=session) as outer:
        outer.output = {"answer": "done"}
        while signal.sigtimedwait({signal.SIGTERM}, PACE_S) is None:
            number += 1
            turn = {"prompt": f"{number} {PROMPT}"}
            with spans.span("turn", input=turn) as inner:
                inner.output = {"answer": str(number)}
            _say(id=inner.id, input=_digest(turn))
    _say(id=outer.id, input=_digest(session))
    # Upstreams may be away: the sidecar delivers after the agent's end.
    flushed = spans.flush(FLUSH_S, until="accepted")
    _say(flushed=flushed, sent=sender.sent, dropped=sender.dropped)


def _digest(payload: dict[str, str]) -> str:
    return digest_of(json.dumps(payload, separators=(",", ":")).encode()).hex()


def _say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Sends ready requests to a forwarder, for loads that no Python agent could produce.

Uses the load driver's engine, with bodies joined from prebuilt bytes. As `driver`, but the `kind`
of its `Plan` is one of `KINDS`:

    pairs    START and END of a span, one POST each
    arrays   START and END of 50 spans in one array of 100 events
    ends     100 ENDs, whole spans, in one array
    single   an OTLP export request with one span
    batches  an OTLP export request with 100 spans
"""

import sys
from collections.abc import Callable, Iterator

import msgspec

from tests.load.driver import Driver
from tests.load.loads import PER_ARRAY, Flow, Plan

from . import otlp
from .payload import NAME, TRACE, encoded, input_of, output_of

_FIRST_ID = 0xA5 << 120
_TIMES = (
    b'","start_time":"2026-01-02T03:04:05.678901+00:00'
    b'","end_time":"2026-01-02T03:04:05.728901+00:00"'
)


class Sender(Driver):
    """A driver that counts every 2xx, because OTLP's responses carry no counts."""

    def taken(self, status: str, body: bytes, now: float) -> None:
        """Count a response."""
        if status.startswith("2"):
            self.result.accepted += 1
            self.result.last_202 = now


def requests(plan: Plan) -> Iterator[Flow]:
    """Yield the requests of `plan`, as flows."""
    make, path, content_type, spans = KINDS[plan.kind]
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
        "Content-Length: %d\r\n\r\n"
    ).encode()
    # Every span has the same text, so that spans differ in their ids only.
    payload = (encoded(input_of(0, plan.size)), encoded(output_of(0, plan.size)))

    def flow(first: int) -> Flow:
        numbers = range(first, min(first + spans, plan.spans))
        return (head % len(body) + body for body in make(numbers, *payload))

    return (flow(first) for first in range(0, plan.spans, spans))


def _pairs(numbers: range, input_: bytes, output: bytes) -> Iterator[bytes]:
    for number in numbers:
        yield _event(number, input_)
        yield _event(number, input_, output)


def _arrays(numbers: range, input_: bytes, output: bytes) -> Iterator[bytes]:
    yield b"[%b]" % b",".join(_pairs(numbers, input_, output))


def _ends(numbers: range, input_: bytes, output: bytes) -> Iterator[bytes]:
    yield b"[%b]" % b",".join(_event(number, input_, output) for number in numbers)


def _event(number: int, input_: bytes, output: bytes = b"") -> bytes:
    return b"".join(
        (
            b'{"event_type":"end","span":{"id":"' if output else _START,
            b"%032x" % (_FIRST_ID + number),
            b'","trace_id":"trace-%d","name":"llm' % (number // TRACE),
            _TIMES if output else _TIMES[: _TIMES.index(b',"end')],
            b',"input":',
            input_,
            b',"output":' if output else b"",
            output,
            b"}}",
        )
    )


_START = b'{"event_type":"start","span":{"id":"'


def _exports(numbers: range, input_: bytes, output: bytes) -> Iterator[bytes]:
    attributes = {"input.value": input_, "output.value": output}
    yield otlp.export_request([otlp.span(number + 1, NAME, attributes) for number in numbers])


Bodies = Callable[[range, bytes, bytes], Iterator[bytes]]
_SPANS, _OTLP = ("/v1/spans", "application/json"), ("/v1/traces", "application/x-protobuf")
KINDS: dict[str, tuple[Bodies, str, str, int]] = {
    "pairs": (_pairs, *_SPANS, 1),
    "arrays": (_arrays, *_SPANS, PER_ARRAY // 2),
    "ends": (_ends, *_SPANS, PER_ARRAY),
    "single": (_exports, *_OTLP, 1),
    "batches": (_exports, *_OTLP, PER_ARRAY),
}


def main() -> None:
    """Run the plan in the first argument."""
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    # The driver's rate counts flows, and ours hold more than one span.
    rate = plan.rate / KINDS[plan.kind][3]
    sender = Sender(msgspec.structs.replace(plan, rate=rate), requests(plan))
    print("connected", flush=True)
    if sys.stdin.readline():
        print(msgspec.json.encode(sender.run()).decode(), flush=True)


if __name__ == "__main__":
    main()

"""The loads: flows of ready HTTP requests, and what must arrive for each.

A flow is a sequence of requests; flows are concurrent. Everything is derived from the `Plan`, so
that the driver (which sends) and the bench (which checks) exchange no single spans. Bodies are
joined from prebuilt bytes, because the driver shares two cores with the sidecar.
"""

from collections.abc import Iterator
from itertools import count

import msgspec

START_TIME = b"2026-01-02T03:04:05.678901+00:00"
END_TIME = b"2026-01-02T03:04:07.912345+00:00"
TURNS = 40
MESSAGE = 2_000
PER_ARRAY = 100
# Ids count up from here, so that they are as long as real ones, without leading zeros.
_FIRST_ID = 0xA5 << 120
_SENTENCE = (
    'Order 48-1137 was "delayed" by the carrier; the customer asks for a refund, '
    "see section 4.2 {refunds, vouchers} and answer in two sentences.\n"
)

Flow = Iterator[bytes]


class Plan(msgspec.Struct, kw_only=True):
    """One load. `rate`: spans/s of an open loop; 0: as fast as responses arrive.

    `size`: bytes of a prompt; of the kind "halves", bytes of a span, half of them output.

    `depth`: requests in flight on a connection. `idle_s`: how long the driver waits for a
    response before it gives up.
    """

    kind: str
    spans: int
    size: int
    connections: int = 8
    depth: int = 1
    rate: float = 0.0
    port: int = 0
    idle_s: float = 60.0

    @property
    def events(self) -> int:
        """The number of events that the driver sends: a START and an END per span."""
        return 2 * self.spans


def flows(plan: Plan) -> Iterator[Flow]:
    """Yield the requests of `plan`, as flows."""
    filler = _text(plan.size)
    match plan.kind:
        case "incident":
            output = b'{"answer":"' + _text(500) + b'"}'
            return (_pairs(range(n, n + 1), filler, output) for n in range(plan.spans))
        case "halves":
            half = _text(plan.size // 2)
            output = b'{"answer":"' + half + b'"}'
            return (_pairs(range(n, n + 1), half, output) for n in range(plan.spans))
        case "chatbot":
            return (_turns(conversation, filler) for conversation in range(plan.spans // TURNS))
        case "single":
            # One flow per connection, so that it can keep several requests in flight.
            numbers = range(plan.spans)
            step = plan.connections
            return (_pairs(numbers[first::step], filler, b"{}") for first in range(step))
        case "arrays":
            return (
                iter((_array(range(first, first + PER_ARRAY // 2), filler),))
                for first in range(0, plan.spans, PER_ARRAY // 2)
            )
    raise ValueError(plan.kind)


def expected(plan: Plan) -> Iterator[tuple[str, bytes]]:
    """Yield the id and the `input` of every span of `plan`."""
    if plan.kind == "chatbot":
        system = _text(plan.size)
        for conversation in range(plan.spans // TURNS):
            history = _history(conversation, system)
            for turn in range(TURNS):
                number = conversation * TURNS + turn
                yield _id(number).decode(), _messages(history, turn)
        return
    filler = _text(plan.size // 2 if plan.kind == "halves" else plan.size)
    for number in range(plan.spans):
        yield _id(number).decode(), _prompt(number, filler)


def _pairs(numbers: range, filler: bytes, output: bytes) -> Flow:
    """START and END of each span in separate POSTs, both with the prompt."""
    for number in numbers:
        input_ = _prompt(number, filler)
        yield _post(_event(number, input_))
        yield _post(_event(number, input_, output))


def _array(numbers: range, filler: bytes) -> bytes:
    events: list[bytes] = []
    for number in numbers:
        input_ = _prompt(number, filler)
        events += (_event(number, input_), _event(number, input_, b"{}"))
    return _post(b"[%b]" % b",".join(events))


def _turns(conversation: int, system: bytes) -> Flow:
    """The turns of one conversation in order; each span carries the whole history."""
    history = _history(conversation, system)
    for turn in range(TURNS):
        number = conversation * TURNS + turn
        input_ = _messages(history, turn)
        yield _post(_event(number, input_))
        yield _post(_event(number, input_, history[2 * turn + 2]))


def _history(conversation: int, system: bytes) -> list[bytes]:
    text = _text(MESSAGE, "Grüße — ")
    history = [b'{"role":"system","content":"%b"}' % system]
    for at in range(2 * TURNS):
        role = b"assistant" if at % 2 else b"user"
        mark = b"%d.%d" % (conversation, at)
        history.append(b'{"role":"%b","content":"%b %b"}' % (role, mark, text))
    return history


def _messages(history: list[bytes], turn: int) -> bytes:
    return b'{"messages":[%b]}' % b",".join(history[: 2 * turn + 2])


def _prompt(number: int, filler: bytes) -> bytes:
    mark = b"%d" % number
    return b"".join((b'{"prompt":"', mark, b" ", filler, b" ", mark, b'"}'))


def _text(size: int, opening: str = "") -> bytes:
    """Return `size` bytes for a JSON string: prose with escapes, like prompts."""
    sentences = (f"{number}. {opening}{_SENTENCE}" for number in count(1))
    parts: list[bytes] = []
    left = size
    while left > 0:
        part = msgspec.json.encode(next(sentences))[1:-1]
        parts.append(part if len(part) <= left else b"x" * left)
        left -= len(parts[-1])
    return b"".join(parts)


def _id(number: int) -> bytes:
    return b"%032x" % (_FIRST_ID + number)


def _event(number: int, input_: bytes, output: bytes = b"") -> bytes:
    """Return a START, or an END if there is an `output`."""
    return b"".join(
        (
            b'{"event_type":"end","span":{"id":"' if output else _START,
            _id(number),
            b'","trace_id":"trace-%d"' % (number // TURNS),
            b',"name":"llm","start_time":"' + START_TIME,
            b'","end_time":"' + END_TIME + b'","output":' if output else b'","output":',
            output or b"null",
            b',"parent_id":null,"task_id":null,"data":{"__span_type__":"COMPLETION"},"input":',
            input_,
            b"}}",
        )
    )


_START = b'{"event_type":"start","span":{"id":"'


def _post(body: bytes) -> bytes:
    head = (
        b"POST /v1/spans HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n"
    )
    return head % len(body) + body

"""One agent with one way of tracing: prints its CPU and how long its loop waited for the tracer.

Runs in the interpreter that has the tracer: `python -m tests.load.traced NAME SHAPE SPANS`. Prints
"ready" after the first spans, waits for a line, and prints its figures as JSON. Standard library
only, except for the tracers.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from tests.load.peers.tracers import TRACERS, AgentexSdk, Span, Tracer

WARM_UP = 30
# Between two spans, so that a tracer's thread runs beside the agent as in life.
PAUSE_S = 0.004
_SENTENCE = 'Order 48-1137 was "delayed" by the carrier in Köln; see section 4.2 {refunds}.\n'

Payload = dict[Any, Any]


def prompt(number: int) -> Payload:
    """One prompt of 50 KB."""
    text = f"{number} " + _SENTENCE * (50_000 // len(_SENTENCE))
    return {"model": "large-1", "messages": [{"role": "user", "content": text}]}


def chat(number: int) -> Payload:
    """88 KB in 300 messages."""
    return {
        "model": "large-1",
        "messages": [
            {
                "role": "user",
                "n": at,
                "content": f"{number} {_SENTENCE * 2}",
                "meta": {"score": at / 8},
            }
            for at in range(300)
        ],
    }


def int_keys(number: int) -> Payload:
    """88 KB in a dict with integers as keys."""
    return {at: {"n": at, "text": f"{number} {_SENTENCE}"} for at in range(750)}


SHAPES: dict[str, Callable[[int], Payload]] = {"prompt": prompt, "chat": chat, "int-keys": int_keys}
OUTPUT = {"role": "assistant", "content": "It was delivered."}


class LangSmith:
    """langsmith's `RunTree`, which sends from a thread of its client."""

    def __init__(self) -> None:
        langsmith = import_module("langsmith")
        self._client = langsmith.Client(api_url=os.environ["SIDECAR"], api_key="bench", info={})
        self._run = langsmith.RunTree

    async def start(self, number: int, input_: Payload) -> Span:
        """Post the run's beginning."""
        run = self._run(name="llm", run_type="llm", inputs=input_, client=self._client)
        run.post()
        return run

    async def end(self, span: Span, output: Payload) -> None:
        """Patch the run with its end."""
        span.end(outputs=output)
        span.patch()

    async def hand_over(self, *, last: bool) -> None:
        """Flush in a thread."""
        await asyncio.to_thread(self._client.flush)

    def dropped(self) -> int:
        """Return 0: it does not say."""
        return 0


class Langfuse:
    """langfuse's client, which exports by OpenTelemetry from a thread of its own."""

    def __init__(self) -> None:
        langfuse = import_module("langfuse").Langfuse
        self._client = langfuse(
            public_key="bench", secret_key="bench", base_url=os.environ["SIDECAR"]
        )

    async def start(self, number: int, input_: Payload) -> Span:
        """Begin an observation."""
        return self._client.start_observation(name="llm", input=input_)

    async def end(self, span: Span, output: Payload) -> None:
        """Set its output, and end it."""
        span.update(output=output)
        span.end()

    async def hand_over(self, *, last: bool) -> None:
        """Flush in a thread."""
        await asyncio.to_thread(self._client.flush)

    def dropped(self) -> int:
        """Return 0: it does not say."""
        return 0


class AloneSdk(AgentexSdk):
    """The Agentex SDK, with a drain that does not end it."""

    async def hand_over(self, *, last: bool) -> None:
        """Wait until its queue is empty; shut it down at the last call."""
        await super().hand_over(last=last)
        while not last and self._queue.get_default_span_queue().depth:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the SDK has no event for it


OTHERS: dict[str, Callable[[], Tracer]] = {
    "agentex-sdk": AloneSdk,
    "langfuse": Langfuse,
    "langsmith": LangSmith,
}


async def make(tracer: Tracer, shape: Callable[[int], Payload], numbers: range) -> list[float]:
    """Make spans one after the other; return the seconds that each took on the loop."""
    clock, blocked = time.perf_counter, []
    for number in numbers:
        input_ = shape(number)
        began = clock()
        span = await tracer.start(number, input_)
        started = clock()
        await asyncio.sleep(PAUSE_S)
        ending = clock()
        await tracer.end(span, OUTPUT)
        blocked.append(clock() - ending + started - began)
        await asyncio.sleep(PAUSE_S)
    return blocked


async def run(name: str, shape: str, spans: int) -> None:
    """Warm up, wait for the start line, make the spans, hand them over, report."""
    tracer = (OTHERS.get(name) or TRACERS[name])()
    payload = SHAPES[shape]
    await make(tracer, payload, range(WARM_UP))
    await tracer.hand_over(last=False)
    print("ready", flush=True)
    sys.stdin.readline()
    used = time.process_time()
    blocked = await make(tracer, payload, range(WARM_UP, WARM_UP + spans))
    await tracer.hand_over(last=True)
    used = time.process_time() - used
    print(json.dumps({"cpu_s": used, "blocked_s": blocked}), flush=True)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))

"""An agent's loop, traced with `trace_sidecar_client`: `python client_agent.py`."""

import asyncio
import signal
import sys

from trace_sidecar_client import Spans

spans = Spans()  # at TRACE_SIDECAR_URL, or http://127.0.0.1:8318


async def search(question: str) -> str:
    """A tool that works. Its span is a child of the span that is open around the call."""
    async with spans.span("search", input={"query": question}) as span:
        span.output = {"parcels": [{"number": 7, "status": "delivered"}]}
        return "delivered"


async def notify(number: int) -> None:
    """A tool that fails: its span ends all the same, with the error in `data`."""
    async with spans.span("notify", input={"parcel": number}):
        raise TimeoutError("the mail server gives no answer")


async def answer(question: str) -> str:
    """One turn of the agent: two tools at once, then the model."""
    async with spans.span("turn", input={"question": question}) as turn:
        status, _ = await asyncio.gather(search(question), notify(7), return_exceptions=True)
        prompt = [{"role": "user", "content": f"{question} Its status is: {status}."}]
        async with spans.span("model", input={"messages": prompt}) as model:
            model.output = {"role": "assistant", "content": "It was delivered."}
        turn.output = {"answer": "It was delivered."}
    return "It was delivered."


async def main() -> None:
    """Answer two questions: two traces."""
    for question in ("Where is my parcel?", "And the other one?"):
        print(await answer(question))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # without it, no span ends on SIGTERM
    asyncio.run(main())
    # At exit the client sends what is left for up to 5 s. A sidecar that starts late needs more.
    spans.flush(20)

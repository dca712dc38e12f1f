"""The demo's sample agent: posts the nested spans of short conversations.

It uses plain HTTP, one request per event, and knows nothing about the sidecar's internals. A post
that fails does not disturb it.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp

from sidecar.demo.bodies import digest_of

QUESTIONS = (
    "Which invoices are overdue?",
    "Who owes the most?",
    "Write a friendly reminder.",
)
SYSTEM_PROMPT = "You are the invoice assistant of a small company. " * 1000  # 50 KB
THINKING_S = 0.05


class SampleAgent:
    """Posts the spans of conversations to the listener at `url`.

    `finished` counts spans whose END was accepted, `accepted` events. `unchecked` has the finished
    spans that the demo has not taken yet: their ids, with the digests of their inputs. `latest` is
    the id of the last one.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = f"{url}/v1/spans"
        self.finished = self.accepted = self.refused = 0
        self.unchecked: dict[str, str] = {}
        self.latest = ""

    async def converse(self) -> None:
        """Hold one conversation: one turn per question, each with a retrieval and a completion."""
        trace_id = str(uuid.uuid4())
        messages: list[dict[str, str]] = [{"role": "system", "content": SYSTEM_PROMPT}]
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            inputs = {"question": question}
            kind = {"__span_type__": "AGENT_WORKFLOW"}
            async with self._span(trace_id, "turn", None, inputs, kind) as turn:
                async with self._span(trace_id, "retrieve", turn["id"], inputs, None) as retrieval:
                    await asyncio.sleep(THINKING_S)
                    retrieval["output"] = {"documents": ["invoice-17", "invoice-23"]}
                prompt = {"messages": list(messages)}
                async with self._span(trace_id, "llm", turn["id"], prompt, None) as completion:
                    await asyncio.sleep(THINKING_S)
                    completion["output"] = {
                        "text": "Two of them.",
                        "usage": {"total_tokens": 9000},
                    }
                turn["output"] = completion["output"]
            messages.append({"role": "assistant", "content": "Two of them."})

    @asynccontextmanager
    async def _span(
        self,
        trace_id: str,
        name: str,
        parent_id: str | None,
        input_: dict[str, Any],
        data: dict[str, Any] | None,
    ) -> AsyncIterator[dict[str, Any]]:
        span: dict[str, Any] = {
            "id": str(uuid.uuid4()),
            "trace_id": trace_id,
            "name": name,
            "parent_id": parent_id,
            "start_time": datetime.now(UTC).isoformat(),
            "input": input_,
            "data": data,
        }
        await self._post("start", span)
        yield span
        span["end_time"] = datetime.now(UTC).isoformat()
        if await self._post("end", span):
            self.finished += 1
            self.latest = span["id"]
            # The sidecar leaves the bytes of an input as they are.
            self.unchecked[span["id"]] = digest_of(json.dumps(input_).encode()).hex()

    async def _post(self, event_type: str, span: dict[str, Any]) -> bool:
        """Whether the event was accepted."""
        body = {"event_type": event_type, "span": span}
        try:
            async with self._session.post(self._url, json=body) as response:
                accepted = response.status == 202  # noqa: PLR2004
        except aiohttp.ClientError:
            accepted = False
        self.accepted += accepted
        self.refused += not accepted
        return accepted

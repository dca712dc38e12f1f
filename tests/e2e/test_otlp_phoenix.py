"""A reader of traces that nobody here wrote, Arize Phoenix: it sees one tree, in its own fields."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e import parts
from tests.e2e.otlp_support import IDENTITY, otlp_sidecar, post
from tests.support.run_process import free_ports
from tests.support.spans import make_event

Json = dict[str, Any]

TRACE = "97008c14-e5e1-4a5f-8e1a-6c650a876779"
DEADLINE_S = 180.0
POLL_S = 0.2
QUERY = """{projects {edges {node {spans(first: 100) {edges {node {
    name spanKind statusCode statusMessage parentId spanId trace {traceId}
    input {value mimeType} output {value mimeType}
    tokenCountPrompt tokenCountCompletion tokenCountTotal attributes
}}}}}}}"""


@asynccontextmanager
async def phoenix(folder: Path) -> AsyncIterator[str]:
    """A running Phoenix; yields its URL."""
    program = parts.venv("phoenix", "arize-phoenix").with_name("phoenix")
    port, grpc_port = free_ports()
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc_port),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    with (folder / "phoenix.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program, "serve", env=environ, stdout=log, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as session:
            while not await _is_up(session, url):
                assert process.returncode is None, (folder / "phoenix.log").read_text()[-4000:]
                await asyncio.sleep(POLL_S)
        yield url
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _is_up(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/healthz") as reply:
            return reply.status == 200
    except aiohttp.ClientError:
        return False


async def _read(url: str, n: int) -> dict[str, Json]:
    """Return Phoenix's spans by their names, once it has `n`."""
    async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as session:
        while True:
            async with session.post(f"{url}/graphql", json={"query": QUERY}) as reply:
                answer = await reply.json()
            assert "errors" not in answer, answer
            found = [
                span["node"]
                for project in answer["data"]["projects"]["edges"]
                for span in project["node"]["spans"]["edges"]
            ]
            if len(found) >= n:
                return {span["name"]: span for span in found}
            await asyncio.sleep(POLL_S)


def span(name: str, parent: str | None, **fields: object) -> Json:
    event = make_event(f"id of {name}", kind="end", trace_id=TRACE, name=name, **fields)
    made: Json = event["span"]
    return made | {"parent_id": parent and f"id of {parent}"}


@pytest.mark.nightly
async def test_a_trace_is_one_tree_with_its_fields(tmp_path: Path) -> None:
    """Input, output, model, tokens, kinds and the error stand in Phoenix's own fields."""
    usage = {"input_tokens": 120, "output_tokens": 30, "total_tokens": 150}
    sent = [
        span("turn", None, input={"q": "hi"}, output={"a": "yo"},
             data={"__span_type__": "AGENT_WORKFLOW"}),
        span("search", "turn", input={"q": 1}, output=[{"text": "here"}],
             data={"__span_type__": "KB_RETRIEVAL"}),
        span("answer", "turn", input={"messages": [{"role": "user", "content": "Köln?"}]},
             output={"text": "Ja"},
             data={"__span_type__": "COMPLETION", "model": "large-1", "usage": usage}),
        span("tool", "answer", data={"__span_type__": "EXTERNAL_ENDPOINT",
                                     "__error__": {"type": "ValueError", "message": "boom"}}),
    ]  # fmt: skip
    async with phoenix(tmp_path) as url, otlp_sidecar(tmp_path, url, **IDENTITY) as life:
        await post(life, sent)
        found = await _read(url, len(sent))
    assert {one["trace"]["traceId"] for one in found.values()} == {TRACE.replace("-", "")}
    ids = {one["spanId"]: name for name, one in found.items()}
    parents = {name: one["parentId"] and ids[one["parentId"]] for name, one in found.items()}
    assert parents == {"turn": None, "search": "turn", "answer": "turn", "tool": "answer"}
    kinds = {name: one["spanKind"] for name, one in found.items()}
    assert kinds == {"turn": "agent", "search": "retriever", "answer": "llm", "tool": "tool"}
    answer = found["answer"]
    assert json.loads(answer["input"]["value"]) == sent[2]["input"]
    assert json.loads(answer["output"]["value"]) == sent[2]["output"]
    assert (answer["input"]["mimeType"], answer["output"]["mimeType"]) == ("json", "json")
    counts = [answer[f"tokenCount{which}"] for which in ("Prompt", "Completion", "Total")]
    assert counts == [120, 30, 150]
    assert json.loads(answer["attributes"])["llm"]["model_name"] == "large-1"
    assert (found["tool"]["statusCode"], found["tool"]["statusMessage"]) == ("ERROR", "boom")

"""A real OpenTelemetry Collector that fails, or is made to: nothing is lost but what it refuses."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tests.e2e.collector_support import Collector, attributes, collector
from tests.e2e.otlp_front import Front, Reply, Request, front, rejecting
from tests.e2e.otlp_support import (
    DEADLINE_S,
    Json,
    lane,
    otlp_rig,
    otlp_sidecar,
    post,
    stopped,
)
from tests.support.kill import POLL_S, SidecarRun
from tests.support.spans import make_event

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
LIMIT = 200_000


@dataclass
class Setup:
    """A sidecar, what stands before the Collector, and the Collector."""

    life: SidecarRun
    front: Front
    collector: Collector
    folder: Path

    async def post(self, ids: list[str], size: int = 100) -> None:
        await post(self.life, spans(ids, size))

    def letters(self) -> list[Json]:
        path = self.folder / "letters.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


def spans(ids: list[str], size: int = 100) -> list[Json]:
    """Finished spans with an output of this size."""
    output = {"text": "x" * size}
    made = [make_event(id_, kind="end", trace_id=TRACE, output=output) for id_ in ids]
    return [each["span"] for each in made]


def numbered(name: str, n: int) -> list[str]:
    return [f"{name}-{number}" for number in range(n)]


def ids_of(upstream: Collector) -> Counter[str]:
    """How often the Collector has each span, by the id that the agent gave it."""
    return Counter(attributes(span)["agentex.span_id"]["stringValue"] for span in upstream.spans())


async def arrived(upstream: Collector, ids: list[str]) -> Counter[str]:
    """Wait until the Collector has each of these spans; returns what it has."""
    async with asyncio.timeout(DEADLINE_S):
        while set(ids) - set(found := ids_of(upstream)):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(POLL_S)
    return found


async def state(life: SidecarRun, wanted: str) -> None:
    """Wait until the log says that the upstream's state is this."""
    async with asyncio.timeout(DEADLINE_S):
        while wanted not in {line["event"] for line in life.log}:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)


@asynccontextmanager
async def setup(folder: Path, **settings: str) -> AsyncIterator[Setup]:
    """All three; at the end the sidecar must stop with nothing lost."""
    async with (
        collector(folder) as upstream,
        front(upstream.url) as before,
        otlp_sidecar(folder, before.url, **settings) as life,
    ):
        yield Setup(life, before, upstream, folder)


async def test_killed_and_started_again(tmp_path: Path) -> None:
    """What is posted while the Collector is dead arrives once it runs again."""
    ids = [numbered(name, 50) for name in ("before", "while", "after")]
    async with collector(tmp_path) as upstream, otlp_sidecar(tmp_path, upstream.url) as life:
        await post(life, spans(ids[0]))
        await arrived(upstream, ids[0])
        await upstream.kill()
        await post(life, spans(ids[1]))
        await state(life, "upstream_down")
        await upstream.start()
        await post(life, spans(ids[2]))
        found = await arrived(upstream, [*chain(*ids)])
        counts = await lane(life)
    assert set(found) == {*chain(*ids)}
    assert (counts["forwarded"], counts["dead_lettered"], counts["imbalance"]) == (150, 0, 0)


async def test_slow_answers(tmp_path: Path) -> None:
    """A Collector that takes a batch and answers too late has its spans twice, with equal ids."""
    ids = numbered("slow", 100)
    async with setup(tmp_path, SIDECAR_OTLP__TIMEOUT_S="0.5", SIDECAR_OTLP__MAX_BATCH="20") as here:
        here.front.silent = 2
        await here.post(ids)
        await arrived(here.collector, ids)
        counts = await lane(here.life)
    found = ids_of(here.collector)
    assert (set(found), max(found.values())) == ({*ids}, 2)
    assert (counts["forwarded"], counts["dead_lettered"]) == (100, 0)
    identities = {(span["traceId"], span["spanId"]) for span in here.collector.spans()}
    assert len(identities) == 100


async def test_one_bad_span(tmp_path: Path) -> None:
    """Of 200 spans of which one is refused, only that one becomes a dead letter."""
    ids = numbered("span", 200)
    async with setup(tmp_path) as here:
        here.front.rule = lambda request: Reply(400) if "span-77" in request.ids else None
        await here.post(ids)
        found = await arrived(here.collector, [id_ for id_ in ids if id_ != "span-77"])
        counts = await lane(here.life)
    assert "span-77" not in found
    assert (counts["forwarded"], counts["dead_lettered_by_reason"]["refused"]) == (199, 1)
    assert [each["event"]["span"]["id"] for each in here.letters()] == ["span-77"]


async def test_a_limit_of_size(tmp_path: Path) -> None:
    """Behind a gateway that answers 413 above 200 KB, all of 1 MB arrives."""
    ids = numbered("span", 100)
    async with setup(tmp_path) as here:
        here.front.rule = lambda request: Reply(413) if request.size > LIMIT else None
        await here.post(ids, size=10_000)
        await arrived(here.collector, ids)
        counts = await lane(here.life)
    assert max(request.size for request in here.front.requests) > LIMIT
    assert (counts["forwarded"], counts["dead_lettered"]) == (100, 0)


async def test_unavailable(tmp_path: Path) -> None:
    """Answers of 429, 502, 503 and 504 lose nothing, with Retry-After or without."""
    ids = numbered("span", 100)
    answers = [Reply(status) for status in (503, 502, 504, 503, 500)]
    answers += [Reply(status, headers={"Retry-After": "1"}) for status in (429, 503)]
    async with setup(tmp_path) as here:
        here.front.rule = lambda _: answers.pop() if answers else None
        await here.post(ids)
        found = await arrived(here.collector, ids)
        counts = await lane(here.life)
    assert not answers
    assert max(found.values()) == 1
    assert (counts["forwarded"], counts["dead_lettered"]) == (100, 0)


async def test_partial_success(tmp_path: Path) -> None:
    """What a success says it did not keep is counted as lost, and told; the books balance."""
    ids = numbered("span", 100)
    partial = [Reply(200, rejecting(3), forwarded=True)]
    async with collector(tmp_path) as upstream, front(upstream.url) as before:
        before.rule = lambda _: partial.pop() if partial else None
        rig = otlp_rig(tmp_path, before.url)
        try:
            life = await rig.start()
            await post(life, spans(ids))
            await arrived(upstream, ids)
            counts = await lane(life)
            life.process.terminate()
            assert await life.ended() == 1  # something was lost
        finally:
            await rig.kill_all()
    assert (counts["forwarded"], counts["lost_by_reason"]["partial_success"]) == (97, 3)
    assert counts["imbalance"] == 0
    (line,) = [line for line in life.log if line["event"] == "writes_not_kept"]
    assert (line["level"], line["count"]) == ("warning", 3)


async def test_gzip(tmp_path: Path) -> None:
    """The Collector reads compressed requests, which are a fraction of their size."""
    ids = numbered("span", 50)
    async with setup(tmp_path, SIDECAR_OTLP__COMPRESSION="gzip") as here:
        await here.post(ids, size=10_000)
        await arrived(here.collector, ids)
    with_spans = [request for request in here.front.requests if request.ids]
    assert {request.headers["content-encoding"] for request in with_spans} == {"gzip"}
    assert sum(request.size for request in with_spans) < 50 * 10_000 / 10


async def test_headers(tmp_path: Path) -> None:
    """Configured headers are sent; their values are percent-decoded."""
    ids = numbered("span", 5)
    async with setup(
        tmp_path, SIDECAR_OTLP__HEADERS="x-team=a%2Cb,Authorization=Basic%20c2Vj"
    ) as here:
        await here.post(ids)
        await arrived(here.collector, ids)
    for request in here.front.requests:
        assert request.headers["x-team"] == "a,b"
        assert request.headers["authorization"] == "Basic c2Vj"
    assert "c2Vj" not in json.dumps(here.life.log)


async def test_a_file_of_headers_that_changes(tmp_path: Path) -> None:
    """A refused token holds the lane; a new one in the file delivers what waits."""
    ids = numbered("span", 20)
    path = tmp_path / "headers"
    path.write_text("# the gateway's\nAuthorization: Bearer old\n", encoding="utf-8")

    def authorized(request: Request) -> Reply | None:
        return None if request.headers.get("authorization") == "Bearer new" else Reply(401)

    async with setup(tmp_path, SIDECAR_OTLP__HEADERS_FILE=str(path)) as here:
        here.front.rule = authorized
        await here.post(ids)
        await state(here.life, "upstream_unauthorized")
        assert not ids_of(here.collector)
        new = tmp_path / "new"
        new.write_text("Authorization: Bearer new\n", encoding="utf-8")
        new.replace(path)
        found = await arrived(here.collector, ids)
        counts = await lane(here.life)
    assert max(found.values()) == 1
    assert (counts["forwarded"], counts["dead_lettered"]) == (20, 0)
    assert "Bearer" not in json.dumps(here.life.log)


async def test_sigterm_in_an_outage(tmp_path: Path) -> None:
    """What waits on disk at SIGTERM is delivered by the next sidecar, once."""
    ids = numbered("span", 100)
    upstream = Collector(tmp_path)
    rig = otlp_rig(tmp_path, upstream.url, SIDECAR_SHUTDOWN__GRACE_S="0.5")
    try:
        life = await rig.start()
        await post(life, spans(ids))
        assert (await stopped(life))["writes"]["otlp"]["depth"] == 100
        await upstream.start()
        life = await rig.start()
        found = await arrived(upstream, ids)
        await lane(life)
        await stopped(life)
    finally:
        await rig.kill_all()
        await upstream.kill()
    assert found == Counter(ids)

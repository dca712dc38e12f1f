"""Agents that send events out of order, repeatedly or incompletely: each has a defined result."""

import asyncio
import json

import pytest

from tests.support.faults import end, fast, for_a_while, span, start, world


@fast
async def test_end_before_start() -> None:
    """A START that arrives after its END is never written."""
    async with world() as w:
        for number in range(30):
            await w.post(end(span(f"s{number}")))
            await asyncio.sleep(number / 10)
            await w.post(start(span(f"s{number}")))
        await asyncio.sleep(10)
        await w.finish()
        assert set(w.agentex.writes.values()) == set(w.sgp.writes.values()) == {1}


@pytest.mark.parametrize("apart", [0.0, 1.0, 5.0])
@fast
async def test_repeated_start(apart: float) -> None:
    """Two STARTs are one span; the second is filled from the first."""
    async with world() as w:
        whole = span("s")
        await w.post(start(whole))
        await asyncio.sleep(apart)
        await w.post(start(whole | {"data": None}))
        await asyncio.sleep(apart)
        await w.post(end(whole | {"input": None, "data": None}))
        w.accepted["s"] = whole
        await w.finish()


@pytest.mark.parametrize("apart", [0.0, 5.0])
@fast
async def test_one_id_in_two_traces(apart: float) -> None:
    """SGP keeps the span of each trace; Agentex, whose ids are global, the first one, unharmed."""
    async with world() as w:
        one, two = (span("s", trace_id=trace, input={"of": trace}) for trace in ("one", "two"))
        await w.post(start(one))
        await asyncio.sleep(apart)
        await w.post(start(two), end(one))
        await asyncio.sleep(apart)
        await w.post(end(two))
        await w.drained()
        assert set(w.dead()) == {("agentex", "s")}
        assert w.lane("agentex")["dead_lettered_by_reason"]["id_taken"] == (2 if apart else 1)
        row = w.agentex.spans["s"]
        assert (row["trace_id"], row["input"]) == ("one", {"of": "one"})
        assert row["output"] is not None
        assert set(w.sgp.spans) == {("one", "s"), ("two", "s")}
        for (trace, _), row in w.sgp.spans.items():
            assert row["input"] == {"of": trace}
            assert "end_timestamp" in row


@fast
async def test_one_id_in_three_traces_during_an_outage() -> None:
    """A span does not supersede a span of another trace with the same id."""
    async with world() as w:
        for upstream in w.upstreams:
            upstream.rule = for_a_while(30, 503)
        await w.post(*[end(span("s", trace_id=f"trace{number}")) for number in range(3)])
        await w.drained()
        assert w.lane("agentex")["dead_lettered_by_reason"]["id_taken"] == 2
        assert {trace for trace, _ in w.sgp.spans} == {"trace0", "trace1", "trace2"}


@pytest.mark.parametrize(
    "id_", ["a/b", "/", ".", "..", "a/../b", "%2F", "a b?c#d", "\u2713", "..."]
)
@fast
async def test_ids_that_are_special_in_urls(id_: str) -> None:
    """Such a span arrives complete; if no PATCH can address it, it is not written open."""
    async with world() as w:
        await w.post(start(span(id_)))
        await asyncio.sleep(5)
        await w.post(end(span(id_)))
        await w.finish()
        unaddressable = "/" in id_ or id_ in {".", ".."}
        assert w.agentex.history[id_] == ["complete"] if unaddressable else ["open", "complete"]


@pytest.mark.parametrize("waits", [1, 60, 3000])
@fast
async def test_thin_end(waits: float) -> None:
    """An END without input and data is filled from its START, even one written long ago."""
    async with world() as w:
        await w.post(start(span("s", parent_id="p")))
        await asyncio.sleep(waits)
        await w.post(end(span("s", input=None, data=None, parent_id=None)))
        w.accepted["s"] = span("s", parent_id="p")
        await w.finish()
        assert w.sgp.history["s"] == ["complete"] if waits < 2 else ["open", "complete"]
        assert w.sgp.spans["trace", "s"]["parent_id"] == "p"


@pytest.mark.parametrize("waits", [0, 5])
@fast
async def test_an_end_changes_the_input(waits: float) -> None:
    """The END's values win over the START's."""
    async with world() as w:
        await w.post(start(span("s", input={"prompt": "first"}, name="before")))
        await asyncio.sleep(waits)
        await w.post(end(span("s", input={"prompt": "second"}, name="after")))
        await w.finish()


@fast
async def test_every_long_span_is_written_open() -> None:
    """A START is written open after `start_hold_s`, whatever came before it."""
    async with world() as w:
        for number in range(5):
            await w.post(start(span(f"s{number}")))
            await asyncio.sleep(30)
            assert w.sgp.history[f"s{number}"] == w.agentex.history[f"s{number}"] == ["open"]
            if number % 2:
                await w.post(end(span(f"s{number}")))
        await w.finish()


@fast
async def test_spans_that_never_end() -> None:
    """Unended STARTs leave memory after `open_span_ttl_s`; their spans stay open upstream."""
    async with world(queue__open_span_ttl_s="600") as w:
        await w.post(*[start(span(f"s{number}")) for number in range(100)])
        await asyncio.sleep(300)
        assert len(w.app.admission.open_spans) == 100
        await asyncio.sleep(400)
        assert len(w.app.admission.open_spans) == w.app.budget.used == 0
        await w.finish()


@fast
async def test_a_full_queue() -> None:
    """A full queue answers 429 for the whole request; accepted events are delivered later."""
    async with world(queue__max_bytes="64KiB") as w:
        for upstream in w.upstreams:
            upstream.rule = for_a_while(120, 503)
        refused = 0
        for number in range(40):
            two = [end(span(f"{number}{letter}", input={"x": "y" * 1000})) for letter in "ab"]
            reply = await w.send(json.dumps(two).encode())
            if reply.status == 202:
                w.accepted |= {event["span"]["id"]: event["span"] for event in two}
                continue
            assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
            refused += 1
        assert refused
        assert w.app.budget.used <= w.app.budget.limit
        await w.finish()
        assert set(w.agentex.spans) == set(w.accepted)
        await w.post(end(span("after")))
        await w.finish()

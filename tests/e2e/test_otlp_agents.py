"""Agents with the real SDKs, whose spans go to a real Collector as well."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.collector_support import attributes, collector
from tests.e2e.sdk_support import Row, pod

Tree = dict[str, tuple[str, str | None]]


@pytest.mark.parametrize("processors", ["sgp,agentex", "sidecar"])
async def test_each_span_arrives_once_and_in_its_tree(tmp_path: Path, processors: str) -> None:
    """Of an unchanged agent, and of one with our processor, the Collector has each span once.

    An unchanged agent sends each span to both routes of the SDKs; with START writes, twice.
    """
    starts = {
        "AGENTEX_TRACING_SKIP_SPAN_START": "0",
        "AGENTEX_TRACING_SKIP_AGENTEX_SPAN_START": "0",
    }
    async with (
        collector(tmp_path) as upstream,
        pod(tmp_path / "pod", sidecar=True, SIDECAR_OTLP__ENDPOINT=upstream.url) as here,
    ):
        made = await here.run("async_agent", processors, "everything", **starts)
        arrived = here.arrived()
        spans = list(upstream.spans())
    assert len(made) == len(spans) == len(arrived.sgp) == len(arrived.agentex) > 200
    names = {span["spanId"]: span["name"] for span in spans}
    assert len(names) == len(spans)
    tree = {
        attributes(span)["agentex.span_id"]["stringValue"]: (
            span["name"],
            names[span["parentSpanId"]] if "parentSpanId" in span else None,
        )
        for span in spans
    }
    assert tree == _tree(arrived.agentex)


def _tree(rows: Mapping[str, Row]) -> Tree:
    """Return the name of each span and that of its parent, by its id."""
    return {
        id_: (row["name"], rows[row["parent_id"]]["name"] if row["parent_id"] else None)
        for id_, row in rows.items()
    }

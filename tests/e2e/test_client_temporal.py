"""The client in Temporal's sandbox, which imports a workflow's modules again for each workflow.

Histories are replayed, because that needs no server: the workflow's code runs in the same sandbox.
"""

import json
from pathlib import Path

import pytest

from tests.e2e.client_support import AGENTS, Wire, frameworks_python, started
from tests.e2e.sdk_support import Pod
from tests.support.docs import ROOT, blocks, section

pytestmark = pytest.mark.asyncio(loop_scope="module")

REPLAYS = 5
RECIPE = "".join(blocks(section(ROOT / "docs/client.md", "Temporal")))
WITHOUT_PASSING_THROUGH = """
from temporalio import workflow
from trace_sidecar_client import Spans

spans = Spans()
"""
AGENT = """
from temporalio import activity


@activity.defn
def work(name: str) -> None:
    with spans.span(name), spans.span(f"{name}'s step"):
        activity.heartbeat()


@workflow.defn
class Work:
    @workflow.run
    async def run(self) -> str:
        with spans.span(f"{workflow.info().workflow_id} in its module") as span:
            span.output = {"a": 1}
        with Spans().span(f"{workflow.info().workflow_id} in its code"):
            return "done"
"""


async def replayed(folder: Path, agent: str, wire: Wire, *, loses: bool) -> list[int]:
    """Replay the workflow of an agent; return how many hooks each replay but the first left."""
    (folder / "agent.py").write_text(agent, encoding="utf-8")
    path = {"PYTHONPATH": f"{folder}:{ROOT / 'client'}"}
    program = (frameworks_python(), AGENTS / "replays.py", str(REPLAYS))
    async with started(wire, *program, environ=path) as process:
        *_, last = await process.ended(loses=loses)
    left: list[int] = json.loads(last)
    return left


async def test_passed_through(shared_pod: Pod, tmp_path: Path) -> None:
    """With the lines of docs/client.md, activities trace, and so does workflow code."""
    async with Wire(shared_pod).running() as wire:
        left = await replayed(tmp_path, RECIPE + AGENT, wire, loses=False)
        assert left == [0] * (REPLAYS - 1)
        expected: dict[str, str | None] = {"activity": None, "activity's step": "activity"}
        for number in range(REPLAYS):
            names = (f"workflow-{number} in its module", f"workflow-{number} in its code")
            expected |= dict.fromkeys(names)
        assert wire.tree() == expected
        await wire.delivered()


async def test_imported_by_the_sandbox(shared_pod: Pod, tmp_path: Path) -> None:
    """Without them, workflow code still runs: it sends nothing, says so, and leaves no hooks."""
    async with Wire(shared_pod).running() as wire:
        left = await replayed(tmp_path, WITHOUT_PASSING_THROUGH + AGENT, wire, loses=True)
        assert left == [0] * (REPLAYS - 1)
        assert wire.tree() == {"activity": None, "activity's step": "activity"}
        await wire.delivered()

"""The client in Celery's prefork pool, whose processes end without Python's exit."""

import signal
from pathlib import Path

import pytest

from tests.e2e.client_support import Wire, frameworks_python, started
from tests.e2e.sdk_support import Pod, until
from tests.support.docs import ROOT, blocks, section

pytestmark = pytest.mark.asyncio(loop_scope="module")

TASKS = 60
# A broker in files, because tasks come from another process than those that do them.
APP = """
import sys
from pathlib import Path

from celery import Celery
from trace_sidecar_client import current

HERE = Path(__file__).parent
folders = {"data_folder_in": "tasks", "data_folder_out": "tasks", "control_folder": "control"}
options = {name: str(HERE / folder) for name, folder in folders.items()}
options["polling_interval"] = 0.05
app = Celery(broker_url="filesystem://", broker_transport_options=options)


@app.task(name="work")
def work(number, trace_id, parent_id):
    assert current() is None
    with spans.span(f"task {number}", trace_id=trace_id, parent_id=parent_id):
        with spans.span(f"step {number}"):
            pass
    (HERE / "done" / str(number)).touch()


if __name__ == "__main__":
    with spans.span("caller") as caller:
        for number in range(int(sys.argv[1])):
            work.delay(number, caller.trace_id, caller.id)
"""
WORKER = ("-m", "celery", "--app", "agent", "worker", "--pool", "prefork", "--concurrency", "2")
OPTIONS = ("--max-tasks-per-child", "7", "--loglevel", "info", "--without-mingle")


async def test_prefork_with_max_tasks_per_child(shared_pod: Pod, tmp_path: Path) -> None:
    """With the line of docs/client.md, each process sends its spans as it ends, below their caller.

    The processes end after their seventh task, and when the worker is told to stop.
    """
    for name in ("tasks", "control", "done"):
        (tmp_path / name).mkdir()
    (recipe,) = blocks(section(ROOT / "docs/client.md", "Celery"))
    (tmp_path / "agent.py").write_text(recipe + APP, encoding="utf-8")
    python = frameworks_python()
    async with Wire(shared_pod).running() as wire:
        async with started(wire, python, "agent.py", str(TASKS), folder=tmp_path) as caller:
            await caller.ended()
        path = {"PYTHONPATH": f"{tmp_path}:{ROOT / 'client'}"}
        worker = (python, *WORKER, *OPTIONS)
        async with started(wire, *worker, folder=tmp_path, environ=path) as program:
            await until(lambda: len(list((tmp_path / "done").iterdir())) == TASKS)
            program.signal(signal.SIGTERM)
            await program.ended()
        expected: dict[str, str | None] = {"caller": None}
        for number in range(TASKS):
            expected |= {f"task {number}": "caller", f"step {number}": f"task {number}"}
        assert wire.tree() == expected
        await wire.delivered()

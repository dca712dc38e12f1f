"""Children of `multiprocessing`, by every start method: each span arrives exactly once."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.client import DEADLINE_S, scripted

ROOT = Path(__file__).parents[2]
AGENT = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from trace_sidecar_client import Spans

spans = Spans(sys.argv[1])

def work(number):
    with spans.span(f"child {number}"):
        pass
    return number

def process(context):
    children = [context.Process(target=work, args=[number]) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()

def pool(context):
    with context.Pool(2) as pool:
        pool.map(work, range(4), chunksize=1)
        pool.close()
        pool.join()

def executor(context):
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        list(executor.map(work, range(4)))

if __name__ == "__main__":
    with spans.span("parent"):
        globals()[sys.argv[3]](multiprocessing.get_context(sys.argv[2]))
"""


@pytest.mark.process
@pytest.mark.parametrize("way", ["process", "pool", "executor"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_flush_when_they_end(tmp_path: Path, method: str, way: str) -> None:
    """START and END of parent and children arrive once; nothing is said, every exit is clean."""
    script = tmp_path / "agent.py"
    script.write_text(AGENT)
    with scripted() as sidecar:
        command = [sys.executable, "-W", "ignore::DeprecationWarning", str(script)]
        agent = subprocess.run(
            [*command, sidecar.url, method, way],
            env={"PYTHONPATH": str(ROOT / "client")},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert (agent.returncode, agent.stderr) == (0, "")
        expected = ["child 0", "child 1", "child 2", "child 3", "parent"]
        assert sorted(sidecar.names) == sorted(expected * 2)

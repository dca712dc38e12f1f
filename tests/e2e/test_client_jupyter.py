"""The client in a Jupyter kernel whose cells are interrupted.

There is no sidecar: how many spans a cell makes depends on the machine, and may be thousands.
"""

import json
import random
from pathlib import Path

from tests.e2e.client_support import AGENTS, Wire, frameworks_python, started
from tests.support.docs import ROOT, blocks, section

INTERRUPTS = 20


async def test_interrupted_cells(tmp_path: Path) -> None:
    """No interrupt leaves a span open or current: cells after it nest right, and lose nothing."""
    seed = random.randrange(1000)
    print("seed", seed)  # noqa: T201 - pytest shows it if the test fails
    (cell,) = blocks(section(ROOT / "docs/client.md", "Jupyter"))
    homes = {f"JUPYTER_{name}_DIR": str(tmp_path) for name in ("RUNTIME", "CONFIG", "DATA")}
    homes |= {"IPYTHONDIR": str(tmp_path)}
    program = (frameworks_python(), AGENTS / "notebook.py", str(INTERRUPTS), str(seed), cell)
    async with Wire().running() as wire:
        async with started(wire, *program, environ=homes) as notebook:
            (current,) = await notebook.ended()
        assert json.loads(current) == ["None"] * INTERRUPTS
        tree = wire.tree(interrupted=True)
        for name, parent in tree.items():
            kind, _, number = name.rpartition(" ")
            if kind.startswith("step"):
                assert parent == name.replace("step", "turn")
            else:
                assert parent == (f"after {number}" if kind == "in it" else None), name
        whole = {f"{kind} {cell}" for kind in ("after", "in it") for cell in range(INTERRUPTS)}
        assert whole | {"last"} <= set(tree)  # the last one at the kernel's exit

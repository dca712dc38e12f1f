"""Runs cells in a real Jupyter kernel, and interrupts most of them at random moments.

Arguments: how many interrupts, and a seed. Prints the names of the spans that cells completed
without an interrupt, and what was current after each cell, as JSON.
"""

import json
import random
import sys
import time
from typing import Any

from jupyter_client.manager import start_new_kernel  # type: ignore[import-not-found]

DEADLINE_S = 60
SETUP = "from trace_sidecar_client import Spans, current\nspans = Spans()"
# Prints when it has begun to trace, and ends only by an interrupt.
ENDLESS = """
number = 0
print("tracing", flush=True)
while True:
    with spans.span(f"turn {cell} {number}") as turn:
        with spans.span(f"step {cell} {number}"):
            number += 1
"""
WHOLE = """
with spans.span(f"after {cell}"):
    with spans.span(f"in it {cell}"):
        pass
print(current())
"""


class Notebook:
    """A kernel, and how to run a cell in it."""

    def __init__(self) -> None:
        self._manager, self._client = start_new_kernel(startup_timeout=DEADLINE_S)

    def begin(self, code: str) -> str:
        """Start a cell; return the id of the request."""
        begun: str = self._client.execute(code)
        return begun

    def printed(self, request: str) -> str | None:
        """Wait for the next text that a cell prints; return None when it has ended."""
        while True:
            message: dict[str, Any] = self._client.get_iopub_msg(timeout=DEADLINE_S)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                text: str = content["text"]
                return text
            if kind == "error":
                assert content["ename"] == "KeyboardInterrupt", content
            if kind == "status" and content["execution_state"] == "idle":
                return None

    def run(self, code: str) -> str:
        """Run a cell to its end; return what it printed."""
        request, text = self.begin(code), ""
        while (more := self.printed(request)) is not None:
            text += more
        return text

    def interrupt(self) -> None:
        """Interrupt the cell that runs."""
        self._manager.interrupt_kernel()

    def end(self) -> None:
        """Shut the kernel down, and wait until its process has ended."""
        self._client.stop_channels()
        self._manager.shutdown_kernel()


def main(interrupts: int, seed: int, last_cell: str) -> None:
    """Interrupt some cells, each followed by one that runs to its end."""
    notebook, moments = Notebook(), random.Random(seed)
    notebook.run(SETUP)
    current = []
    for cell in range(interrupts):
        notebook.run(f"cell = {cell}")
        request = notebook.begin(ENDLESS)
        assert "tracing" in (notebook.printed(request) or "")
        time.sleep(moments.uniform(0, 0.005))  # the moment, not a wait for anything
        notebook.interrupt()
        while notebook.printed(request) is not None:
            pass
        current.append(notebook.run(WHOLE).strip())
    notebook.run(last_cell)
    notebook.run("with spans.span('last'):\n    pass")
    notebook.end()
    sys.stdout.write(json.dumps(current) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

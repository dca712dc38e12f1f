"""No write is sent before it is on disk: a kill in between would send a START after its END."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from tests.support.faults import end, span, start
from tests.support.spool import GatedFile, spool_world

# Far longer than an END that does not wait for the disk would take to arrive.
LONG_ENOUGH_S = 0.2


async def test_an_end_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a kill, the next process would find only the START and write it after the END."""
    files: list[GatedFile] = []

    def gated(directory: str, max_bytes: int, **_: Any) -> GatedFile:
        files.append(GatedFile(Path(directory), max_bytes))
        return files[0]

    monkeypatch.setattr("sidecar.spool.sqlite_file.SpoolFile", gated)
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    async with spool_world(tmp_path, agentex, sgp, queue__start_hold_s=1800, sgp__linger_s=0) as w:
        (file,) = files
        await w.post(start(span("s")))
        file.waiting.clear()
        file.gate.clear()
        try:
            posting = asyncio.create_task(w.post(end(span("s"))))
            await file.under_way()
            for upstream in (agentex, sgp):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(LONG_ENOUGH_S):
                        await upstream.arrived(1)
        finally:
            file.gate.set()
        await posting
        await w.finish()

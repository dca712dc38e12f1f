"""The lines that `sidecar demo` prints while it runs."""

from pathlib import Path

import pytest

from sidecar.demo.run import _line
from sidecar.operate import status
from tests.support.world import running_app


@pytest.mark.parametrize("known", [True, False])
async def test_memory_where_there_is_no_proc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, known: bool
) -> None:
    """The line has the process's memory, or says that it is unknown."""
    statm = tmp_path / "statm"
    if known:
        statm.write_text("9 0 0\n", encoding="utf-8")
    monkeypatch.setattr(status, "_STATM", statm)
    async with running_app() as app:
        line = _line(app.app.status())
    assert line.startswith("received      0 events   agentex: forwarded     0 queued    0   ")
    assert line.endswith(f"RSS of this process {'0 B' if known else 'unknown'}")

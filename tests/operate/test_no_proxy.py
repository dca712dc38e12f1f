"""Commands reach a sidecar directly, whatever proxy the variables name."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from tests.support.proxy import unwanted_proxy
from tests.support.spans import make_event, make_span
from tests.support.world import running_app, upstream

pytestmark = pytest.mark.process

DEADLINE_S = 90


async def sidecar(*arguments: str, **environ: str) -> tuple[int | None, str, str]:
    """Run a command; return its exit code, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar", *arguments,
        env={"PATH": os.environ["PATH"], **environ},
        cwd=Path(__file__).parents[2], stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_commands_use_no_proxy(tmp_path: Path) -> None:
    """`top`, `explain` and `replay --to` reach the sidecar at its own port, by name or address."""
    file = tmp_path / "letters.jsonl"
    DeadLetters(str(file), 10_000).add("agentex", make_span("a"), "refused", Refused("", 422))
    async with upstream() as agentex, running_app({"AGENTEX_BASE_URL": agentex.url}) as app:
        await app.post(make_event("b", kind="end"))
        with unwanted_proxy() as proxy:
            for host in ("127.0.0.1", "localhost"):
                admin = f"http://{host}:{app.app.ports['admin']}"
                code, _, err = await sidecar("top", "--once", "--url", admin, **proxy)
                assert (code, err) == (0, "")
                code, _, err = await sidecar("explain", "b", "--url", admin, **proxy)
                assert (code, err) == (0, "")
                to = f"http://{host}:{app.port}/"
                done = await sidecar("replay", str(file), "--to", to, **proxy)
                assert done == (0, "accepted 1\n", "")


async def test_the_demo_uses_no_proxy() -> None:
    """Neither its agent nor its sidecar: both stand-ins get every span."""
    with unwanted_proxy() as proxy:
        code, out, err = await sidecar("demo", **proxy)
    assert (code, err) == (0, "")
    assert "nothing was lost" in out

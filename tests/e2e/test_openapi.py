"""docs/openapi.json against a running sidecar: schemathesis makes requests from it.

It checks that valid requests are accepted and invalid ones refused, and that every response has a
status, a media type, headers and a body that the document has.
"""

import asyncio
import json
import os
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import parts
from tests.e2e.sdk_support import ROOT, pod, settled

HOOKS = ROOT / "tests/e2e/agents/schemathesis_hooks.py"
LINES = "application/x-ndjson"
# About 20 s; this is for a busy machine.
DEADLINE_S = 300.0
EXAMPLES = 40  # per operation and phase
# Spans can't be read here: what the Agentex SDK could ask besides is 404, not 405 (docs/api.md).
CONFIG = """
[[operations]]
include-path-regex = "^/spans"
checks.unsupported_method.enabled = false
"""


def of_port(tags: set[str]) -> dict[str, Any]:
    """Return the document with only the paths that have an operation with one of these tags."""
    document: dict[str, Any] = json.loads((ROOT / "docs/openapi.json").read_text())
    document["paths"] = {
        path: {method: each for method, each in item.items() if method != "servers"}
        for path, item in document["paths"].items()
        if any(tags & set(each["tags"]) for each in item.values() if "tags" in each)
        or path == "/readyz"
    }
    # For a media type of its own, schemathesis takes bytes only. Examples have a test of their own.
    if posting := document["paths"].get("/v1/spans"):
        del posting["post"]["requestBody"]["content"][LINES]["examples"]
    return document


async def conforms(document: Mapping[str, Any], url: str, folder: Path) -> str:
    """Run schemathesis against a port; AssertionError with its report if it finds anything."""
    (folder / "openapi.json").write_text(json.dumps(document))
    (folder / "schemathesis.toml").write_text(CONFIG)
    program = parts.locked_venv(parts.SCHEMATHESIS).parent / "st"
    options = [f"--url={url}", "--no-color", "--continue-on-failure", "--warnings=off"]
    options += ["--phases=examples,coverage,fuzzing", f"--max-examples={EXAMPLES}"]
    options += ["--generation-deterministic", "--seed=1"]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *(str(program), "run", "openapi.json", *options),
        cwd=folder,
        env={**kept, "SCHEMATHESIS_HOOKS": HOOKS.stem, "PYTHONPATH": str(HOOKS.parent)},
        stdout=PIPE,
        stderr=STDOUT,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            report, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, report.decode()[-20_000:]
    return report.decode()


async def accounted_for(admin_url: str) -> None:
    """Wait until all that was accepted is settled; the upstreams refused nothing of it.

    Except for ids that belong to a span of another trace already, which no single request shows.
    """
    status = await settled(admin_url)
    assert status["events"]["imbalance"] == 0
    for lane in status["sinks"].values():
        assert (lane["imbalance"], lane["lost"]) == (0, 0)
        letters = {name for name, count in lane["dead_lettered_by_reason"].items() if count}
        assert letters <= {"id_taken"}


@pytest.mark.parametrize("port", ["agents", "admin"])
async def test_every_request_conforms(tmp_path: Path, port: str) -> None:
    """All that schemathesis makes of the document gets what the document says."""
    tags = {"agents": {"events", "sdk"}, "admin": {"operate"}}[port]
    document = of_port(tags)
    operations = sum(len(item) for item in document["paths"].values())
    async with pod(tmp_path / "pod", sidecar=True, SIDECAR_QUEUE__MAX_BYTES="64MiB") as here:
        assert here.life is not None
        url = here.life.url if port == "agents" else here.life.admin_url
        report = await conforms(document, url, tmp_path)
        assert f"Tested: {operations}" in report
        await accounted_for(here.life.admin_url)

"""The OpenTelemetry Collector, built from its Go modules, as an upstream that writes to a file."""

import asyncio
import hashlib
import json
import shutil
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.e2e import parts
from tests.support.run_process import POLL_S, free_ports, serves

Json = dict[str, Any]

SOURCE = Path(__file__).parent / "collector"
# Starting takes a second on an idle machine.
DEADLINE_S = 90.0


def program(tag: str = "") -> Path:
    """Build the Collector on first use. With the tag `file`, it has the file exporter too."""
    source = b"".join(path.read_bytes() for path in sorted(SOURCE.iterdir()))
    digest = hashlib.sha256(source).hexdigest()[:12]

    def build(home: Path) -> None:
        shutil.copytree(SOURCE, home / "source")
        # -mod=mod: go.mod names only our direct dependencies.
        parts.run(
            parts.go(), "build", "-mod=mod", "-trimpath", "-ldflags", "-s -w", "-tags", tag,
            "-o", home / "collector", ".", cwd=home / "source", env={"GOTOOLCHAIN": "local"},
        )  # fmt: skip

    return parts.build_once(f"collector{'-' * bool(tag)}{tag}-{digest}", build) / "collector"


class Collector:
    """A Collector that writes what it receives to a file before it answers.

    It can be killed and started again, on the same port and file.
    """

    def __init__(self, folder: Path) -> None:
        self.port, _ = free_ports()
        self.url = f"http://127.0.0.1:{self.port}"
        self._written = folder / "collected.jsonl"
        self._config = folder / "collector.json"  # JSON is valid YAML
        self._config.write_text(json.dumps(self._configuration()), encoding="utf-8")
        self._process: Process | None = None

    def _configuration(self) -> Json:
        http = {"endpoint": f"127.0.0.1:{self.port}"}
        # A file that may be rotated is written without a buffer.
        file = {"path": str(self._written), "rotation": {"max_megabytes": 1000}}
        traces = {"receivers": ["otlp"], "exporters": ["file"]}
        return {
            "receivers": {"otlp": {"protocols": {"http": http}}},
            "exporters": {"file": file},
            "service": {
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "error"}},
                "pipelines": {"traces": traces},
            },
        }

    async def start(self) -> None:
        """Run it, and return once it accepts connections."""
        command = (program("file"), "--config", f"file:{self._config}")
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=DEVNULL, stderr=sys.stderr
        )
        async with asyncio.timeout(DEADLINE_S):
            while not await serves(self.port):
                assert self._process.returncode is None, "the Collector did not start"
                await asyncio.sleep(POLL_S)

    async def kill(self) -> None:
        """End it with SIGKILL."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def requests(self) -> list[Json]:
        """Return the `ExportTraceServiceRequest` of each request, in OTLP's JSON form."""
        text = self._written.read_text(encoding="utf-8") if self._written.exists() else ""
        # A line without its end is still being written.
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def spans(self) -> Iterator[Json]:
        """Yield every span that it wrote."""
        for request in self.requests():
            for resource in request["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    yield from scope["spans"]

    async def received(self, n: int) -> list[Json]:
        """Return its spans once there are at least `n`."""
        async with asyncio.timeout(DEADLINE_S):
            while len(spans := list(self.spans())) < n:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(POLL_S)
        return spans


@asynccontextmanager
async def collector(folder: Path) -> AsyncIterator[Collector]:
    """A running Collector."""
    running = Collector(folder)
    await running.start()
    try:
        yield running
    finally:
        await running.kill()


def attributes(of: Json) -> Json:
    """Return the attributes of a span or a resource by their keys; no key may be there twice."""
    found: Json = {}
    for each in of.get("attributes", ()):
        assert each["key"] not in found, each["key"]
        found[each["key"]] = each["value"]
    return found

"""The process between an agent and the upstreams: our sidecar, the Collector, Rotel, or none."""

import contextlib
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.load.processes import (
    START_S,
    BenchError,
    Sidecar,
    StandIns,
    free_port,
    process,
    sidecar,
    stand_ins,
)

from .parts import collector as collector_program
from .proc import Watched

LATENCY_MS = 5.0
OTLP_SINK = ("-m", "tests.load.peers.otlp_sink")
# As in a pod with a 256 MiB sidecar; the same in every run.
_QUEUE = {"SIDECAR_QUEUE__MAX_BYTES": "128MiB"}


@dataclass(frozen=True)
class Forwarder:
    """A running forwarder. `port`: where it accepts spans."""

    port: int
    watched: Watched


@dataclass(frozen=True)
class Route:
    """The path of the spans: through `forwarder` ("sidecar", "collector", "none") to `sinks`.

    `compression`: of the requests to OTLP sinks, "none" or "gzip".
    """

    forwarder: str
    sinks: tuple[str, ...]
    compression: str = "none"

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[StandIns, Forwarder | None]]:
        """Run the upstreams and the forwarder."""
        program = OTLP_SINK if "otlp" in self.sinks else None
        with contextlib.ExitStack() as stack:
            upstreams = stack.enter_context(
                stand_ins(LATENCY_MS, program) if program else stand_ins(LATENCY_MS)
            )
            urls = {sink: upstreams.urls[sink] for sink in self.sinks}
            match self.forwarder:
                case "sidecar":
                    running = stack.enter_context(sidecar_to(urls, self.compression))
                    yield upstreams, Forwarder(running.port, Watched(running.pid))
                case "collector":
                    port = free_port()
                    config = collector_config(port, list(urls.values()), self.compression)
                    collector = stack.enter_context(collector_with(config, port))
                    yield upstreams, Forwarder(port, Watched(collector.pid))
                case _:
                    yield upstreams, None


def sidecar_to(
    urls: Mapping[str, str], compression: str = "none", **settings: str
) -> contextlib.AbstractContextManager[Sidecar]:
    """Run a sidecar that forwards to these upstreams, by the names of their lanes."""
    settings = _QUEUE | settings
    if "agentex" in urls:
        settings["SIDECAR_AGENTEX__BASE_URL"] = urls["agentex"]
    if "sgp" in urls:
        settings["SIDECAR_SGP__BASE_URL"] = urls["sgp"]
        settings["SIDECAR_SGP__API_KEY"] = "bench"
        settings["SIDECAR_SGP__ACCOUNT_ID"] = "bench"
    if "otlp" in urls:
        settings["SIDECAR_OTLP__ENDPOINT"] = urls["otlp"]
        settings["SIDECAR_OTLP__COMPRESSION"] = compression
    return sidecar(**settings)


@contextlib.contextmanager
def collector_with(
    config: Mapping[str, Any], port: int, program: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Collector that listens on `port`; by default that of the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        # JSON is valid YAML.
        path = Path(folder) / "config.yaml"
        path.write_text(json.dumps(config))
        command: list[str | Path] = [program or collector_program(), "--config", f"file:{path}"]
        with tempfile.TemporaryFile() as log, process(command, log) as running:
            listening(port, running)
            yield running


def collector_config(port: int, urls: Sequence[str], compression: str = "none") -> dict[str, Any]:
    """Defaults, but the same compression as the sidecar, by default none, and a larger body limit.

    The SDK's batch of 512 spans of 50 KB exceeds the receiver's default of 20 MiB.
    """
    exporters = {
        f"otlphttp/{number}": {
            "endpoint": url,
            "compression": compression,
            "sending_queue": {"enabled": True},
        }
        for number, url in enumerate(urls)
    }
    http = {"endpoint": f"127.0.0.1:{port}", "max_request_body_size": 64 * 2**20}
    return {
        "receivers": {"otlp": {"protocols": {"http": http}}},
        "processors": {"batch": {}},
        "exporters": exporters,
        "service": {
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "error"}},
            "pipelines": {
                "traces": {
                    "receivers": ["otlp"],
                    "processors": ["batch"],
                    "exporters": list(exporters),
                }
            },
        },
    }


def listening(port: int, running: subprocess.Popen[bytes]) -> None:
    """Wait until the process accepts connections on `port`; raises `BenchError` if it ends."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline or running.poll() is not None:
                raise BenchError(f"{running.args!r} did not start") from None
            time.sleep(0.02)
        else:
            return

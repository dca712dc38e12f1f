"""The process between an agent and the upstreams: our sidecar, the Collector, or none."""

import contextlib
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.load.processes import (
    START_S,
    BenchError,
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
    """The path of the spans: through `forwarder` ("sidecar", "collector", "none") to `sinks`."""

    forwarder: str
    sinks: tuple[str, ...]

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
                    yield upstreams, stack.enter_context(_sidecar(urls))
                case "collector":
                    yield upstreams, stack.enter_context(_collector(list(urls.values())))
                case _:
                    yield upstreams, None


@contextlib.contextmanager
def _sidecar(urls: dict[str, str]) -> Iterator[Forwarder]:
    settings = dict(_QUEUE)
    if "agentex" in urls:
        settings["SIDECAR_AGENTEX__BASE_URL"] = urls["agentex"]
    if "sgp" in urls:
        settings["SIDECAR_SGP__BASE_URL"] = urls["sgp"]
        settings["SIDECAR_SGP__API_KEY"] = "bench"
        settings["SIDECAR_SGP__ACCOUNT_ID"] = "bench"
    with sidecar(**settings) as running:
        yield Forwarder(running.port, Watched(running.pid))


@contextlib.contextmanager
def _collector(urls: Sequence[str]) -> Iterator[Forwarder]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        # JSON is valid YAML.
        config = Path(folder) / "config.yaml"
        config.write_text(json.dumps(collector_config(port, urls)))
        with process([collector_program(), "--config", f"file:{config}"]) as running:
            _listening(port, running)
            yield Forwarder(port, Watched(running.pid))


def collector_config(port: int, urls: Sequence[str]) -> dict[str, Any]:
    """Defaults, but no compression (the sidecar uses none), and a larger body limit.

    The SDK's batch of 512 spans of 50 KB exceeds the receiver's default of 20 MiB.
    """
    exporters = {
        f"otlphttp/{number}": {
            "endpoint": url,
            "compression": "none",
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


def _listening(port: int, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline or running.poll() is not None:
                raise BenchError("the Collector did not start") from None
            time.sleep(0.02)
        else:
            return

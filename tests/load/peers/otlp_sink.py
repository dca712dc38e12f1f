"""Two OTLP/HTTP upstreams in a process of their own, as light as the sidecar's stand-ins.

`python -m tests.load.peers.otlp_sink`; prints their URLs as JSON, and ends when stdin ends.
"""

import argparse
import asyncio
import json
import os
import sys
from typing import Unpack

import uvloop

from sidecar.demo.stand_in import Answer, Options, Recorded, StandIn

from .otlp import span_ids

_TAKEN = Answer(200, b"", headers={"Content-Type": "application/x-protobuf"})


class OtlpSink(StandIn):
    """Counts spans."""

    keepalive_s = 75.0

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(**options)

    def reply(self, request: Recorded) -> Answer:
        """Not used: the sink has a light mode only."""
        return self.reply_lightly(request)

    def reply_lightly(self, request: Recorded) -> Answer:
        """Count the spans by id."""
        for id_ in span_ids(request.body):
            self.wrote(id_.hex(), complete=True)
        return _TAKEN


async def serve(latency_s: float) -> None:
    """Listen until standard input ends."""
    options = Options(latency_s=latency_s, keep_bodies=False, digest=True, echo=False)
    async with OtlpSink(**options) as first, OtlpSink(**options) as second:
        print(json.dumps({"otlp": first.url, "second": second.url}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, os.read, sys.stdin.fileno(), 1)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--light", action="store_true", required=True, help="the only form")
    uvloop.run(serve(parser.parse_args().latency_ms / 1000))


if __name__ == "__main__":
    main()

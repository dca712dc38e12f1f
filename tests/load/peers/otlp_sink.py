"""Two OTLP/HTTP upstreams in a process of their own, as light as the sidecar's stand-ins.

`python -m tests.load.peers.otlp_sink`; prints their URLs as JSON, and ends when stdin ends. With
`--trouble`, they fail in one of the ways of `TROUBLES`, until a line arrives on stdin.
"""

import argparse
import asyncio
import gzip
import json
import sys
from collections.abc import Callable
from typing import Unpack

import uvloop

from sidecar.demo.stand_in import Answer, Options, Recorded, Scripted, StandIn

from .otlp import span_ids

LIMIT, AWAY_S = 200_000, 8.0
_PROTOBUF = {"Content-Type": "application/x-protobuf"}
_TAKEN = Answer(200, b"", headers=_PROTOBUF)
# A google.rpc.Status without fields is an empty body.
_REFUSED, _TOO_LARGE, _AWAY = (Answer(status, b"", headers=_PROTOBUF) for status in (400, 413, 503))


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
        for id_ in _ids(request):
            self.wrote(id_, complete=True)
        return _TAKEN


def _body(request: Recorded) -> bytes:
    is_gzip = request.headers.get("Content-Encoding") == "gzip"
    return gzip.decompress(request.body) if is_gzip else request.body


def _ids(request: Recorded) -> list[str]:
    return [id_.hex() for id_ in span_ids(_body(request))]


class Trouble:
    """What is wrong with an upstream: each method answers a request, or leaves it to the sink."""

    def __init__(self) -> None:
        self._bad: list[str] = []
        self._until = 0.0

    def one_bad_span(self, request: Recorded) -> Scripted:
        """Refuse each request that has the first span of the first request."""
        ids = _ids(request)
        self._bad = self._bad or ids[:1]
        return _REFUSED if self._bad[0] in ids else None

    def too_large(self, request: Recorded) -> Scripted:
        """Refuse each request of more than `LIMIT` bytes, once decompressed."""
        return _TOO_LARGE if len(_body(request)) > LIMIT else None

    def away(self, request: Recorded) -> Scripted:
        """Be unavailable for `AWAY_S` from the first request."""
        self._until = self._until or request.at + AWAY_S
        return _AWAY if request.at < self._until else None

    def out(self, request: Recorded) -> Scripted:
        """Be unavailable until told otherwise."""
        return _AWAY


TROUBLES: dict[str, Callable[[Trouble, Recorded], Scripted]] = {
    "one bad span": Trouble.one_bad_span,
    "413 above 200 KB": Trouble.too_large,
    "503 for 8 s": Trouble.away,
    "503 until told": Trouble.out,
}


async def serve(latency_s: float, trouble: str) -> None:
    """Listen until standard input ends."""
    options = Options(latency_s=latency_s, keep_bodies=False, digest=True, echo=False)
    async with OtlpSink(**options) as first, OtlpSink(**options) as second:
        for sink in (first, second) if trouble else ():
            state, rule = Trouble(), TROUBLES[trouble]
            sink.rule = lambda request, state=state, rule=rule: rule(state, request)
        print(json.dumps({"otlp": first.url, "second": second.url}), flush=True)
        while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
            first.rule = second.rule = None


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--light", action="store_true", required=True, help="the only form")
    parser.add_argument("--trouble", choices=TROUBLES, default="")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.latency_ms / 1000, arguments.trouble))


if __name__ == "__main__":
    main()

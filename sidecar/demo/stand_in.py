"""The base of both stand-ins: a real HTTP server that records requests and follows a script.

A request gets the response of the subclass's `reply`, unless the script or the rule overrides it.
As on the real servers, a request is applied even if its client has stopped waiting for the
response. A bug in a stand-in or in a rule results in a 500, and `stop` raises it.

`python -m sidecar.demo.serve --help` runs both for benchmarks.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from typing import Self, TypedDict

import msgspec
from aiohttp import web

from sidecar.demo.behaviours import (
    JSON,
    Answer,
    ApplyThen,
    Behaviour,
    Delay,
    Gate,
    Hang,
    Outcome,
    Raw,
    Recorded,
    Refusal,
    Reset,
    ResetMidBody,
    Rule,
    Scripted,
    behaviour_of,
    forever,
    reset,
    send,
)

__all__ = [
    "Answer", "ApplyThen", "Behaviour", "Delay", "Gate", "Hang", "Options", "Raw", "Recorded",
    "Refusal", "Reset", "ResetMidBody", "Rule", "Scripted", "StandIn",
]  # fmt: skip

HOST = "127.0.0.1"
# Not recorded as a request. With a query (`?counts`) the report omits the digests. A POST of span
# ids returns the digests of those that are complete.
REPORT = "/__report"
_UNREADABLE = Answer(422)
_TOO_LARGE = Answer(413, b'{"detail":"Request Entity Too Large"}')


class Options(TypedDict, total=False):
    """The arguments that every stand-in takes."""

    latency_s: float
    api_key: str | None
    keep_bodies: bool
    max_body: int | None
    digest: bool
    echo: bool
    max_spans: int | None


class StandIn(ABC):
    """One upstream. Its public attributes can be read, and settings changed, while it runs.

    `digest` is for benchmarks: it checks, records and stores nothing but `digests` (of each span's
    raw `input`), `writes` and `complete`; with `max_spans`, of the newest spans only. With
    `echo=False` the responses are short.
    """

    keepalive_s = 5.0  # after which an idle connection is closed

    def __init__(
        self,
        *,
        latency_s: float = 0.0,
        api_key: str | None = None,
        keep_bodies: bool = True,
        max_body: int | None = None,
        digest: bool = False,
        echo: bool = True,
        max_spans: int | None = None,
    ) -> None:
        self.latency_s = latency_s
        self.api_key = api_key
        self.keep_bodies = keep_bodies
        self.max_body = max_body
        self.digest = digest
        self.echo = echo
        self.max_spans = max_spans
        self.script: list[Scripted] = []
        self.rule: Rule | None = None
        self.requests: list[Recorded] = []
        self.requests_total = 0
        self.in_flight = 0  # requests without a response yet
        self.peak_in_flight = 0
        self.history: dict[str, list[str]] = {}  # "open" or "complete" for each applied write
        self.writes: Counter[str] = Counter()
        self.complete: set[str] = set()
        self.late_opens = 0  # applied after a complete write of the same span
        self.digests: dict[str, bytes] = {}
        self.duplicates_in_batch = 0
        self.port = 0
        self.url = ""
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._working: set[asyncio.Task[Outcome]] = set()
        self._web: web.Server | None = None
        self._listening: asyncio.Server | None = None
        self._bug: BaseException | None = None

    @abstractmethod
    def reply(self, request: Recorded) -> Answer:
        """Apply the request atomically, and return what the real server would."""

    @abstractmethod
    def reply_lightly(self, request: Recorded) -> Answer:
        """Like `reply`, but for `digest`: only count."""

    async def start(self, port: int = 0) -> None:
        """Listen; 0 means any port. A restart keeps everything stored and recorded before."""
        self._web = web.Server(
            self._serve,
            access_log=None,
            auto_decompress=False,  # neither upstream accepts compressed bodies
            handler_cancellation=True,  # so that clients that gave up are not in flight
            keepalive_timeout=self.keepalive_s,
        )
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(self._web, HOST, port, backlog=1024)
        self.port = self._listening.sockets[0].getsockname()[1]
        self.url = f"http://{HOST}:{self.port}"

    async def stop(self) -> None:
        """Stop as if killed: free the port, reset connections, apply no more requests.

        Raises the first bug of the stand-in or of a rule, if any.
        """
        if self._web is None or self._listening is None:
            return
        self._listening.close()
        for connection in self._web.connections:
            reset(connection.transport)
        for work in self._working:
            work.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        await self._web.shutdown(1)
        await self._listening.wait_closed()
        self._web = self._listening = None
        bug, self._bug = self._bug, None
        if bug is not None:
            raise bug

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def arrived(self, n: int) -> None:
        """Return once `n` requests have arrived since the stand-in was created."""
        if self.requests_total < n:
            reached = asyncio.get_running_loop().create_future()
            self._waiting.append((n, reached))
            await reached

    def wrote(self, id_: str, *, complete: bool) -> None:
        """Count one applied write; for subclasses."""
        self.writes[id_] += 1
        if complete:
            self.complete.add(id_)
        elif id_ in self.complete:
            self.late_opens += 1
        if not self.digest:
            self.history.setdefault(id_, []).append("complete" if complete else "open")
        elif self.max_spans and len(self.writes) > self.max_spans:
            oldest = next(iter(self.writes))
            del self.writes[oldest]
            self.complete.discard(oldest)
            self.digests.pop(oldest, None)

    def report(self, *, digests: bool = True) -> bytes:
        """Return the state as JSON, for other processes."""
        report = {
            "requests": self.requests_total,
            "peak_in_flight": self.peak_in_flight,
            "spans": len(self.writes),
            "complete": len(self.complete),
            "late_opens": self.late_opens,
            "writes": self.writes.total(),
            "writes_max": max(self.writes.values(), default=0),
            "duplicates_in_batch": self.duplicates_in_batch,
        }
        hexed = {id_: digest.hex() for id_, digest in self.digests.items()} if digests else {}
        return msgspec.json.encode(report | {"digests": hexed})

    def report_on(self, ids: bytes) -> bytes:
        """Return the digests of those of `ids` that are complete; both are JSON."""
        done = self.complete.intersection(msgspec.json.decode(ids, type=list[str]))
        return msgspec.json.encode({id_: self.digests.get(id_, b"").hex() for id_ in done})

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        body = await request.content.read()
        if path == REPORT:
            asks = request.method == "POST"
            report = self.report_on(body) if asks else self.report(digests=not query)
            return web.Response(body=report, content_type=JSON)
        at = asyncio.get_running_loop().time()
        recorded = Recorded(request.method, path, query, request.headers, body, at)
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            behaviour = self._arrive(recorded)
            outcome = await self._outcome(recorded, behaviour)
            if self.latency_s and outcome.answer is not None:
                await asyncio.sleep(self.latency_s)
            return await send(request, recorded, outcome)
        except Exception as error:
            self._bug = self._bug or error
            raise
        finally:
            recorded.ended = asyncio.get_running_loop().time()
            self.in_flight -= 1

    def _arrive(self, recorded: Recorded) -> Behaviour | None:
        self.requests_total += 1
        if not self.digest:
            self.requests.append(recorded)
        for n, reached in self._waiting:
            if n <= self.requests_total and not reached.done():
                reached.set_result(None)
        self._waiting = [(n, reached) for n, reached in self._waiting if not reached.done()]
        if self.script:
            return behaviour_of(self.script.pop(0))
        return None if self.rule is None else behaviour_of(self.rule(recorded))

    async def _outcome(self, recorded: Recorded, behaviour: Behaviour | None) -> Outcome:
        if behaviour is None:
            outcome = Outcome(self._applied(recorded))
            self._forget(recorded)
            return outcome
        # In a separate task, which goes on if the client gives up.
        work = asyncio.get_running_loop().create_task(self._behave(recorded, behaviour))
        self._working.add(work)

        def done(_: object) -> None:
            self._working.discard(work)
            self._forget(recorded)
            if not work.cancelled():
                self._bug = self._bug or work.exception()

        work.add_done_callback(done)
        return await asyncio.shield(work)

    async def _behave(  # noqa: PLR0911 (one for each behaviour)
        self, recorded: Recorded, behaviour: Behaviour | None
    ) -> Outcome:
        match behaviour:
            case Answer():
                return Outcome(behaviour)
            case ApplyThen(answer):
                self._applied(recorded)
                return Outcome(answer)
            case Reset(after_apply):
                if after_apply:
                    self._applied(recorded)
                return Outcome(None)
            case ResetMidBody():
                return Outcome(self._applied(recorded), cut=True)
            case Raw():
                self._applied(recorded)
                return Outcome(None, raw=behaviour)
            case Hang():
                await forever()
            case Delay(seconds, then):
                await asyncio.sleep(seconds)
                return await self._behave(recorded, behaviour_of(then))
            case Gate(event, then):
                await event.wait()
                return await self._behave(recorded, behaviour_of(then))
        return Outcome(self._applied(recorded))

    def _applied(self, recorded: Recorded) -> Answer:
        if self.max_body is not None and len(recorded.body) > self.max_body:
            return _TOO_LARGE
        try:
            return self.reply_lightly(recorded) if self.digest else self.reply(recorded)
        except Refusal as refusal:
            return refusal.answer
        except msgspec.DecodeError:  # from a decoder of `reply_lightly`: not a sidecar's request
            return _UNREADABLE

    def _forget(self, recorded: Recorded) -> None:
        if not self.keep_bodies:
            recorded.body = b""

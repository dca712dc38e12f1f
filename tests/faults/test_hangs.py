"""Calls that hang: delivery goes on, and stopping ends within the grace period and a second (D27).

tests/e2e/test_stalls.py hangs the system calls of a real process; here is what each part makes of
it. At its end `world` checks that `App.run` returned False exactly if something was lost.
"""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import structlog

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Answer
from sidecar.network.resolver import LOOKUP_S, Resolver
from sidecar.process.exit_report import ExitReport
from sidecar.process.watched_files import WatchedFiles
from sidecar.sinks.dead_letters import LIMIT_S, DeadLetters
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.faults import World, end, fast, fast_loop, ids_in, now, span, start, world
from tests.support.tls import Authority, Relay, authority
from tests.support.world import running_app

__all__ = ["authority"]

GRACE_S = 10.0
# What a stop may take after the grace period.
END_S = 1.0


class Stuck:
    """Calls of a function that hang once `hang` was called, until `answer`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._answers = threading.Event()
        self._answers.set()
        self.hung = 0

    def in_(self, owner: object, name: str) -> "Stuck":
        """The function is `owner.name`."""
        function = getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> object:
            if not self._answers.is_set():
                self.hung += 1
                self._loop.hang(self._answers)
            return function(*arguments, **keywords)

        self._monkeypatch.setattr(owner, name, call)
        return self

    def hang(self) -> None:
        """From now on, calls hang."""
        self._loop = fast_loop()
        self._answers.clear()

    def answer(self) -> None:
        """Calls go on."""
        self._answers.set()


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    made = Stuck(monkeypatch)
    yield made
    made.answer()


async def stop(w: World) -> tuple[bool, dict[str, Any]]:
    """Stop the sidecar in time; whether nothing was lost, and the last line of its log."""
    began = now()
    with structlog.testing.capture_logs() as lines:
        w.app.stop()
        await asyncio.wait([w.running.task])
    assert now() - began <= GRACE_S + END_S
    (line,) = [line for line in lines if line["event"] == "stopped"]
    return w.running.task.result(), dict(line)


@fast
async def test_a_dead_letter_that_hangs(stuck: Stuck) -> None:
    """Its lane goes on after a while; letters are counted as not kept, until the disk answers."""
    stuck.in_(DeadLetters, "_append")
    async with world(shutdown__grace_s=GRACE_S) as w:
        w.sgp.rule = lambda request: Answer(422, b"{}") if "bad" in str(ids_in(request)) else None
        stuck.hang()
        began = now()
        await w.post(end(span("bad1")), end(span("good1")))
        await w.drained()
        assert now() - began < LIMIT_S + 3.0
        await w.post(end(span("bad2")))
        await w.drained()
        assert w.app.shutdown.stalls()["disk"] == 1
        stuck.answer()
        await asyncio.sleep(1.0)
        await w.post(end(span("bad3")), end(span("good2")))
        del w.accepted["bad2"]
        await w.finish(dead={("sgp", "bad1"), ("sgp", "bad3")})
        assert w.lane("sgp")["dead_lettered"] == 3


@fast
async def test_a_key_file_that_hangs(stuck: Stuck, tmp_path: Path) -> None:
    """The last key stays in use, and housekeeping goes on; a new one is used once it is read."""
    file = tmp_path / "key"
    file.write_text("one", encoding="utf-8")
    stuck.in_(WatchedFiles, "read")
    keys = {"one"}
    async with world(sgp__api_key="", sgp__api_key_file=file, shutdown__grace_s=GRACE_S) as w:
        w.sgp.rule = lambda request: None if request.headers["x-api-key"] in keys else 401
        await w.post(end(span("a")))
        await w.drained()
        stuck.hang()
        await asyncio.sleep(5.0)
        assert stuck.hung == 1
        ticked = w.app.operations.status.history(0)["next"]
        await w.post(end(span("b")))
        await w.drained()
        file.write_text("two", encoding="utf-8")
        keys.clear()
        keys.add("two")
        await w.post(end(span("c")))
        await asyncio.sleep(20.0)
        assert w.lane("sgp")["depth"] == 1
        assert w.app.operations.status.history(0)["next"] >= ticked + 3
        stuck.answer()
        await w.finish()


@fast
async def test_certificates_that_hang_at_the_start(stuck: Stuck, authority: Authority) -> None:
    """Events are accepted meanwhile; they are delivered once the files could be read."""
    stuck.in_(WatchedFiles, "read")
    stuck.hang()
    async with AgentexStandIn() as agentex, Relay(authority)(agentex) as port:
        environ = {"AGENTEX_BASE_URL": f"https://localhost:{port}"}
        async with running_app(environ, agentex__ca_file=authority.path) as app:
            await app.post(end(span("s")))
            await asyncio.sleep(5.0)
            lane = app.app.status()["sinks"]["agentex"]
            assert (lane["state"], lane["depth"]) == ("down", 1)
            assert lane["last_error"]["text"] == "the files with the certificates can't be read"
            assert app.app.shutdown.stalls()["disk"] == 1
            stuck.answer()
            await asyncio.sleep(60.0)
            assert set(agentex.spans) == {"s"}


class NamedAgentex(AgentexStandIn):
    """It is reached by its name."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.url = self.url.replace("127.0.0.1", "agentex.test")
        return self


class NamedSgp(SgpStandIn):
    """It is reached by its name."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.url = self.url.replace("127.0.0.1", "sgp.test")
        return self


@pytest.mark.parametrize("upstream", ["agentex", "sgp"])
@fast
async def test_a_lookup_that_hangs(
    upstream: str, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an outage of its lane, noticed within seconds; the other lane's lookups go on."""
    lookup = socket.getaddrinfo
    stuck.in_(socket, "gethostbyname")  # never called by anyone else

    def found(host: bytes | str, *arguments: Any, **options: Any) -> object:
        name = host.decode() if isinstance(host, bytes) else host
        if name.endswith(".test"):
            if options["flags"] == socket.AI_NUMERICHOST:
                raise socket.gaierror(socket.EAI_NONAME, "a name")
            host = socket.gethostbyname("127.0.0.1") if upstream in name else "127.0.0.1"
        return lookup(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    stuck.hang()
    async with world(NamedAgentex(), NamedSgp(), shutdown__grace_s=GRACE_S) as w:
        other = "sgp" if upstream == "agentex" else "agentex"
        await w.post(end(span("a")))
        await asyncio.sleep(LOOKUP_S + 1.0)
        assert (w.lane(upstream)["state"], w.lane(upstream)["depth"]) == ("down", 1)
        assert (
            w.lane(upstream)["last_error"]["text"] == f"the DNS lookup of {upstream}.test timed out"
        )
        assert (w.lane(other)["state"], w.lane(other)["depth"]) == ("up", 0)
        assert w.app.shutdown.stalls()["dns"] == 1
        stuck.answer()
        await w.finish()


@fast
async def test_a_lookup_hangs_while_the_process_ends(stuck: Stuck) -> None:
    """The last line says what hangs; what could not be sent is a dead letter."""
    stuck.in_(Resolver, "_look_up_all")
    stuck.hang()
    async with world(NamedAgentex(), shutdown__grace_s=GRACE_S) as w:
        await w.post(end(span("a")))
        nothing_lost, line = await stop(w)
        assert nothing_lost
        assert line["hanging"] == ["DNS lookup of agentex.test"]
        assert w.dead() == {("agentex", "a"): 1}
    stuck.answer()


@fast
async def test_the_disk_hangs_while_the_process_ends(stuck: Stuck, tmp_path: Path) -> None:
    """What is only in memory is lost and counted; what is on disk is neither."""
    stuck.in_(SpoolFile, "apply")
    path = tmp_path / "spool"
    async with world(spool__path=path, dead_letters__path="", shutdown__grace_s=GRACE_S) as w:
        for each in w.upstreams:
            each.rule = lambda _: 503
        await w.post(end(span("on disk")))
        stuck.hang()
        await w.post(end(span("in memory")))
        nothing_lost, line = await stop(w)
        assert not nothing_lost
        assert (line["lost"], line["hanging"]) == (2, ["spool"])
        assert [line["writes"][lane]["depth"] for lane in ("agentex", "sgp")] == [1, 1]
    stuck.answer()


@fast
async def test_what_waits_for_the_disk_becomes_dead_letters(stuck: Stuck, tmp_path: Path) -> None:
    """So does what a lane has put off to a row that never got to disk."""
    stuck.in_(SpoolFile, "apply")
    path = tmp_path / "spool"
    async with world(spool__path=path, queue__max_bytes="4MiB", shutdown__grace_s=GRACE_S) as w:
        for each in w.upstreams:
            each.rule = lambda _: 503
        stuck.hang()
        made = [span(f"s{number}", input={"prompt": "x" * 100_000}) for number in range(20)]
        await w.post(*map(end, made))
        assert all(lane.on_disk for lane in w.app.lanes)
        nothing_lost, line = await stop(w)
        assert nothing_lost
        assert line["hanging"] == ["spool"]
        assert len(w.dead()) == 40
        for name in ("agentex", "sgp"):
            totals = line["writes"][name]
            assert (totals["dead_lettered"], totals["depth"], totals["imbalance"]) == (20, 0, 0)
    stuck.answer()


@fast
async def test_the_exit_report_hangs(stuck: Stuck, tmp_path: Path) -> None:
    """The last line is written before it."""
    stuck.in_(ExitReport, "write")
    async with world(shutdown__grace_s=GRACE_S) as w:
        await w.post(end(span("a")))
        await w.drained()
        stuck.hang()
        nothing_lost, line = await stop(w)
        assert nothing_lost
        assert "hanging" not in line
    stuck.answer()


@fast
async def test_the_disk_hangs_while_the_process_starts(stuck: Stuck, tmp_path: Path) -> None:
    """Agents are served after a while, and a stop before that is not kept waiting."""
    stuck.in_(SpoolFile, "open")
    stuck.hang()
    async with world(spool__path=tmp_path / "spool", shutdown__grace_s=GRACE_S) as w:
        assert now() < 15.0
        await w.post(start(span("a")))
        await w.post(end(span("a")))
        await w.drained()
        stuck.answer()
        await w.until(lambda: not w.app.spool.degraded)
        await w.post(end(span("b")))
        await w.finish()

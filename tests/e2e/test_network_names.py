"""Names that nobody knows, that move, and that lead to addresses which a pod does not have."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Answer, Behaviour, Hang, Reset, StandIn
from tests.e2e import parts
from tests.e2e.network_support import (
    AGENTEX,
    NAMES,
    SGP,
    Etc,
    Namespace,
    Pod,
    Relay,
    names_of,
    namespace,
    passes_through,
    pod,
    tinyproxy,
)
from tests.support.kill import SidecarRun
from tests.support.lives import ANSWER_S, ARRIVE_S, within
from tests.support.run_process import free_ports
from tests.support.stalls import deaf_port
from tests.support.tls import Authority

# Another address than that of a resolver of this machine.
RESOLVER = "127.83.18.54"
HOSTS = {"agentex": AGENTEX, "sgp": SGP}
OLD, NEW = "127.0.0.1", "127.0.0.2"
# The only address of a pod, besides loopback.
IPV6, IPV4 = "fd00::2/128", "10.9.8.7/32"
YES, NO_SUCH_NAME, FAILED, REFUSED = 0, 3, 2, 5


class Resolver(asyncio.DatagramProtocol):
    """Answers every question with `code` and no record, or not at all while that is None."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.asked: set[bytes] = set()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self.asked.add(data[12:])
        if self.code is not None and self._transport is not None:
            end = data.index(b"\0", 12) + 5
            head = data[:2] + bytes([0x81, 0x80 | self.code]) + b"\0\1" + bytes(6)
            self._transport.sendto(head + data[12:end], addr)


@asynccontextmanager
async def resolver() -> AsyncIterator[Resolver]:
    """Run a resolver for processes whose /etc/resolv.conf has its address."""
    loop = asyncio.get_running_loop()
    try:
        transport, made = await loop.create_datagram_endpoint(Resolver, local_addr=(RESOLVER, 53))
    except OSError as error:
        parts.missing(f"no resolver's port: {error.strerror}")
    try:
        yield made
    finally:
        transport.close()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (NO_SUCH_NAME, "DNS knows no {}"),
        (YES, "DNS knows no {}"),
        (FAILED, "DNS has no answer for {}"),
        (REFUSED, "DNS has no answer for {}"),
        pytest.param(None, "the DNS lookup of {} timed out", marks=pytest.mark.nightly),
    ],
    ids=["no such name", "no address", "server failure", "refused", "silence"],
)
async def test_names_that_are_not_found(tmp_path: Path, code: int | None, text: str) -> None:
    """The text has the name, and says whether DNS denied it; once it is known, all arrives."""
    etc = Etc(tmp_path / "etc", {"localhost": OLD}, resolver=RESOLVER)
    async with pod(tmp_path) as here, resolver() as names:
        names.code = code
        here.lead_to(here.agentex.port, here.sgp.port)
        life = await here.start(*etc.wrapper)
        await here.post(life)
        for sink, host in HOSTS.items():
            await here.holds(life, sink, text.format(host))
        assert names.asked
        if code is None:
            names.code = NO_SUCH_NAME  # a lookup that is still under way ends
        etc.move(agentex_internal=OLD, sgp_internal=OLD)
        await here.delivers()
        await here.ends(life)


async def test_no_resolver(tmp_path: Path) -> None:
    """Where no DNS server answers, the text says that it is DNS, and which name was asked for."""
    etc = Etc(tmp_path / "etc", {"localhost": OLD}, resolver="127.83.18.55")
    async with pod(tmp_path) as here:
        here.lead_to(here.agentex.port, here.sgp.port)
        life = await here.start(*etc.wrapper)
        await here.post(life)
        for sink, host in HOSTS.items():
            await here.holds(life, sink, f"DNS has no answer for {host}")
        etc.move(agentex_internal=OLD, sgp_internal=OLD)
        await here.delivers()
        await here.ends(life)


@pytest.mark.parametrize("why", ["refuses connections", "does not answer"])
async def test_hosts_that_do_not_connect(tmp_path: Path, why: str) -> None:
    """The text has the name and the port; what answers later at the same port gets everything."""
    etc = Etc(tmp_path / "etc", NAMES)
    ports = free_ports()
    async with pod(tmp_path) as here:
        with deaf_port() as deaf:
            agentex, sgp = ports if why == "refuses connections" else (deaf, deaf)
            here.lead_to(agentex, sgp)
            life = await here.start(*etc.wrapper)
            await here.post(life)
            await here.holds(life, "agentex", f"{AGENTEX}:{agentex} {why}")
            await here.holds(life, "sgp", f"{SGP}:{sgp} {why}")
            if why == "does not answer":
                await here.ends(life)
                here.lead_to(*ports)
                life = await here.start(*etc.wrapper)
        async with (
            Relay(here.agentex.port, port=ports[0]),
            Relay(here.sgp.port, port=ports[1]),
        ):
            await here.delivers()
            await here.ends(life)


@dataclass
class Moving:
    """Servers at the same ports of two addresses; the names have the old one at first."""

    here: Pod
    etc: Etc
    old: dict[str, StandIn]
    new: dict[str, Relay]
    life: SidecarRun

    async def delivers(self) -> None:
        """Check that all that was posted arrives, at one server or the other."""
        servers = [(old, self.here.upstreams[sink]) for sink, old in self.old.items()]
        assert await within(
            ARRIVE_S,
            lambda: all(self.here.sent <= old.complete | new.complete for old, new in servers),
        )

    def move(self) -> None:
        """Give the names the new address."""
        self.etc.move(agentex_internal=NEW, sgp_internal=NEW)

    async def arrives_there(self) -> None:
        """Post until both names have been followed; check that nothing is lost."""
        end = asyncio.get_running_loop().time() + ARRIVE_S
        while not all(relay.accepted for relay in self.new.values()):
            assert asyncio.get_running_loop().time() < end, "traffic does not move"
            await self.here.post(self.life, 1)
        await self.delivers()
        await self.here.ends(self.life)


@asynccontextmanager
async def moving(folder: Path, **settings: str) -> AsyncIterator[Moving]:
    """Run servers at both addresses, and a sidecar that has delivered to the old one."""
    etc = Etc(folder / "etc", {**NAMES, AGENTEX: OLD, SGP: OLD})
    async with (
        pod(folder, **settings) as here,
        AgentexStandIn() as agentex,
        SgpStandIn() as sgp,
        Relay(here.agentex.port, host=NEW, port=agentex.port) as new_agentex,
        Relay(here.sgp.port, host=NEW, port=sgp.port) as new_sgp,
    ):
        here.lead_to(agentex.port, sgp.port)
        old: dict[str, StandIn] = {"agentex": agentex, "sgp": sgp}
        new = {"agentex": new_agentex, "sgp": new_sgp}
        world = Moving(here, etc, old, new, await here.start(*etc.wrapper))
        await here.post(world.life)
        await world.delivers()
        assert all(server.complete == here.sent for server in old.values())
        yield world


async def test_the_old_server_stays_up(tmp_path: Path) -> None:
    """Under steady traffic, connections are replaced after `max_connection_age_s`."""
    async with moving(tmp_path, SIDECAR_NETWORK__MAX_CONNECTION_AGE_S="1") as world:
        world.move()
        await world.arrives_there()


async def test_connections_are_kept(tmp_path: Path) -> None:
    """By default no connection is replaced that soon: posts after a move go to the old server."""
    async with moving(tmp_path) as world:
        world.move()
        for _ in range(10):
            await world.here.post(world.life, 1)
            await world.delivers()
        assert all(server.complete == world.here.sent for server in world.old.values())
        await world.here.ends(world.life)


FAILURES: dict[str, tuple[Behaviour, str, str]] = {
    "503": (Answer(503, b"{}"), "HTTP 503", "down"),
    "500": (Answer(500, b"{}"), "HTTP 500", "down"),
    "401": (Answer(401, b"{}"), "HTTP 401", "unauthorized"),
    "redirect": (Answer(302, b"{}"), "HTTP 302", "down"),
    "web page": (Answer(200, b"hello", {"Content-Type": "text/html"}), "not JSON", "down"),
    "hangs": (Hang(), "timed out", "down"),
    "resets": (Reset(), "connection", "down"),
}


@pytest.mark.parametrize("failure", names_of(FAILURES, {"500", "redirect", "web page", "hangs"}))
async def test_the_old_server_fails(tmp_path: Path, failure: str) -> None:
    """A server that fails is not asked again once the name has moved, though it stays up."""
    behaviour, text, state = FAILURES[failure]
    timeouts = {"SIDECAR_AGENTEX__TIMEOUT_S": "1", "SIDECAR_SGP__TIMEOUT_S": "1"}
    async with moving(tmp_path, **timeouts) as world:
        for server in world.old.values():
            server.rule = lambda _: behaviour
        await world.here.post(world.life)
        for sink in HOSTS:
            await world.here.holds(world.life, sink, text, state, held=5)
        world.move()
        await world.arrives_there()


@pytest.mark.parametrize("fails", [False, True], ids=["stays up", "fails"])
async def test_the_pass_through_follows(tmp_path: Path, *, fails: bool) -> None:
    """What is passed through reaches the new server, too: in time, or once the old one fails."""
    settings = {"SIDECAR_LISTENER__PASS_THROUGH": "true"}
    if not fails:
        settings["SIDECAR_NETWORK__MAX_CONNECTION_AGE_S"] = "1"
    async with moving(tmp_path, **settings) as world:
        passes_through(world.here.sgp)
        passes_through(world.old["sgp"])
        assert await passed_through(world.life) == 200
        world.move()
        if fails:
            world.old["sgp"].rule = lambda _: Answer(503, b"{}")
            assert await passed_through(world.life) == 503
            assert await passed_through(world.life) == 200
        end = asyncio.get_running_loop().time() + ARRIVE_S
        while all(one.path != "/v4/models" for one in world.here.sgp.requests):
            assert asyncio.get_running_loop().time() < end, "traffic does not move"
            await passed_through(world.life)
        await world.here.ends(world.life)


@asynccontextmanager
async def reachable(life: SidecarRun, network: Namespace) -> AsyncIterator[None]:
    """Make the ports of a sidecar in a network of its own reachable from the test."""
    ports = [int(url.rpartition(":")[2]) for url in (life.url, life.admin_url)]
    async with (
        Relay(network.dial(ports[0])) as listener,
        Relay(network.dial(ports[1])) as admin,
    ):
        life.url = f"http://127.0.0.1:{listener.port}"
        life.admin_url = f"http://127.0.0.1:{admin.port}"
        yield


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(
    ("agentex_host", "sgp_host"),
    [("localhost", "localhost"), ("agentex.localhost", "localhost."), (AGENTEX, SGP)],
    ids=["localhost", "below localhost", "in hosts"],
)
@pytest.mark.parametrize(
    "own", [IPV6, pytest.param(IPV4, marks=pytest.mark.nightly)], ids=["IPv6 only", "IPv4 only"]
)
async def test_loopback_of_the_other_family(
    tmp_path: Path, agentex_host: str, sgp_host: str, address: str, own: str
) -> None:
    """Both loopback addresses are reached by name, whichever addresses the pod has."""
    etc = Etc(tmp_path / "etc", {"localhost": "127.0.0.1", AGENTEX: address, SGP: address})
    with namespace(own) as network:
        async with (
            pod(tmp_path, SIDECAR_LISTENER__PASS_THROUGH="true") as here,
            Relay(here.agentex.port, sock=network.listen(address)) as agentex,
            Relay(here.sgp.port, sock=network.listen(address)) as sgp,
        ):
            passes_through(here.sgp)
            here.settings["AGENTEX_BASE_URL"] = f"http://{agentex_host}:{agentex.port}"
            here.settings["SGP_CLIENT_BASE_URL"] = f"http://{sgp_host}:{sgp.port}"
            life = await here.start(*network.wrapper, *etc.wrapper)
            async with reachable(life, network):
                await here.post(life)
                await here.delivers()
                assert await passed_through(life) == 200
                await here.ends(life)


async def passed_through(life: SidecarRun) -> int:
    """Send a request that is passed through to SGP; return the status of its response."""
    timeout = aiohttp.ClientTimeout(ANSWER_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(f"{life.url}/v4/models") as reply,
    ):
        return reply.status


async def test_a_proxy_on_loopback(tmp_path: Path) -> None:
    """A proxy beside the sidecar, on 127.0.0.1 only, is reached in a pod with IPv6 only."""
    with namespace(IPV6) as network:
        async with (
            pod(tmp_path) as here,
            tinyproxy(tmp_path / "proxy") as proxy,
            Relay(proxy.port, sock=network.listen("127.0.0.1")) as beside,
        ):
            life = await here.start(*network.wrapper, HTTP_PROXY=f"http://localhost:{beside.port}")
            async with reachable(life, network):
                await here.post(life)
                await here.delivers()
                await here.ends(life)
            assert proxy.forwards(here.agentex.port) == here.agentex.requests_total


async def test_no_route(tmp_path: Path) -> None:
    """An address to which a pod has no route is in the text, with the port."""
    with namespace(IPV6) as network:
        async with pod(tmp_path) as here:
            here.settings["AGENTEX_BASE_URL"] = "http://10.1.2.3:8080"
            here.settings["SGP_CLIENT_BASE_URL"] = "http://[fd99::1]:8080"
            life = await here.start(*network.wrapper)
            async with reachable(life, network):
                await here.post(life)
                await here.holds(life, "agentex", "no route to 10.1.2.3:8080")
                await here.holds(life, "sgp", "no route to [fd99::1]:8080")
                await here.ends(life)
            life = await here.start(
                AGENTEX_BASE_URL=here.agentex.url, SGP_CLIENT_BASE_URL=here.sgp.url
            )
            await here.delivers()
            await here.ends(life)


async def test_names_over_tls(tmp_path: Path) -> None:
    """The name in a URL is the one that a certificate is checked for, also with a final dot."""
    ours = Authority(tmp_path)
    tls = ours.server("agentex.localhost", "localhost")
    async with (
        pod(tmp_path, SSL_CERT_FILE=str(ours.path)) as here,
        Relay(here.agentex.port, tls=tls) as agentex,
        Relay(here.sgp.port, tls=tls, host="::1") as sgp,
    ):
        here.settings["AGENTEX_BASE_URL"] = f"https://agentex.localhost.:{agentex.port}"
        here.settings["SGP_CLIENT_BASE_URL"] = f"https://LOCALHOST:{sgp.port}"
        life = await here.start()
        await here.post(life)
        await here.delivers()
        await here.ends(life)

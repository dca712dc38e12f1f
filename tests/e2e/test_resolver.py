"""A resolver that never answers, in a mount namespace of the sidecar's own.

The sidecar's names are looked up at a socket of the test, as its /etc/resolv.conf says.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from tests.e2e import parts
from tests.support.kill import Rig, SidecarRun
from tests.support.lives import GRACE_S, arrived, post_ends, shows, stops, within

# Another address than that of a resolver of this machine.
RESOLVER = "127.83.18.53"
KNOWN, ASKED_FOR = "known.example", "asked.example"
FILES = {
    # The resolver is asked five times in 25 s before a lookup fails.
    "resolv.conf": f"nameserver {RESOLVER}\noptions timeout:5 attempts:5\n",
    "nsswitch.conf": "hosts: files dns\n",
    "hosts": f"127.0.0.1 localhost {KNOWN}\n",
}
# A lookup takes milliseconds, and one that hangs is given up after a few seconds.
BOUND_S = 30.0


EITHER = pytest.mark.parametrize(
    "asked_for", ["agentex", pytest.param("sgp", marks=pytest.mark.nightly)]
)


class Resolver(asyncio.DatagramProtocol):
    """Answers no question, or with `answers` that every name is 127.0.0.1."""

    def __init__(self) -> None:
        self.questions = 0
        self.answers = False
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self.questions += 1
        if not self.answers or self._transport is None:
            return
        end = data.index(b"\0", 12) + 5  # of the only question: name, type, class
        is_a = data[end - 4 : end - 2] == b"\0\1"
        head = data[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_a else b"\0\0") + bytes(4)
        # The question's name, type A, class IN, a time to live, 4 bytes.
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1" if is_a else b""
        self._transport.sendto(head + data[12:end] + record, addr)


@asynccontextmanager
async def resolver() -> AsyncIterator[Resolver]:
    loop = asyncio.get_running_loop()
    try:
        transport, made = await loop.create_datagram_endpoint(Resolver, local_addr=(RESOLVER, 53))
    except OSError as error:
        parts.missing(f"no resolver's port: {error.strerror}")
    try:
        yield made
    finally:
        transport.close()


def in_namespace(folder: Path) -> list[str]:
    """The command in front of the sidecar's that gives it other files in /etc."""
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    mounts = [f"mount --bind {folder / name} /etc/{name}" for name in FILES]
    wrapper = ["unshare", "--mount", "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh"]
    parts.run(*wrapper, "true")
    return wrapper


@asynccontextmanager
async def sidecar(
    folder: Path, asked_for: str, **extra: str
) -> AsyncIterator[tuple[Rig, SidecarRun]]:
    """A sidecar for which the host of one upstream has to be looked up."""
    rig = Rig(folder, seed=1)
    async with rig.agentex, rig.sgp:
        hosts = {"agentex": KNOWN, "sgp": KNOWN, asked_for: ASKED_FOR}
        rig.settings |= {
            "AGENTEX_BASE_URL": f"http://{hosts['agentex']}:{rig.agentex.port}",
            "SGP_CLIENT_BASE_URL": f"http://{hosts['sgp']}:{rig.sgp.port}",
            "SIDECAR_SHUTDOWN__GRACE_S": str(GRACE_S),
            "SIDECAR_RETRY__MAX_S": "1",
            **extra,
        }
        rig.agentex.latency_s = rig.sgp.latency_s = 0.01
        try:
            yield rig, await rig.start(*in_namespace(folder))
        finally:
            await rig.kill_all()


async def ends(life: SidecarRun) -> None:
    """Check that SIGTERM ends the sidecar in time, and that nothing is lost."""
    assert await stops(life.process) == 0
    await life.ended()
    assert life.log[-1]["event"] == "stopped"


@EITHER
async def test_one_upstreams_name_hangs(tmp_path: Path, asked_for: str) -> None:
    """The other upstream gets its spans; this one is down, and gets them once there are answers."""
    async with resolver() as names, sidecar(tmp_path, asked_for) as (rig, life):
        is_agentex = asked_for == "agentex"
        one, other = (rig.agentex, rig.sgp) if is_agentex else (rig.sgp, rig.agentex)
        first = {f"first-{number}" for number in range(20)}
        await post_ends(life.url, first)
        assert await arrived(other, first)
        assert await shows(life, lambda status: status["sinks"][asked_for]["state"] == "down")
        second = {f"second-{number}" for number in range(20)}
        await post_ends(life.url, second)
        assert await arrived(other, second)
        assert names.questions > 0
        assert not one.complete
        names.answers = True
        assert await arrived(one, first | second)
        await ends(life)


@EITHER
async def test_stopping_while_a_name_hangs(tmp_path: Path, asked_for: str) -> None:
    """SIGTERM ends the process in time, and the next one delivers what is left."""
    async with resolver() as names, sidecar(tmp_path, asked_for) as (rig, life):
        spans = {f"s-{number}" for number in range(20)}
        await post_ends(life.url, spans)
        assert await within(BOUND_S, lambda: names.questions > 0)
        await ends(life)
        names.answers = True
        following = await rig.start(*in_namespace(tmp_path))
        for upstream in (rig.agentex, rig.sgp):
            assert await arrived(upstream, spans)
        await ends(following)


async def test_many_accounts_whose_host_hangs(tmp_path: Path) -> None:
    """Lookups for eight accounts of SGP take nothing from those for Agentex."""
    relay = {"SIDECAR_SGP__RELAY": "true", "SGP_ACCOUNT_ID": "", "SGP_API_KEY": ""}
    async with resolver() as names, sidecar(tmp_path, "sgp", **relay) as (rig, life):
        spans: set[str] = set()
        for turn in range(4):
            for account in range(8):
                added = {f"{turn}-{account}-{number}" for number in range(3)}
                headers = {"x-api-key": "key", "x-selected-account-id": f"account-{account}"}
                await post_ends(life.url, added, **headers)
                spans |= added
            assert await arrived(rig.agentex, spans)
            assert await within(BOUND_S, lambda: names.questions > 0)
            # Its connections end, so that the next turn looks the name up again.
            await rig.agentex.stop()
            await rig.agentex.start(rig.agentex.port)
        await ends(life)
        assert not rig.sgp.complete

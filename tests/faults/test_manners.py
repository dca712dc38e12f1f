"""Healthy upstreams that refuse requests: credentials, wrong URLs, rate and size limits."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Answer, Recorded, Scripted
from tests.support.faults import World, end, fast, for_a_while, now, span, world

MIB = 2**20


def statuses(w: World, status: int) -> list[float]:
    """When requests got this status, at either upstream."""
    return [r.at for upstream in w.upstreams for r in upstream.requests if r.status == status]


@pytest.mark.parametrize("seconds", [2, 320])
@pytest.mark.parametrize("status", [401, 403])
@fast
async def test_a_good_key_is_refused_for_a_while(status: int, seconds: int) -> None:
    """Key rotation (2 s) or a cached refusal (300 s): the lane holds, probes and recovers."""
    async with world(AgentexStandIn(api_key="key"), agentex__api_key="key") as w:
        for upstream in w.upstreams:
            upstream.rule = for_a_while(seconds, status)
        await w.feed(10)
        if seconds > 20:
            assert w.lane("agentex")["state"] == w.lane("sgp")["state"] == "unauthorized"
        await w.finish()
        assert len(statuses(w, status)) < 100


@fast
async def test_a_new_key_is_relayed_by_the_agent() -> None:
    """After 401s, a new key from the agent is used immediately, also for waiting spans."""
    async with world(AgentexStandIn(api_key="new")) as w:
        old = {f"o{number}": span(f"o{number}") for number in range(20)}
        await w.post(*map(end, old.values()), x_agent_api_key="old")
        await w.until(lambda: w.lane("agentex")["state"] == "unauthorized")
        await asyncio.sleep(60)
        assert not w.agentex.spans
        relayed_at = now()
        await w.post(end(span("n")), x_agent_api_key="new")
        await w.finish()
        assert min(r.at for r in w.agentex.requests if r.status == 200) == relayed_at


@fast
async def test_no_key_until_one_is_relayed() -> None:
    """With `sgp.relay`, SGP gets no request before the agent's credentials arrive."""
    sgp = SgpStandIn(api_key="theirs", account_id="account")
    pod_has_none = ("SGP_API_KEY", "SGP_ACCOUNT_ID")
    async with world(sgp=sgp, sgp__relay="true", without=pod_has_none) as w:
        await w.feed(5)
        await asyncio.sleep(100)
        assert not w.sgp.requests
        await w.post(end(span("n")), x_api_key="theirs", x_selected_account_id="account")
        await w.finish()


@fast
async def test_the_key_file_changes(tmp_path: Path) -> None:
    """After 401s, a new key file is used; it is replaced by a rename, as Kubernetes does it."""
    files = {name: tmp_path / name for name in ("agentex", "sgp")}
    for file in files.values():
        file.write_text("old\n")
    async with world(
        AgentexStandIn(api_key="new"),
        SgpStandIn(api_key="new"),
        agentex__api_key_file=files["agentex"],
        sgp__api_key="",
        sgp__api_key_file=files["sgp"],
    ) as w:
        await w.feed(5)
        await w.until(lambda: w.lane("sgp")["state"] == "unauthorized")
        for file in files.values():
            renamed = file.with_suffix(".new")
            renamed.write_text("new\n")
            os.utime(renamed, (2e9, 2e9))
            renamed.replace(file)
        await w.finish()


@pytest.mark.parametrize("key", [b"two\nlines", b"nul\0", b"\x1b[0m", b"", b"\xff"])
@fast
async def test_an_invalid_key_file(key: bytes, tmp_path: Path) -> None:
    """A key that no header can hold makes its own lane wait until the file is fixed."""
    file = tmp_path / "key"
    file.write_bytes(key)
    async with world(sgp=SgpStandIn(api_key="good"), sgp__api_key_file=file, sgp__api_key="") as w:
        await w.feed(5)
        await asyncio.sleep(60)
        assert w.agentex.complete == set(w.accepted)
        assert not w.sgp.spans
        file.write_text("good")
        os.utime(file, (2e9, 2e9))
        await w.finish()


@fast
async def test_an_agents_key_of_odd_bytes() -> None:
    """A relayed key with arbitrary bytes does no harm: spans are delivered with the next key."""
    async with world(AgentexStandIn(api_key="good")) as w:
        body = json.dumps(end(span("a"))).encode()
        head = b"POST /v1/spans HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += b"x-agent-api-key: k\xff\xfe\xed\xa0\x80y\r\nContent-Length: %d\r\n\r\n" % len(body)
        status, _ = await w.running.raw(head + body)
        assert status == 202
        await asyncio.sleep(60)
        await w.post(end(span("b")), x_agent_api_key="good")
        await w.finish()
        assert set(w.agentex.spans) == {"a", "b"}


def moved(status: int) -> Answer:
    """The response from a wrong base URL."""
    detail = b'{"detail":"Not Found"}'
    location = {"Location": "http://127.0.0.1:9/elsewhere"} if status < 400 else {}
    return Answer(status, detail, location)


@pytest.mark.parametrize("status", [404, 405, 307])
@fast
async def test_wrong_base_url(status: int) -> None:
    """While another server responds, writes are kept and delivered later."""
    async with world() as w:
        for upstream in w.upstreams:
            upstream.rule = for_a_while(300, moved(status))
        await w.feed(10)
        await asyncio.sleep(60)
        assert w.lane("agentex")["state"] == w.lane("sgp")["state"] == "down"
        assert w.lane("agentex")["depth"] == len(w.accepted)
        await w.finish()
        assert len(statuses(w, status)) < 1000


@fast
async def test_rate_limit() -> None:
    """With a limit of five requests a second, everything arrives with few 429s."""

    def limited() -> Callable[[Recorded], Scripted]:
        taken: list[float] = []

        def rule(request: Recorded) -> Scripted:
            taken[:] = [at for at in taken if at > request.at - 1]
            if len(taken) >= 5:
                return Answer(429, headers={"Retry-After": "1"})
            taken.append(request.at)
            return None

        return rule

    async with world() as w:
        for upstream in w.upstreams:
            upstream.rule = limited()
        await w.post(*[end(span(f"burst{number}")) for number in range(100)])
        await w.feed(10, per_s=2)
        await w.finish()
        assert len(statuses(w, 429)) < 2 * len(w.accepted)


@pytest.mark.parametrize("max_batch_bytes", ["1MiB", "16MiB"])
@fast
async def test_413(max_batch_bytes: str) -> None:
    """1,000 spans of 20 KB against a limit of 1 MiB all arrive, and the limit is learned."""
    async with world(
        AgentexStandIn(max_body=MIB), SgpStandIn(max_body=MIB), sgp__max_batch_bytes=max_batch_bytes
    ) as w:
        text = "x" * 20_000
        for hundred in range(10):
            spans = [span(f"{hundred}-{n}", input={"text": text}) for n in range(100)]
            await w.post(*map(end, spans))
        await w.finish()
        assert len(statuses(w, 413)) <= 15


@fast
async def test_413_of_one_span() -> None:
    """A single span that is too large becomes a dead letter; its neighbors do not."""
    async with world(AgentexStandIn(max_body=MIB), SgpStandIn(max_body=MIB)) as w:
        made = [span(f"s{number}") for number in range(50)]
        made[20]["output"] = {"text": "x" * MIB}
        await w.post(*map(end, made))
        await w.finish(dead=[("agentex", "s20"), ("sgp", "s20")])
        assert w.lane("sgp")["dead_lettered_by_reason"]["too_large"] == 1

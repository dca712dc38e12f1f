"""`/status`: its documented schema, and that its values are true."""

import asyncio
import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Answer
from sidecar.operate.status import Status
from sidecar.spool.spool import Spool
from tests.support.faults import fast
from tests.support.spans import make_event
from tests.support.world import Running, running_app, upstream

Json = dict[str, Any]
DOCS = Path(__file__).parents[2] / "docs" / "status.md"
SECRET = "key-5f2e81"
TYPES = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "list": (list,),
    "object": (dict,),
}
# Objects whose keys are names; the document has one row for all of them.
NAMED = {
    "sinks": "SINK",
    "config": "SECTION",
    "series": "NAME",
    "rejected_by_reason": "REASON",
    "requests_by_code": "CODE",
    "not_taken_by_reason": "REASON",
    "forwarded_by_kind": "KIND",
    "skipped_by_reason": "REASON",
    "dead_lettered_by_reason": "REASON",
    "lost_by_reason": "REASON",
    "repaired_by_reason": "REASON",
    "requests_by_outcome": "OUTCOME",
    "flushes_by_outcome": "OUTCOME",
    "passed_through_by_outcome": "OUTCOME",
    "connections": "PORT",
}


def flat(value: object, path: str = "") -> dict[str, set[type]]:
    """Return every path with the types found there."""
    found: dict[str, set[type]] = {}
    if path:
        found[path] = {type(value)}
    children: list[tuple[str, object]] = []
    if isinstance(value, dict):
        name = path.rpartition(".")[2]
        stands_for = "KEY" if path == "config.SECTION" else NAMED.get(name)
        children = [(f"{path}.{stands_for or key}", item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        children = [(f"{path}[]", item) for item in value]
    for inner, item in children:
        for key, types in flat(item, inner.removeprefix(".")).items():
            found.setdefault(key, set()).update(types)
    return found


def documented(heading: str) -> dict[str, set[type]]:
    """Return the table under a heading of docs/status.md: paths and their allowed types."""
    section = DOCS.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", section, re.MULTILINE)
    assert rows
    return {
        path: {kind for word in words.strip().split(" or ") for kind in TYPES[word]}
        for path, words in rows
    }


async def get(app: Running, path: str) -> Json:
    """Return a JSON response of the admin port."""
    async with app.client.get(app.admin_url + path) as response:
        assert response.status == 200
        decoded: Json = orjson.loads(await response.read())
        return decoded


def agree(real: dict[str, set[type]], heading: str) -> None:
    """Assert that the document has exactly the real keys, and allows each value's type."""
    table = documented(heading)
    assert real.keys() == table.keys()
    assert {path: types - table[path] for path, types in real.items() if types - table[path]} == {}


async def test_the_document_has_every_key(tmp_path: Path) -> None:
    """docs/status.md is the contract of /status and /status/history."""
    async with upstream() as agentex:
        environ = {"AGENTEX_BASE_URL": agentex.url, "SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}
        settings = {
            "spool__path": tmp_path / "spool",
            "sgp__base_url": "http://127.0.0.1:1",
            "shutdown__grace_s": 0,
            "pod__name": "p",
            "pod__namespace": "s",
            "pod__node": "n",
        }
        async with running_app(environ, **settings) as app:
            first = flat(await get(app, "/status"))
            await app.post(make_event(kind="end"))
            async with asyncio.timeout(30):
                while True:
                    second = flat(await get(app, "/status"))
                    if "sinks.SINK.last_error.kind" in second:
                        break
                    await asyncio.sleep(0.01)
            history = flat(await get(app, "/status/history"))
            agree(history, "/status/history")
    async with AgentexStandIn() as agentex:
        agentex.rule = lambda _: Answer(422)
        async with running_app({"AGENTEX_BASE_URL": agentex.url}) as app:
            await app.post(make_event(kind="end"))
            async with asyncio.timeout(30):
                while True:
                    third = flat(await get(app, "/status"))
                    if "dead_letters.last[]" in third:
                        break
                    await asyncio.sleep(0.01)
    paths = first | second | third
    agree({key: merged(key, first, second, third) for key in paths}, "/status")


def merged(path: str, *reports: dict[str, set[type]]) -> set[type]:
    """Return the types that a path has in any of the reports."""
    return set[type]().union(*(each.get(path, set()) for each in reports))


async def test_no_secret_and_no_content_is_shown() -> None:
    """Keys and passwords in URLs are `***`; payloads, names and ids of spans do not appear."""
    words = ("prompt-91c7", "span-name-7d21", "span-id-4b77", "trace-id-a0e3")
    async with upstream() as agentex:
        environ = {
            "AGENTEX_BASE_URL": agentex.url.replace("//", f"//user:{SECRET}@:%2F{SECRET}@"),
            "SGP_API_KEY": SECRET,
            "SGP_ACCOUNT_ID": "a",
            "SIDECAR_AGENTEX__API_KEY": SECRET,
            "SIDECAR_NETWORK__PROXY": f"user:{SECRET}@%40{SECRET}@proxy:3128",
            "SIDECAR_NETWORK__NO_PROXY": "*",
        }
        settings = {"sgp__base_url": "http://127.0.0.1:1", "shutdown__grace_s": 0}
        async with running_app(environ, **settings) as app:
            fields = {"input": {"q": words[0]}, "name": words[1], "trace_id": words[3]}
            assert (await app.post(make_event(words[2], kind="end", **fields))).status == 202
            await asyncio.wait_for(agentex.asked.wait(), 30)
            shown = str([await get(app, "/status"), await get(app, "/status/history")])
    assert "'base_url': 'http://***@127.0.0.1:" in shown
    assert "'proxy': '***@proxy:3128'" in shown
    assert "'api_key': '***'" in shown
    assert not [word for word in (*words, SECRET) if word in shown]


@pytest.mark.parametrize(
    "known", [{"name": "agent-0", "namespace": "a", "node": "n"}, {"node": "n"}]
)
async def test_the_pod(known: Json) -> None:
    """`pod` has what the configuration says, and null for what it does not say."""
    unknown = dict.fromkeys(("name", "namespace", "node"))
    async with running_app(**{f"pod__{key}": name for key, name in known.items()}) as app:
        assert (await get(app, "/status"))["pod"] == unknown | known


@fast
async def test_an_outage_and_its_end() -> None:
    """An outage shows in the state, the last error, the depth, the answers and the history."""
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        environ = {
            "AGENTEX_BASE_URL": agentex.url,
            "SGP_CLIENT_BASE_URL": sgp.url,
            "SGP_API_KEY": "k",
            "SGP_ACCOUNT_ID": "a",
        }
        async with running_app(environ) as app:
            await app.post(make_event("well", kind="end"))
            await asyncio.sleep(2)
            before = app.app.status()["sinks"]["sgp"]
            assert (before["state"], before["last_error"], before["forwarded"]) == ("up", None, 1)
            assert before["forwarded_per_s"] > 0
            assert before["request_p50_s"] is not None
            sgp.rule = lambda _: Answer(503)
            for number in range(5):
                await app.post(make_event(f"late-{number}", kind="end"))
                await asyncio.sleep(3)
            during = app.app.status()
            lane = during["sinks"]["sgp"]
            assert (lane["state"], lane["depth"]) == ("down", 5)
            assert (lane["last_error"]["kind"], lane["last_error"]["text"]) == (
                "unavailable",
                "HTTP 503",
            )
            assert during["sinks"]["agentex"]["last_error"] is None
            assert [answer["level"] for answer in during["answers"]] == ["ok", "warn", "bad"]
            assert during["answers"][2]["answer"] == "SGP is down"
            sgp.rule = None
            await asyncio.sleep(60)  # longer than any back-off
            after = app.app.status()
            assert after["sinks"]["sgp"]["state"] == "up"
            assert [answer["level"] for answer in after["answers"]] == ["ok", "ok", "ok"]
            past = await get(app, "/status/history")
            series = past["series"]
            down = past["states"].index("down")
            assert down in series["sgp.state"]
            assert {past["states"][n] for n in series["agentex.state"]} <= {"not_asked", "up"}
            assert max(series["sgp.depth"]) == 5
            assert len(series["sgp.depth"]) == past["next"] >= after["samples"]


@fast
async def test_refused_events_are_reported() -> None:
    """With a full queue, the first answer is that agents are being refused."""
    async with running_app(queue__max_bytes="4KiB") as app:
        big = {"input": {"text": "x" * 2000}}
        assert (await app.post(make_event("fits", kind="end", **big))).status == 202
        await asyncio.sleep(2)
        assert (await app.post(make_event("not", kind="end", **big))).status == 429
        await asyncio.sleep(2)
        status = app.app.status()
        assert status["intake"]["rejected_by_reason"]["no_room"] == 1
        assert status["answers"][0]["answer"] == "Events are being rejected"
        assert status["answers"][2]["level"] == "bad"


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_tick_samples_once_in_five_seconds(count: int) -> None:
    """Ticks are about a second apart, and a little late."""
    times = [second * 1.01 for second in range(1 + 5 * count)]
    assert samples(times) == 1 + count


def samples(times: list[float]) -> int:
    """Return how many samples are taken by ticks at these times."""

    async def count() -> int:
        async with running_app(shutdown__grace_s=0) as running:
            app = running.app
            status = Status(
                app._config,
                app.admission,
                app.listener._metrics,
                app.lanes,
                app.accounts,
                app.budget,
                Spool(),
                app.operations.kept_letters,
                memory_limit=None,
                ready=lambda: True,
                phase=lambda: "running",
                url=lambda: None,
                last_shutdown_lost=lambda: 0,
                lines_dropped=lambda: 0,
                connections=dict,
                now=times[0],
            )
            for now in times[1:]:
                status.tick(now, 0.0)
            return int(status.history(0)["next"])

    return asyncio.run(count())

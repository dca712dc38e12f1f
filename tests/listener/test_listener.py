"""The listener over real HTTP: every response in docs/api.md."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from tests.support.spans import make_event
from tests.support.world import NOWHERE, Running, running_app, upstream

EVENT = orjson.dumps(make_event())
BAD = make_event("bad", kind="end", end_time="2025-01-01T00:00:00Z")


@pytest.fixture
async def app() -> AsyncIterator[Running]:
    """An app whose upstream is unreachable."""
    async with running_app() as running:
        yield running


def post(*headers: bytes, body: bytes = EVENT, line: bytes = b"POST /v1/spans HTTP/1.1") -> bytes:
    """A request as bytes, for what no HTTP client would send."""
    head = [line, b"Content-Type: application/json", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*head, b"", body])


async def test_202(app: Running) -> None:
    """Valid events are accepted as one object, an array, or NDJSON."""
    one, two = make_event("a"), make_event("a", kind="end")
    reply = await app.post(one)
    assert (reply.status, reply.body) == (202, {"accepted": 1, "rejected": []})
    assert reply.headers["Content-Type"] == "application/json"
    reply = await app.post([two, one])
    assert (reply.status, reply.body) == (202, {"accepted": 2, "rejected": []})
    lines = orjson.dumps(one) + b"\n" + orjson.dumps(two) + b"\n"
    reply = await app.post(lines, content_type="application/x-ndjson")
    assert (reply.status, reply.body) == (202, {"accepted": 2, "rejected": []})
    assert app.app.accounting.received == 5


async def test_a_payload_that_an_end_repeats_is_stored_once(app: Running) -> None:
    """An END that repeats the input of its START shares the same bytes object."""
    for end in ("a", "b"):
        await app.post(make_event(end, input={"q": end}))
        start = app.app.admission.open_spans.started(("t1", end))
        assert start is not None
        await app.post(make_event(end, kind="end", input={"q": end}, output={}))
        queue = app.app.lanes[0].branches[0].queue
        writes = [*queue.ready.values(), *queue._in_flight.values()]
        write = next(write for write in writes if write.id == end)
        assert write.end_time is not None
        assert write.input is start.input


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;",
    ],
)
async def test_content_types(app: Running, content_type: str) -> None:
    """Parameters and case of the content type are ignored."""
    assert (await app.post(make_event(), content_type=content_type)).status == 202


async def test_202_for_some_valid_events(app: Running) -> None:
    """Of several events the valid ones are accepted, and the others are listed with the reason."""
    reply = await app.post([make_event("a"), BAD])
    assert reply.status == 202
    error = "span.end_time is before span.start_time"
    rejected = [{"index": 1, "id": "bad", "error": error}]
    assert reply.body == {"accepted": 1, "rejected": rejected}
    assert app.app.accounting.received == 1


async def test_400_for_no_valid_event(app: Running) -> None:
    """Without a valid event, the same body has status 400."""
    reply = await app.post([BAD])
    assert reply.status == 400
    assert reply.body["accepted"] == 0
    assert [(r["index"], r["id"]) for r in reply.body["rejected"]] == [(0, "bad")]
    assert app.app.accounting.received == 0


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"5"])
async def test_400_for_invalid_json(app: Running, body: bytes) -> None:
    """A body that is not JSON, or not an event, is one rejection without an id."""
    reply = await app.post(body)
    assert reply.status == 400
    assert reply.body["accepted"] == 0
    assert [(r["index"], r["id"]) for r in reply.body["rejected"]] == [(0, None)]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"[]", "application/json"),
        (b" [\n] ", "application/json; charset=utf-8"),
        (b"", "application/x-ndjson"),
        (b"\n \r\n\t\n", "application/x-ndjson"),
    ],
)
async def test_400_for_a_body_without_an_event(
    app: Running, body: bytes, content_type: str
) -> None:
    """A body without any event gets 400 and no rejection; the error shows what to send."""
    reply = await app.post(body, content_type=content_type)
    assert (reply.status, reply.body["accepted"], reply.body["rejected"]) == (400, 0, [])
    assert reply.body["error"].startswith("the body has no event; an event is {")


WRONG: list[tuple[bytes, str]] = [
    (b"", "the body is empty"),
    (b" \r\n", "the body is empty"),
    (b"{}", "event: Object missing required field `event_type`"),
    (b"[[]]", "event: Expected `object`, got `array`"),
    (b'"start"', "event: Expected `object`, got `str`"),
    (b'{"event_type":"start"}', "event: Object missing required field `span`"),
    (b'{"event_type":"start","span":{}}', "span: Object missing required field `id`"),
    (b'{"event_type":1,"span":{}}', "event_type: Expected `str`, got `int`"),
    (b'{"event_type":"start"', "not JSON: Input data was truncated"),
]


@pytest.mark.parametrize(("body", "why"), WRONG, ids=[body.decode() for body, _ in WRONG])
async def test_a_400_says_why_and_what_to_send(app: Running, body: bytes, why: str) -> None:
    """It rejects by name what is wrong, and its error shows what an event is."""
    reply = await app.post(body)
    assert (reply.status, reply.body["accepted"]) == (400, 0)
    assert [(r["index"], r["error"]) for r in reply.body["rejected"]] == [(0, why)]
    assert '"rejected" says why; an event is {"event_type": "start"' in reply.body["error"]


JSON_TYPE = 'send the header "Content-Type: application/json"'


@pytest.mark.parametrize(
    ("headers", "what"),
    [
        ({"content_type": "text/plain"}, JSON_TYPE),
        ({"content_type": "application/x-www-form-urlencoded"}, JSON_TYPE),
        ({"content_type": "multipart/form-data; boundary=x"}, JSON_TYPE),
        ({"content_type": ""}, "it is missing"),
        ({"content_encoding": "br"}, "without the header"),
        ({"content_encoding": "gzip, gzip"}, "without the header"),
    ],
)
async def test_415(app: Running, headers: dict[str, str], what: str) -> None:
    """An unsupported content type or encoding gets 415: what is supported, and what to do."""
    reply = await app.post(EVENT, **headers)
    assert reply.status == 415
    assert "must be" in reply.body["error"]
    assert what in reply.body["error"]


@pytest.mark.parametrize("path", ["/spans", "/v5/spans/batch"])
async def test_415_of_an_sdk_route(path: str) -> None:
    """The SDK routes say it in `detail`, and offer only what they read."""
    settings = {"AGENTEX_BASE_URL": NOWHERE, "SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}
    async with running_app(settings | {"SGP_CLIENT_BASE_URL": NOWHERE}, shutdown__grace_s=0) as app:
        reply = await app.request("POST", path, data=b"a=b")
    assert reply.status == 415
    assert JSON_TYPE in reply.body["detail"]
    assert "ndjson" not in reply.body["detail"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/v2/spans"), ("PUT", "/x")])
async def test_404(app: Running, method: str, path: str) -> None:
    """An unknown path gets 404, which names the right one."""
    reply = await app.request(method, path, data=EVENT)
    assert reply.status == 404
    assert "/v1/spans" in reply.body["error"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/spans", "POST"), ("PUT", "/v1/spans", "POST"), ("POST", "/readyz", "GET")],
)
async def test_405(app: Running, method: str, path: str, allowed: str) -> None:
    """A wrong method gets 405, which names the allowed ones."""
    reply = await app.request(method, path)
    assert (reply.status, reply.headers["Allow"]) == (405, allowed)
    assert allowed in reply.body["error"]


HOSTS = [
    (b"localhost", 202),
    (b"localhost:8318", 202),
    (b"localhost.", 202),
    (b"LocalHost", 202),
    (b"x.localhost:8318", 202),
    (b"127.0.0.1:8318", 202),
    (b"127.0.0.1:", 202),
    (b"127.1.2.3", 202),
    (b"127.1", 202),
    (b"[::1]:8318", 202),
    (b"[0::1]", 202),
    (b"evil.example", 403),
    (b"evil.example:8318", 403),
    (b"localhost.evil.example", 403),
    (b"notlocalhost", 403),
    (b"10.0.0.1", 403),
    (b"0.0.0.0", 403),
    (b"[::2]", 403),
    (b"::1", 403),
    (b"127.evil.example", 403),
    (b"127.0.0.1 evil.example", 403),
    (b"localhost@evil.example", 403),
    (b"localhost:8318:80", 403),
    (b"\xff", 403),
    (b"", 403),
]
ALLOWED = [
    (b"agents.example.svc", 202),
    (b"agents.example.svc:8318", 202),
    (b"AGENTS.Example.svc.:80", 202),
    (b"10.0.0.1:8318", 202),
    (b"[fd00::1]", 202),
    (b"[FD00:0::1]:8318", 202),
    (b"[fd00::2]:8318", 202),
    (b"xn--bcher-kva.example", 202),
    (b"localhost", 202),
    (b"x.agents.example.svc", 403),
    (b"agents.example.svc.evil.example", 403),
    (b"example.svc", 403),
    (b"10.0.0.2", 403),
]


@pytest.mark.parametrize(("host", "status"), HOSTS)
async def test_403_for_another_host(app: Running, host: bytes, status: int) -> None:
    """Only loopback hosts are accepted, so a web page can't get in by DNS rebinding."""
    got, body = await app.raw(post(b"Host: " + host))
    assert got == status
    if status == 403:
        error = orjson.loads(body)["error"]
        assert "add the name to listener.allowed_hosts" in error
        assert "evil" not in error


async def test_allowed_hosts() -> None:
    """So are the names and addresses of `listener.allowed_hosts`, in any case, with any port."""
    names = "Agents.example.svc., 10.0.0.1, fd00:0::1, [fd00::2], bücher.example"
    async with running_app(listener__allowed_hosts=names) as app:
        got = [(host, (await app.raw(post(b"Host: " + host)))[0]) for host, _ in ALLOWED]
        # A host that was accepted is remembered as it was written: again, in the same order.
        again = [(host, (await app.raw(post(b"Host: " + host)))[0]) for host, _ in ALLOWED]
        page = post(b"Host: agents.example.svc", b"Origin: http://agents.example.svc:8318")
        assert (await app.raw(page))[0] == 403
    assert got == again == ALLOWED


async def test_the_address_that_is_listened_on_is_a_host() -> None:
    """`listener.hosts` need not be repeated in `listener.allowed_hosts`."""
    async with running_app(listener__hosts="0.0.0.0") as app:
        assert (await app.raw(post(b"Host: 0.0.0.0:8318")))[0] == 202
        assert (await app.raw(post(b"Host: 10.0.0.1:8318")))[0] == 403


async def test_http_1_0_without_a_host(app: Running) -> None:
    """HTTP/1.0 does not require `Host`."""
    line = b"POST /v1/spans HTTP/1.0"
    assert (await app.raw(post(line=line)))[0] == 202


@pytest.mark.parametrize("path", ["/v1/spans", "/readyz", "/x"])
async def test_403_for_web_pages(app: Running, path: str) -> None:
    """A request with an `Origin` gets 403 on every path, which no setting changes."""
    reply = await app.request("POST", path, headers={"Origin": app.url}, data=EVENT)
    assert reply.status == 403
    assert "Origin" in reply.body["error"]
    assert "listener." not in reply.body["error"]
    assert app.app.accounting.received == 0


async def test_readyz(app: Running) -> None:
    """GET and HEAD /readyz get 200 while the port accepts events."""
    assert (await app.request("GET", "/readyz")).status == 200
    assert (await app.request("HEAD", "/readyz")).status == 200


async def test_413_for_more_than_an_empty_lane_holds() -> None:
    """A request that would not fit into an empty lane gets 413; a smaller one is accepted."""
    async with running_app(queue__max_bytes="8KiB") as app:
        reply = await app.post([make_event(str(number)) for number in range(9)])
        assert reply.status == 413
        assert "(7373 bytes)" in reply.body["error"]
        assert (await app.post([make_event(str(number)) for number in range(2)])).status == 202


async def test_429_for_too_many_pipelined_requests(app: Running) -> None:
    """It carries Retry-After, as every 429 of this port does."""
    response = app.app.listener._malformed(429, "64 earlier requests wait for their responses")
    assert list(response.headers) == [("Retry-After", "1")]
    assert list(app.app.listener._malformed(400, "malformed request").headers) == []


async def test_429_takes_nothing_of_a_request() -> None:
    """A request that does not fit gets 429: no event of it is accepted, and nothing is dropped."""
    async with running_app(queue__max_bytes="64KiB") as app:
        events = [make_event(str(n), kind="end", input={"p": "x" * 9000}) for n in range(5)]
        assert (await app.post(events)).status == 202
        before = app.app.budget.used
        reply = await app.post([make_event("small"), *events[:2]])
        assert (reply.status, reply.body.keys()) == (429, {"error"})
        assert reply.headers["Retry-After"] == "1"
        assert (app.app.budget.used, app.app.accounting.received) == (before, 5)
        assert (await app.post(make_event("small"))).status == 202


async def test_503_while_stopping() -> None:
    """While the sidecar drains, new events get 503 and accepted ones are delivered."""
    async with upstream(stalled=True) as agentex:
        async with running_app({"AGENTEX_BASE_URL": agentex.url}) as app:
            assert (await app.post(make_event("a", kind="end"))).status == 202
            await agentex.asked.wait()
            app.app.stop()
            while (await app.request("GET", "/readyz")).status == 200:
                pass
            for reply in (await app.post(make_event()), await app.request("GET", "/readyz")):
                assert (reply.status, reply.body.keys()) == (503, {"error"})
                assert reply.headers["Retry-After"] == "1"
            agentex.gate.set()
            assert await app.task
        assert [request.body["id"] for request in agentex.requests] == ["a"]


async def test_keep_alive(app: Running) -> None:
    """A connection is reused after each request, including refused ones."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    statuses = []
    host = b"Host: localhost"
    line = b"POST /x HTTP/1.1"
    for request in (post(host), post(host, body=b"{"), post(host, line=line), post(host)):
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).split()
        statuses.append(int(head[1]))
        await reader.readexactly(int(head[head.index(b"Content-Length:") + 1]))
    writer.close()
    await writer.wait_closed()
    assert statuses == [202, 400, 404, 202]


async def test_every_response_is_counted(app: Running) -> None:
    """Requests are counted by status, rejected events by reason."""
    await app.post([make_event("a"), BAD])
    await app.post(b"{")
    await app.post(EVENT, content_type="text/plain")
    async with app.client.get(app.admin_url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    for line in (
        "trace_sidecar_ingest_duration_seconds_count 3.0",
        'trace_sidecar_rejected_events_total{reason="invalid"} 3.0',
        'trace_sidecar_received_events_total{kind="start"} 1.0',
    ):
        assert line in lines
    async with app.client.get(app.admin_url + "/status") as response:
        intake = (await response.json())["intake"]
    assert {code: n for code, n in intake["requests_by_code"].items() if n} == {
        "202": 1,
        "400": 1,
        "415": 1,
    }
    assert {reason: n for reason, n in intake["rejected_by_reason"].items() if n} == {
        "invalid": 1,
        "malformed": 1,
        "unsupported": 1,
    }

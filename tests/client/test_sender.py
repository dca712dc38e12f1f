"""The client's sender: what arrives, in what order, and how undeliverable events are counted."""

import asyncio
import json
import logging
import threading
from contextlib import ExitStack

import pytest
from trace_sidecar_client import Credentials, Sender, delivery, settings
from trace_sidecar_client import sender as module

from tests.support.client import ACCEPTED, DEADLINE_S, Response, ScriptedSidecar, scripted
from tests.support.world import running_app, upstream

LATER = (503, {"Retry-After": "0.01"}, b'{"error":"stopping"}')


@pytest.fixture(autouse=True)
def _retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "INITIAL_BACKOFF_S", 0.01)


def event(name: str, padding: int = 0) -> bytes:
    """An encoded event with this span name."""
    return json.dumps({"event_type": "start", "span": {"name": name, "p": "x" * padding}}).encode()


def test_events_arrive_in_order_in_one_request_over_one_connection() -> None:
    """Events sent together share a request, and requests share a connection."""
    with scripted() as sidecar:
        sender = Sender(sidecar.url)
        for batch in ("a", "b"):
            for number in range(10):
                sender.send(event(f"{batch}{number}"))
            assert sender.flush(DEADLINE_S)
        assert [f"{b}{n}" for b in "ab" for n in range(10)] == sidecar.names
        assert len(sidecar.requests) <= 4
        assert sidecar.connections == 1
        assert sidecar.requests[0].path == "/v1/spans"
        assert sidecar.requests[0].headers["content-type"] == "application/x-ndjson"
        assert (sender.sent, sender.dropped, sender.waiting_bytes) == (20, {}, 0)


def test_batches_linger_again_after_a_flush() -> None:
    """A flush cuts the linger short only for the events that are queued at the time."""
    with scripted() as sidecar, scripted() as elsewhere:
        sender, other = Sender(sidecar.url, linger_s=DEADLINE_S), Sender(elsewhere.url)
        for name in "ab":
            sender.send(event(name))
            # By the time this is delivered, a sender that does not linger has sent.
            other.send(event("x"))
            assert other.flush(DEADLINE_S)
            sender.send(event(name))
            assert sender.flush(DEADLINE_S)
        sent = ["".join(e["span"]["name"] for e in request.events) for request in sidecar.requests]
        assert sent == ["aa", "bb"]


def test_a_batch_is_limited_in_events_and_bytes() -> None:
    """Many small events and a few large ones are both split into several requests."""
    with scripted() as sidecar:
        sidecar.may_respond.clear()
        sender = Sender(sidecar.url)
        sender.send(event("first"))
        sidecar.wait_for_requests(1)
        for number in range(600):
            sender.send(event(f"s{number}"))
        for number in range(5):
            sender.send(event(f"l{number}", padding=400_000))
        sidecar.may_respond.set()
        assert sender.flush(DEADLINE_S)
        sizes = [len(request.events) for request in sidecar.requests]
        assert sum(sizes) == 606
        assert max(sizes) == 256
        assert all(len(request.headers["content-length"]) <= 7 for request in sidecar.requests)
        assert len(sizes) >= 6


@pytest.mark.parametrize(
    "failure",
    [LATER, (429, {"Retry-After": "0.01"}, b""), (500, {}, b""), (408, {}, b""), (502, {}, b"x")],
    ids=["503", "429", "500", "408", "502"],
)
def test_temporary_failures_are_retried(failure: tuple[int, dict[str, str], bytes]) -> None:
    """A batch is resent until it is accepted, and later events wait behind it."""
    with scripted(failure, failure) as sidecar:
        sender = Sender(sidecar.url)
        sender.send(event("a"))
        sidecar.wait_for_requests(2)
        sender.send(event("b"))
        assert sender.flush(DEADLINE_S)
        assert sidecar.names == ["a", "a", "a", "b"]
        assert sender.sent == 2


def test_events_wait_for_a_sidecar_that_is_down() -> None:
    """Events survive refused connections before the sidecar starts and while it restarts."""
    sidecar = ScriptedSidecar()
    with sidecar.running():
        pass
    sender = Sender(sidecar.url)
    sender.send(event("before"))
    assert not sender.flush(0.0)
    with sidecar.running(sidecar.port):
        assert sender.flush(DEADLINE_S)
    sender.send(event("between"))
    with sidecar.running(sidecar.port):
        assert sender.flush(DEADLINE_S)
    assert sidecar.names == ["before", "between"]


def test_an_idle_connection_that_the_sidecar_closed_is_replaced() -> None:
    """The next request opens a new connection without a back-off."""
    closing = (202, {"Connection": "close"}, b'{"accepted":1,"rejected":[]}')
    with scripted(closing) as sidecar:
        sender = Sender(sidecar.url)
        for name in "ab":
            sender.send(event(name))
            assert sender.flush(DEADLINE_S)
        assert (sidecar.names, sidecar.connections) == (["a", "b"], 2)


def test_a_request_that_times_out_is_retried() -> None:
    """A sidecar that hangs does not hold up the sender beyond its timeout."""
    with scripted() as sidecar:
        sidecar.may_respond.clear()
        sender = Sender(sidecar.url, timeout_s=0.05)
        sender.send(event("a"))
        sidecar.wait_for_requests(2)
        sidecar.may_respond.set()
        assert sender.flush(DEADLINE_S)
        assert sender.sent == 1


def test_a_full_buffer_drops_new_events(caplog: pytest.LogCaptureFixture) -> None:
    """Queued and in-flight bytes stay within the limit; drops are counted and logged once."""
    with scripted() as sidecar:
        sidecar.may_respond.clear()
        sender = Sender(sidecar.url, max_bytes=3000)
        sender.send(event("a", 800))
        sidecar.wait_for_requests(1)
        for name in "bcde":
            sender.send(event(name, 800))
        assert sender.waiting_bytes <= 3000
        assert sender.dropped == {"buffer full": 2}
        sidecar.may_respond.set()
        assert sender.flush(DEADLINE_S)
        assert sidecar.names == ["a", "b", "c"]
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"span events dropped: 1 (buffer full) (sidecar: {sidecar.url})"]


def test_413_splits_the_batch() -> None:
    """Batches are halved until they fit; an event that never fits is dropped, the others arrive."""
    too_large: Response = (413, {}, b'{"error":"larger than 1KiB"}')
    with scripted(LATER, too_large, too_large, too_large, ACCEPTED, ACCEPTED) as sidecar:
        sender = Sender(sidecar.url, linger_s=DEADLINE_S)
        for name in "abcd":
            sender.send(event(name))
        assert sender.flush(DEADLINE_S)
        sent = ["".join(e["span"]["name"] for e in request.events) for request in sidecar.requests]
        assert sent == ["abcd", "abcd", "ab", "a", "b", "cd"]
        assert (sender.sent, sender.dropped) == (3, {"HTTP 413": 1})


def test_rejected_events_are_counted_by_reason() -> None:
    """A 202 or 400 that lists rejected events settles the whole batch, without a retry."""
    body = b'{"accepted":1,"rejected":[{"index":0,"id":"s","error":"span.name is empty"}]}'
    with scripted(LATER, (202, {}, body), (400, {}, body)) as sidecar:
        sender = Sender(sidecar.url, linger_s=DEADLINE_S)
        sender.send(event("a"))
        sender.send(event("b"))
        assert sender.flush(DEADLINE_S)
        sender.send(event("c"))
        assert sender.flush(DEADLINE_S)
        assert (sender.sent, sender.dropped) == (1, {"rejected: span.name is empty": 2})


def test_a_reason_is_visible_in_a_terminal() -> None:
    """What is not printable in a reason is escaped, because the agent logs it."""
    body = b'{"accepted":0,"rejected":[{"error":"\\u001b[31m\\n\\u007f\\u202e\\ud800 \xc3\xa9"}]}'
    with scripted((400, {}, body)) as sidecar:
        sender = Sender(sidecar.url)
        sender.send(event("a"))
        assert sender.flush(DEADLINE_S)
        assert sender.dropped == {r"rejected: \x1b[31m\n\x7f\u202e\ud800 é": 1}


@pytest.mark.parametrize("status", [301, 403, 404, 415])
def test_other_responses_drop_the_batch_only(status: int) -> None:
    """A response that no retry can change, or not a sidecar's, drops that batch and no more."""
    with scripted((status, {}, b"<html>secret</html>")) as sidecar:
        sender = Sender(sidecar.url)
        for name in "ab":
            sender.send(event(name))
            assert sender.flush(DEADLINE_S)
        assert (sender.sent, sender.dropped) == (1, {f"HTTP {status}": 1})


def test_log_lines_never_contain_span_content(caplog: pytest.LogCaptureFixture) -> None:
    """Neither events nor response bodies reach the log."""
    caplog.set_level(logging.DEBUG)
    with scripted((404, {}, b"secret"), (400, {}, b"secret"), (400, {}, b"[1]")) as sidecar:
        sender = Sender(sidecar.url)
        for _ in range(3):
            sender.send(event("secret"))
            assert sender.flush(DEADLINE_S)
        sender.finish(0.0)
        assert sum(sender.dropped.values()) == 3
    assert caplog.records
    assert "secret" not in caplog.text


def test_credentials_are_read_at_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given credentials win over the environment, which may change; malformed ones are not sent."""
    for name in ("AGENT_API_KEY", "SGP_API_KEY", "SGP_ACCOUNT_ID"):
        monkeypatch.delenv(name, raising=False)
    with scripted() as sidecar:
        sender = Sender(sidecar.url, credentials=Credentials(sgp_account_id="given"))
        sender.send(event("a"))
        assert sender.flush(DEADLINE_S)
        monkeypatch.setenv("AGENT_API_KEY", "agent")
        monkeypatch.setenv("SGP_API_KEY", "two\r\nlines")
        monkeypatch.setenv("SGP_ACCOUNT_ID", "environment")
        sender.send(event("b"))
        assert sender.flush(DEADLINE_S)
    names = {"x-agent-api-key", "x-api-key", "x-selected-account-id"}
    first, second = ({n: p.headers[n] for n in names & p.headers.keys()} for p in sidecar.requests)
    assert first == {"x-selected-account-id": "given"}
    assert second == {"x-selected-account-id": "given", "x-agent-api-key": "agent"}
    assert "given" not in repr(Credentials(sgp_account_id="given"))


def test_the_url_defaults_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter wins over `TRACE_SIDECAR_URL`, which wins over the default; empty is unset."""
    monkeypatch.setenv("TRACE_SIDECAR_URL", "")
    assert settings.sidecar_url(None) == settings.sidecar_url("") == "http://127.0.0.1:8318"
    monkeypatch.setenv("TRACE_SIDECAR_URL", "http://[::1]:99")
    assert settings.sidecar_url(None) == "http://[::1]:99"
    assert settings.sidecar_url("http://x") == "http://x"
    with pytest.raises(ValueError, match="must look like http"):
        Sender("https://x")
    assert module.shared_sender("http://127.0.0.1:1") is module.shared_sender("http://127.0.0.1:1")


def test_any_number_of_threads_and_loops_may_send() -> None:
    """With eight threads and event loops, every event arrives once and in its thread's order."""
    with scripted() as sidecar:
        sender = Sender(sidecar.url)

        async def work(thread: int) -> None:
            for number in range(50):
                sender.send(event(f"{thread}-{number}"))
                await asyncio.sleep(0)

        threads = [threading.Thread(target=asyncio.run, args=(work(t),)) for t in range(8)]
        with ExitStack() as stack:
            for thread in threads:
                thread.start()
                stack.callback(thread.join)
        assert sender.flush(DEADLINE_S)
        assert sorted(sidecar.names) == sorted(f"{t}-{n}" for t in range(8) for n in range(50))
        from_one_thread = [name for name in sidecar.names if name.startswith("3-")]
        assert from_one_thread == [f"3-{n}" for n in range(50)]


def test_a_bug_does_not_end_the_sender_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error drops one batch; the next one is delivered."""
    with scripted() as sidecar:
        sender = Sender(sidecar.url)
        with monkeypatch.context() as broken:
            broken.setattr(sender._delivery, "_post", lambda *_: 1 / 0)
            sender.send(event("a"))
            assert sender.flush(DEADLINE_S)
        sender.send(event("b"))
        assert sender.flush(DEADLINE_S)
        assert (sidecar.names, sender.dropped) == (["b"], {"internal error": 1})


async def test_a_real_sidecar_delivers_the_span() -> None:
    """With the daemon in between, a flush returns when START and END are at Agentex, as one."""
    async with upstream() as agentex, running_app({"AGENTEX_BASE_URL": agentex.url}) as app:
        from trace_sidecar_client import Spans

        sender = Sender(app.url)
        async with Spans(sender=sender).span("turn", input={"q": 1}) as span:
            span.output = {"a": 2}
        assert await asyncio.to_thread(sender.flush, DEADLINE_S)
        (request,) = agentex.requests  # when `flush` returns, not only in the end
    assert (request.body["name"], request.body["input"]) == ("turn", {"q": 1})
    assert request.body["output"] == {"a": 2}

"""The client's sender: what arrives, in what order, and what becomes of what can't."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from trace_sidecar_client import Credentials, Sender
from trace_sidecar_client import sender as module

from tests.support.client import ACCEPTED, PATIENCE_S, Answer, ScriptedSidecar, scripted
from tests.support.world import running_app, upstream

LATER = (503, {"Retry-After": "0.01"}, b'{"error":"stopping"}')
ROOT = Path(__file__).parents[2]


def event(name: str, padding: int = 0) -> bytes:
    """An encoded event with that span name."""
    return json.dumps({"event_type": "start", "span": {"name": name, "p": "x" * padding}}).encode()


def test_events_arrive_in_order_in_one_request_over_one_connection() -> None:
    """What is sent at once goes out together, and the connection is kept."""
    with scripted() as sidecar:
        sender = Sender(sidecar.url)
        for batch in ("a", "b"):
            for number in range(10):
                sender.send(event(f"{batch}{number}"))
            assert sender.flush(PATIENCE_S)
        assert [f"{b}{n}" for b in "ab" for n in range(10)] == sidecar.names
        assert len(sidecar.posts) <= 4
        assert sidecar.connections == 1
        assert sidecar.posts[0].path == "/v1/spans"
        assert sidecar.posts[0].headers["content-type"] == "application/x-ndjson"
        assert (sender.sent, sender.dropped, sender.waiting_bytes) == (20, {}, 0)


def test_after_a_flush_events_wait_for_each_other_again() -> None:
    """A flush hurries what is there, and no more: then batches are as large as before."""
    with scripted() as sidecar, scripted() as elsewhere:
        sender, other = Sender(sidecar.url, linger_s=PATIENCE_S), Sender(elsewhere.url)
        for name in "ab":
            sender.send(event(name))
            # Time enough for a thread that does not wait.
            other.send(event("x"))
            assert other.flush(PATIENCE_S)
            sender.send(event(name))
            assert sender.flush(PATIENCE_S)
        sent = ["".join(e["span"]["name"] for e in post.events) for post in sidecar.posts]
        assert sent == ["aa", "bb"]


def test_a_batch_is_bounded_in_events_and_bytes() -> None:
    """Many small events and few large ones both go out in several requests."""
    with scripted() as sidecar:
        sidecar.hold.clear()
        sender = Sender(sidecar.url)
        sender.send(event("first"))
        sidecar.wait_for_posts(1)
        for number in range(600):
            sender.send(event(f"s{number}"))
        for number in range(5):
            sender.send(event(f"l{number}", padding=400_000))
        sidecar.hold.set()
        assert sender.flush(PATIENCE_S)
        sizes = [len(post.events) for post in sidecar.posts]
        assert sum(sizes) == 606
        assert max(sizes) == 256
        assert all(len(post.headers["content-length"]) <= 7 for post in sidecar.posts)
        assert len(sizes) >= 6


@pytest.mark.parametrize(
    "trouble",
    [LATER, (429, {"Retry-After": "0.01"}, b""), (500, {}, b""), (408, {}, b""), (502, {}, b"x")],
    ids=["503", "429", "500", "408", "502"],
)
def test_what_may_pass_is_tried_again(trouble: tuple[int, dict[str, str], bytes]) -> None:
    """The same events are sent until they are taken, once, before what came later."""
    with scripted(trouble, trouble) as sidecar:
        sender = Sender(sidecar.url)
        sender.send(event("a"))
        sidecar.wait_for_posts(2)
        sender.send(event("b"))
        assert sender.flush(PATIENCE_S)
        assert sidecar.names == ["a", "a", "a", "b"]
        assert sender.sent == 2


def test_a_sidecar_that_starts_later_gets_everything() -> None:
    """Refused connections are waited out, and so is a restart."""
    sidecar = ScriptedSidecar()
    with sidecar.running():
        pass
    sender = Sender(sidecar.url)
    sender.send(event("before"))
    assert not sender.flush(0.0)
    with sidecar.running(sidecar.port):
        assert sender.flush(PATIENCE_S)
    sender.send(event("between"))
    with sidecar.running(sidecar.port):
        assert sender.flush(PATIENCE_S)
    assert sidecar.names == ["before", "between"]


def test_a_connection_that_was_closed_while_idle_is_no_failure() -> None:
    """The next request opens a new one at once."""
    closing = (202, {"Connection": "close"}, b'{"accepted":1,"rejected":[]}')
    with scripted(closing) as sidecar:
        sender = Sender(sidecar.url)
        for name in "ab":
            sender.send(event(name))
            assert sender.flush(PATIENCE_S)
        assert (sidecar.names, sidecar.connections) == (["a", "b"], 2)


def test_a_sidecar_that_hangs_is_given_up_and_asked_again() -> None:
    """No wait is without an end."""
    with scripted() as sidecar:
        sidecar.hold.clear()
        sender = Sender(sidecar.url, timeout_s=0.05)
        sender.send(event("a"))
        sidecar.wait_for_posts(2)
        sidecar.hold.set()
        assert sender.flush(PATIENCE_S)
        assert sender.sent == 1


def test_when_full_the_newest_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    """What waits and what is in hand stay below the bound; the drops are counted, and said once."""
    with scripted() as sidecar:
        sidecar.hold.clear()
        sender = Sender(sidecar.url, max_bytes=3000)
        sender.send(event("a", 800))
        sidecar.wait_for_posts(1)
        for name in "bcde":
            sender.send(event(name, 800))
        assert sender.waiting_bytes <= 3000
        assert sender.dropped == {"buffer full": 2}
        sidecar.hold.set()
        assert sender.flush(PATIENCE_S)
        assert sidecar.names == ["a", "b", "c"]
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["span events dropped: 1 (buffer full)"]


def test_413_sends_less_at_once() -> None:
    """Halved until it fits; one that never fits is counted, and the others arrive in order."""
    too_large: Answer = (413, {}, b'{"error":"larger than 1KiB"}')
    with scripted(LATER, too_large, too_large, too_large, ACCEPTED, ACCEPTED) as sidecar:
        sender = Sender(sidecar.url, linger_s=PATIENCE_S)
        for name in "abcd":
            sender.send(event(name))
        assert sender.flush(PATIENCE_S)
        sent = ["".join(e["span"]["name"] for e in post.events) for post in sidecar.posts]
        assert sent == ["abcd", "abcd", "ab", "a", "b", "cd"]
        assert (sender.sent, sender.dropped) == (3, {"HTTP 413": 1})


def test_rejected_events_are_counted_with_their_reason() -> None:
    """A 202 or a 400 that names events settles all of them."""
    body = b'{"accepted":1,"rejected":[{"index":0,"id":"s","error":"span.name is empty"}]}'
    with scripted(LATER, (202, {}, body), (400, {}, body)) as sidecar:
        sender = Sender(sidecar.url, linger_s=PATIENCE_S)
        sender.send(event("a"))
        sender.send(event("b"))
        assert sender.flush(PATIENCE_S)
        sender.send(event("c"))
        assert sender.flush(PATIENCE_S)
        assert (sender.sent, sender.dropped) == (1, {"rejected: span.name is empty": 2})


@pytest.mark.parametrize("status", [301, 403, 404, 415])
def test_other_answers_are_counted_and_do_not_stop_what_follows(status: int) -> None:
    """Something else listens there, or refuses us: nothing is retried for ever."""
    with scripted((status, {}, b"<html>secret</html>")) as sidecar:
        sender = Sender(sidecar.url)
        for name in "ab":
            sender.send(event(name))
            assert sender.flush(PATIENCE_S)
        assert (sender.sent, sender.dropped) == (1, {f"HTTP {status}": 1})


def test_log_lines_never_hold_what_an_agent_traced(caplog: pytest.LogCaptureFixture) -> None:
    """Neither events nor bodies of answers that are not a sidecar's reach the log."""
    caplog.set_level(logging.DEBUG)
    with scripted((404, {}, b"secret"), (400, {}, b"secret"), (400, {}, b"[1]")) as sidecar:
        sender = Sender(sidecar.url)
        for _ in range(3):
            sender.send(event("secret"))
            assert sender.flush(PATIENCE_S)
        sender.log_undelivered()
        assert sum(sender.dropped.values()) == 3
    assert caplog.records
    assert "secret" not in caplog.text


def test_credentials_are_read_when_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's key exists only once it has registered; given ones win; broken ones stay."""
    for name in ("AGENT_API_KEY", "SGP_API_KEY", "SGP_ACCOUNT_ID"):
        monkeypatch.delenv(name, raising=False)
    with scripted() as sidecar:
        sender = Sender(sidecar.url, credentials=Credentials(sgp_account_id="given"))
        sender.send(event("a"))
        assert sender.flush(PATIENCE_S)
        monkeypatch.setenv("AGENT_API_KEY", "agent")
        monkeypatch.setenv("SGP_API_KEY", "two\r\nlines")
        monkeypatch.setenv("SGP_ACCOUNT_ID", "environment")
        sender.send(event("b"))
        assert sender.flush(PATIENCE_S)
    names = {"x-agent-api-key", "x-api-key", "x-selected-account-id"}
    first, second = ({n: p.headers[n] for n in names & p.headers.keys()} for p in sidecar.posts)
    assert first == {"x-selected-account-id": "given"}
    assert second == {"x-selected-account-id": "given", "x-agent-api-key": "agent"}
    assert "given" not in repr(Credentials(sgp_account_id="given"))


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter wins over `TRACE_SIDECAR_URL`, which wins over the default; empty means unset."""
    monkeypatch.setenv("TRACE_SIDECAR_URL", "")
    assert module.sidecar_url(None) == module.sidecar_url("") == "http://127.0.0.1:8318"
    monkeypatch.setenv("TRACE_SIDECAR_URL", "http://[::1]:99")
    assert module.sidecar_url(None) == "http://[::1]:99"
    assert module.sidecar_url("http://x") == "http://x"
    with pytest.raises(ValueError, match="must look like http"):
        Sender("https://x")
    assert module.shared_sender("http://127.0.0.1:1") is module.shared_sender("http://127.0.0.1:1")


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Localhost is reached directly, whatever the pod's proxy settings say."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with scripted() as sidecar:
        sender = Sender(sidecar.url)
        sender.send(event("a"))
        assert sender.flush(PATIENCE_S)
        assert sidecar.names == ["a"]


def test_any_number_of_threads_and_loops_may_send() -> None:
    """Eight threads, each with a loop of its own: every event arrives once."""
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
        assert sender.flush(PATIENCE_S)
        assert sorted(sidecar.names) == sorted(f"{t}-{n}" for t in range(8) for n in range(50))
        of_one = [name for name in sidecar.names if name.startswith("3-")]
        assert of_one == [f"3-{n}" for n in range(50)]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_fork_each_process_sends_its_own() -> None:
    """The child starts its own thread and connection, and does not send the parent's again."""
    with scripted() as sidecar:
        sender = Sender(sidecar.url)
        sender.send(event("warm"))
        assert sender.flush(PATIENCE_S)
        sidecar.hold.clear()
        sender.send(event("parent 1"))
        sidecar.wait_for_posts(2)
        sender.send(event("parent 2"))
        child = os.fork()
        if child == 0:
            # Nothing of the test may run here: not even its clean-up.
            sender.send(event("child"))
            os._exit(0 if sender.flush(PATIENCE_S) and sender.sent == 1 else 1)
        sidecar.wait_for_posts(3)
        sidecar.hold.set()
        assert os.waitpid(child, 0)[1] == 0
        assert sender.flush(PATIENCE_S)
        assert sorted(sidecar.names) == ["child", "parent 1", "parent 2", "warm"]


AGENT = """
import sys, trace_sidecar_client as client
spans = client.Spans(sys.argv[1])
with spans.span("last"):
    pass
{}
"""


def agent(url: str, last: str = "") -> "subprocess.Popen[str]":
    """A process that traces one span."""
    command = [sys.executable, "-c", AGENT.format(last), url]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_what_is_left_is_sent_at_exit() -> None:
    """A process that ends right after its last span loses nothing."""
    with scripted() as sidecar, agent(sidecar.url) as process:
        assert process.wait(PATIENCE_S) == 0
        assert sidecar.names == ["last", "last"]


def test_at_exit_nobody_waits_for_ever_for_a_sidecar_that_is_away() -> None:
    """After the deadline the process ends, and says how many events it takes along."""
    process = agent("http://127.0.0.1:1", "client.sender.FLUSH_TIMEOUT_S = 0.1")
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert said == "span events dropped: 2 (not delivered at exit)\n"


def test_a_blocked_thread_does_not_keep_the_process() -> None:
    """A sidecar that hangs in the middle of an answer does not hold up the exit either."""
    with scripted() as sidecar:
        sidecar.hold.clear()
        process = agent(sidecar.url, "client.sender.FLUSH_TIMEOUT_S = 0.1")
        _, said = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, said.count("not delivered at exit")) == (0, 1)


def test_a_broken_answer_does_not_end_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in one delivery, the next one is made."""
    with scripted() as sidecar:
        sender = Sender(sidecar.url)
        with monkeypatch.context() as broken:
            broken.setattr(sender, "_post", lambda events: 1 / 0)
            sender.send(event("a"))
            assert sender.flush(PATIENCE_S)
        sender.send(event("b"))
        assert sender.flush(PATIENCE_S)
        assert (sidecar.names, sender.dropped) == (["b"], {"internal error": 1})


async def test_a_real_sidecar_takes_it() -> None:
    """End to end with the daemon: START and END joined, written once."""
    async with upstream() as agentex, running_app({"AGENTEX_BASE_URL": agentex.url}) as app:
        from trace_sidecar_client import Spans

        sender = Sender(app.url)
        async with Spans(sender=sender).span("turn", input={"q": 1}) as span:
            span.output = {"a": 2}
        assert await asyncio.to_thread(sender.flush, PATIENCE_S)
        assert await app.stop()
    (request,) = agentex.requests
    assert (request.body["name"], request.body["input"]) == ("turn", {"q": 1})
    assert request.body["output"] == {"a": 2}


def test_a_signal_that_ends_python_orderly_flushes() -> None:
    """A handler that raises SystemExit, as servers install one, runs the exit flush."""
    last = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "spans.flush(); print('up', file=sys.stderr, flush=True)\n"
        "with spans.span('open'): signal.pause()"
    )
    with scripted() as sidecar, agent(sidecar.url, last) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "up\n"
        sidecar.wait_for_posts(2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert sidecar.names == ["last", "last", "open", "open"]

"""What the client counts and says: bounded, once, with the sidecar's address and never content."""

import copy
import json
import logging
import pickle
import threading

import pytest
from trace_sidecar_client import AsyncSidecarProcessor, Credentials, Sender, Spans, register
from trace_sidecar_client import sender as module
from trace_sidecar_client.notices import Notices
from trace_sidecar_client.transport import _parse_retry_after

from tests.support.client import DEADLINE_S, Response, scripted


def event(name: str) -> bytes:
    """An encoded event with this span name."""
    return json.dumps({"event_type": "start", "span": {"name": name}}).encode()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged."""
    return [record.getMessage() for record in caplog.records]


def test_reasons_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A sidecar that gives each event a reason of its own fills neither memory nor log."""
    rejected = [{"error": f"reason {number} " + "x" * 999} for number in range(300)]
    body = json.dumps({"accepted": 0, "rejected": rejected}).encode()
    with scripted((400, {}, body)) as sidecar:
        sender = Sender(sidecar.url, linger_s=DEADLINE_S)
        for _ in range(200):
            sender.send(event("secret"))
        assert sender.flush(DEADLINE_S)
    assert len(sender.dropped) == 21
    assert sender.dropped["other"] == 180, "more rejections than events are a mistake"
    assert all(len(reason) < 250 for reason in sender.dropped)
    sender.finish(0.0)
    assert all(sidecar.url in line for line in lines(caplog))
    assert "secret" not in caplog.text


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 415])
def test_an_answer_that_will_not_change_is_explained_once(
    caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """In the sidecar's words, which say what to set, printable and short."""
    text = "Host is not a name of this port: set listener.allowed_hosts \x1b[31m" + "y" * 999
    body = json.dumps({"error": text}).encode()
    with scripted(*[(status, {}, body)] * 3) as sidecar:
        sender = Sender(sidecar.url)
        for _ in range(3):
            sender.send(event("secret"))
            assert sender.flush(DEADLINE_S)
    explained = [line for line in lines(caplog) if "allowed_hosts" in line]
    assert len(explained) == 1
    assert explained[0].startswith(f"the sidecar at {sidecar.url} answers HTTP {status}: Host is")
    assert r"\x1b" in explained[0]
    assert len(explained[0]) < 300
    assert sender.dropped == {f"HTTP {status}": 3}


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"rejected":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"rejected":[{"error":' + b"[" * 900 + b"]" * 900 + b"}]}",
        b'{"rejected":{"a":1},"not_taken_for":[1]}',
        b'{"rejected":[1,null,[]],"not_taken_for":{"sgp":"x","y":null,"z":true}}',
        b'{"rejected":null}',
        b"1" * 10_000,
        b"\xff" * (3 << 20),
        b"null",
        b"",
    ],
    ids=range(10),
)
def test_no_answer_costs_a_batch(body: bytes) -> None:
    """A 202 means accepted, however deep, huge or odd its body is."""
    with scripted((202, {}, body)) as sidecar:
        sender = Sender(sidecar.url)
        for name in "ab":
            sender.send(event(name))
            assert sender.flush(DEADLINE_S)
        assert sidecar.names == ["a", "b"]
        assert "internal error" not in sender.dropped


def test_what_an_upstream_will_not_get_is_counted_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The sidecar has taken the events for the others, so that none counts as dropped."""
    partly: Response = (202, {}, b'{"accepted":1,"rejected":[],"not_taken_for":{"agentex":1}}')
    with scripted(partly, partly) as sidecar:
        sender = Sender(sidecar.url)
        for name in "ab":
            sender.send(event(name))
            assert sender.flush(DEADLINE_S)
        assert (sender.sent, sender.dropped) == (2, {})
        assert sender.not_taken_for == {"agentex": 2}
    (line,) = lines(caplog)
    assert "1 (agentex)" in line
    assert sidecar.url in line


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("86400", 60.0), ("1e300", 60.0), ("inf", 0.0), ("nan", 0.0), ("-1", 0.0),
     ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0)],
)  # fmt: skip
def test_retry_after_is_bounded(header: str, seconds: float) -> None:
    """A mistake in it does not hold back spans for a day."""
    assert _parse_retry_after(header) == seconds


def test_a_sidecar_that_was_never_reached_is_said_once_and_early(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With its address and what to set; the URL's credentials are not shown."""
    sender = Sender("http://user:password@127.0.0.1:1/base/")
    sender.send(event("secret"))
    assert not sender.flush(0.3)
    (line,) = lines(caplog)
    assert line.startswith("the sidecar at http://127.0.0.1:1/base can't be reached ([Errno 111]")
    assert "TRACE_SIDECAR_URL" in line
    assert "TRACE_SIDECAR_DISABLED=1" in line
    sender.finish(float("inf"))
    assert lines(caplog)[1:] == [
        "span events dropped: 1 (not delivered at exit) (sidecar: http://127.0.0.1:1/base)"
    ]
    assert "password" not in caplog.text


def test_a_sidecar_that_was_reached_is_waited_for_at_exit() -> None:
    """It restarts, and then takes what the process still has."""
    with scripted() as sidecar:
        sender = Sender(sidecar.url)
        sender.send(event("a"))
        assert sender.flush(DEADLINE_S)
    sender.send(event("b"))
    assert not sender.flush(0.1)
    ending = threading.Thread(target=sender.finish, args=[float("inf")])
    ending.start()
    with sidecar.running(sidecar.port):
        ending.join(DEADLINE_S)
        assert not ending.is_alive()
        assert sidecar.names == ["a", "b"]


def test_a_logging_handler_that_raises_does_not_reach_the_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor the thread that delivers."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError(record.name)

    monkeypatch.setattr(logging.getLogger("trace_sidecar_client"), "handlers", [Broken()])
    Notices("http://x").drop("reason", 1)
    with scripted((403, {}, b"")) as sidecar:
        sender = Sender(sidecar.url)
        for name in "ab":
            sender.send(event(name))
            assert sender.flush(DEADLINE_S)
        assert sidecar.names == ["a", "b"]


@pytest.mark.parametrize("value", ["1", "true", "Yes", " ON "])
async def test_the_switch_turns_tracing_off(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """No thread, no event and no error, not even without the SDK."""
    monkeypatch.setenv("TRACE_SIDECAR_DISABLED", value)
    monkeypatch.setattr(module, "_SHARED_SENDERS", {})
    register("http://127.0.0.1:1")
    sender = Sender("http://127.0.0.1:1")
    assert sender.disabled
    with Spans(sender=sender).span("turn"):
        pass
    processor = AsyncSidecarProcessor(sender=sender)
    await processor.on_span_start(object())
    await processor.shutdown()
    assert sender.flush(1e6)
    assert (sender._thread, sender.dropped, sender.waiting_bytes) == (None, {}, 0)


@pytest.mark.parametrize("value", ["", "0", "false", "no", "off", "2"])
def test_other_values_leave_it_on(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Only what clearly means yes turns tracing off."""
    monkeypatch.setenv("TRACE_SIDECAR_DISABLED", value)
    assert not Sender("http://127.0.0.1:1").disabled


def test_a_sender_copies_to_itself_and_pickles_by_its_address() -> None:
    """An agent may hold it in its state; credentials and what it holds are not written."""
    own = Sender("http://127.0.0.1:1", max_bytes=5, credentials=Credentials("key-of-the-agent"))
    own.send(b"secret")
    assert copy.deepcopy({"state": own})["state"] is own
    assert copy.copy(own) is own
    written = pickle.dumps(own)
    assert b"key-of" not in written
    assert b"secret" not in written
    read = pickle.loads(written)  # noqa: S301 - our own
    assert read is not own
    assert (read._url, read._max_bytes, read.dropped) == ("http://127.0.0.1:1", 5, {})
    shared = module.shared_sender("http://127.0.0.1:1")
    assert pickle.loads(pickle.dumps(shared)) is shared  # noqa: S301


def test_a_switched_off_client_does_not_mind_a_bad_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """`TRACE_SIDECAR_DISABLED` is for when nothing else is right."""
    monkeypatch.setenv("TRACE_SIDECAR_DISABLED", "1")
    with Spans("https://[bad").span("turn"):
        pass


def test_pickles_of_a_sender_share_one() -> None:
    """State that is loaded again and again starts no thread each time."""
    sender = Sender("http://127.0.0.1:1", max_bytes=10**6)
    loaded = [pickle.loads(pickle.dumps(sender)) for _ in range(3)]  # noqa: S301 - our own
    assert loaded[0] is loaded[1] is loaded[2]

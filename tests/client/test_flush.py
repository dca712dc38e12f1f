"""A flush waits until the upstreams have the spans, as long as it may, and for nothing else."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

import pytest
from trace_sidecar_client import Sender
from trace_sidecar_client.transport import Transport, Unreachable

from tests.support.client import DEADLINE_S, Response, ScriptedSidecar, scripted

NOT_YET: Response = (202, {}, b'{"left":{"sgp":12}}')


def event(name: str) -> bytes:
    """An encoded event with this span name."""
    return json.dumps({"event_type": "start", "span": {"name": name}}).encode()


def query(path: str) -> dict[str, list[str]]:
    """The parameters of a request to flush."""
    assert urlsplit(path).path == "/v1/flush"
    return parse_qs(urlsplit(path).query)


def test_what_a_flush_waits_for() -> None:
    """Delivery by default, the disk, or only that the sidecar has the events."""
    with scripted() as sidecar:
        sender = Sender(sidecar.url)
        sender.send(event("a"))
        assert sender.flush(DEADLINE_S, "accepted")
        assert (sidecar.names, sidecar.flushes) == (["a"], [])
        assert sender.flush(DEADLINE_S)
        assert sender.flush(DEADLINE_S, until="disk")
        delivered, disk = (query(path) for path in sidecar.flushes)
        assert 0 < float(delivered.pop("wait_s")[0]) < DEADLINE_S
        assert float(disk.pop("wait_s")[0]) > 0
        assert (delivered, disk) == ({}, {"until": ["disk"]})
        assert sidecar.connections == 1, "the flush has connections of its own"


def test_a_process_that_has_sent_nothing_asks_nothing() -> None:
    """It needs no sidecar."""
    assert Sender("http://127.0.0.1:1").flush(DEADLINE_S)


def test_a_flush_asks_again_until_it_is_over() -> None:
    """After a 202, or a sidecar that restarts; a wait is never longer than a sidecar allows."""
    stopping: Response = (503, {"Retry-After": "0.01"}, b"")
    with scripted() as sidecar:
        sidecar.flush_script = [NOT_YET, stopping, NOT_YET]
        sender = Sender(sidecar.url)
        sender.send(event("a"))
        assert sender.flush(1e9)
        assert [query(path)["wait_s"] for path in sidecar.flushes] == [["30.000"]] * 4


@pytest.mark.parametrize("failure", ["not yet", "hangs", "gone"])
def test_a_flush_ends_at_its_deadline(failure: str) -> None:
    """It returns False and raises nothing, whether the sidecar is slow, hangs or is gone."""
    sidecar = ScriptedSidecar()
    with sidecar.running():
        sender = Sender(sidecar.url)
        sender.send(event("a"))
        assert sender.flush(DEADLINE_S, "accepted")
        if failure == "not yet":
            sidecar.flush_script = [NOT_YET] * 100
        elif failure == "hangs":
            sidecar.may_flush.clear()
        if failure != "gone":
            assert not sender.flush(0.2)
    if failure == "gone":
        assert not sender.flush(0.2)


@pytest.mark.parametrize(
    ("status", "text"), [(404, "has no /v1/flush: update it"), (403, "HTTP 403: wrong Host")]
)
def test_an_answer_that_will_not_change_is_said_once(
    caplog: pytest.LogCaptureFixture, status: int, text: str
) -> None:
    """A sidecar that is too old, or refuses: False at once, however long it may take."""
    with scripted() as sidecar:
        sidecar.flush_script = [(status, {}, b'{"error":"wrong Host"}')] * 2
        sender = Sender(sidecar.url)
        sender.send(event("a"))
        assert not sender.flush(1e6)
        assert not sender.flush(1e6)
        assert len(sidecar.flushes) == 2
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"the sidecar at {sidecar.url} ")
    assert text in line


def test_a_thousand_waiters_share_few_requests() -> None:
    """One request covers all who waited when it was sent, and one more those who came later."""
    with scripted() as sidecar, ThreadPoolExecutor(1000) as pool:
        sender = Sender(sidecar.url)
        sender.send(event("a"))
        sidecar.may_flush.clear()
        waiting = threading.Barrier(1000)

        def flush() -> bool:
            waiting.wait(DEADLINE_S)
            return sender.flush(DEADLINE_S)

        flushes = [pool.submit(flush) for _ in range(1000)]
        sidecar.wait_for_flushes(1)
        remote = sender._remote["delivered"]
        while remote._latest < 1000:
            time.sleep(0.001)
        sidecar.may_flush.set()
        assert all(each.result(DEADLINE_S) for each in flushes)
        assert len(sidecar.flushes) == 2


def test_events_go_on_while_a_flush_waits() -> None:
    """A sidecar that takes its time holds up neither `send` nor the thread that delivers."""
    with scripted() as sidecar, ThreadPoolExecutor(1) as other:
        sender = Sender(sidecar.url)
        sender.send(event("before"))
        sidecar.may_flush.clear()
        flushed = other.submit(sender.flush, DEADLINE_S)
        sidecar.wait_for_flushes(1)
        sender.send(event("meanwhile"))
        assert sender.flush(DEADLINE_S, "accepted")
        assert not flushed.done()
        sidecar.may_flush.set()
        assert flushed.result(DEADLINE_S)
        assert sidecar.names == ["before", "meanwhile"]


def test_a_flush_under_steady_load_ends() -> None:
    """Other threads that never stop sending do not prolong it."""
    stop = threading.Event()
    with scripted() as sidecar, ThreadPoolExecutor(2) as pool:
        sender = Sender(sidecar.url, linger_s=0.0)

        def load() -> None:
            while not stop.wait(0.0002):
                sender.send(event("load"))

        loads = [pool.submit(load) for _ in range(2)]
        try:
            for number in range(5):
                sender.send(event(str(number)))
                assert sender.flush(DEADLINE_S)
                assert str(number) in sidecar.names
        finally:
            stop.set()
        for each in loads:
            each.result(DEADLINE_S)


def test_a_flush_may_wait_for_ever() -> None:
    """No limit is too large for a lock or a socket."""
    with scripted() as sidecar:
        sidecar.flush_script = [NOT_YET]
        sender = Sender(sidecar.url)
        sender.send(event("a"))
        assert sender.flush(float("inf"))


@pytest.mark.parametrize("timeout_s", [-1.0, float("nan"), float("-inf")])
def test_an_odd_timeout_raises_nothing(timeout_s: float) -> None:
    """It is as none."""
    sender = Sender("http://127.0.0.1:1")
    sender.send(event("a"))
    assert not sender.flush(timeout_s)


def test_a_response_that_drips_does_not_prolong_a_flush() -> None:
    """A response has a deadline, not only each of its bytes: the URL may be of something else."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 100000\r\n\r\n")
                while not done.wait(0.01):
                    connection.sendall(b" ")

        dripping = threading.Thread(target=serve)
        dripping.start()
        transport = Transport(f"http://127.0.0.1:{server.getsockname()[1]}", DEADLINE_S)
        with pytest.raises(Unreachable):
            transport.post(b"{}", {}, 0.2)
        done.set()
        dripping.join()

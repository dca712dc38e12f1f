"""Nothing is kept in memory uncounted, and no END loses what its START said for lack of room."""

import sys
from contextlib import suppress
from pathlib import Path

import pytest

from sidecar.queue.admission import QueueFull, RequestTooLarge
from sidecar.spans.span import Span
from tests.support.delivery import HOLD_S, Process, process_in, request
from tests.support.spans import make_span


def post(process: Process, span: Span, seconds: float = 0.5) -> None:
    """Post an event, which may be refused, and let time pass."""
    with suppress(QueueFull, RequestTooLarge):
        process.post(span, lambda _: None)
    process.pass_time(seconds)


def prompt(id_: str, size: int) -> bytes:
    """An input of about `size` bytes."""
    return b'{"%b":"%b"}' % (id_.encode(), b"x" * size)


def start(id_: str, size: int) -> Span:
    """A START with an input of about `size` bytes."""
    return make_span(id_, complete=False, input=prompt(id_, size))


def end(id_: str, size: int = 0) -> Span:
    """An END that omits its input, with an output of about `size` bytes."""
    return make_span(id_, input=b"", output=prompt("out", size))


def stored(process: Process, id_: str) -> list[tuple[str, bytes]]:
    """What the upstreams have stored of a span."""
    return [upstream.rows[id_] for upstream in process.upstreams]


@pytest.mark.parametrize("spooled", [False, True])
@pytest.mark.parametrize("complete", [False, True])
def test_a_start_is_freed_at_once(tmp_path: Path, spooled: bool, complete: bool) -> None:
    """Once an END or another START takes its place, not once `hold_s` is over."""
    with process_in(tmp_path if spooled else None, accepting=True) as process:
        payload = prompt("s", 5000)
        before = sys.getrefcount(payload)
        post(process, make_span("s", complete=False, input=payload))
        assert sys.getrefcount(payload) > before
        post(process, make_span("s", complete=complete, input=b"{}"))
        assert process.loop.time() < HOLD_S
        assert sys.getrefcount(payload) == before


# `queue.max_bytes` is 60,000 bytes, of which the lanes reserve half if there is a spool.


@pytest.mark.parametrize(("spooled", "size"), [(False, 9000), (True, 8000)])
def test_room_for_an_end_is_not_taken_from_its_start(
    tmp_path: Path, spooled: bool, size: int
) -> None:
    """Other STARTs leave memory instead, even if they are newer."""
    with process_in(tmp_path if spooled else None, accepting=True) as process:
        for id_ in ("a", "b"):
            post(process, start(id_, size), HOLD_S + 1)
        post(process, end("a", size * 3 // 2))
        assert stored(process, "a") == [("complete", prompt("a", size))] * 2


@pytest.mark.parametrize(("spooled", "size"), [(False, 20_000), (True, 9000)])
def test_an_end_without_room_is_refused_rather_than_written_thin(
    tmp_path: Path, spooled: bool, size: int
) -> None:
    """Even if its own START is the only one that could leave memory."""
    with process_in(tmp_path if spooled else None, accepting=True) as process:
        post(process, start("a", size), HOLD_S + 1)
        post(process, end("a", size * 9 // 4))
        assert [said for _, said in stored(process, "a")] == [prompt("a", size)] * 2
        process.check()


@pytest.mark.parametrize("both_on_disk", [False, True])
def test_what_one_request_needs_is_not_dropped_by_another(
    tmp_path: Path, both_on_disk: bool
) -> None:
    """Of two ENDs, one has its START's payload already when another request asks for room."""
    with process_in(tmp_path, accepting=True) as process:
        post(process, start("a", 9000), 0.1)
        if both_on_disk:
            post(process, start("b", 9000), 0.1)
        post(process, end("other", 21_000), 0.1)  # fits only without them
        if not both_on_disk:
            post(process, start("b", 9000), 0.1)
        process.loop.held = True
        ends = request(process, end("a"), end("b"))
        if both_on_disk:
            process.loop.complete_calls(1)
            process.run_ready()
        other = request(process, start("c", 19_500))
        process.loop.held = False
        process.loop.complete_calls()
        process.pass_time(1.0)
        assert other.done()
        other.exception()  # it may have been refused
        ends.result()
        for id_ in ("a", "b"):
            assert stored(process, id_) == [("complete", prompt(id_, 9000))] * 2
        process.check()

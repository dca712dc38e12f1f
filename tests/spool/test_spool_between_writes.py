"""What happens while a transaction is under way: `commit` and `load` wait for it, however it ends.

In virtual time, with a disk whose calls the test completes.
"""

from pathlib import Path

import pytest

from sidecar.spans.span import Span
from sidecar.spool.disk_spool import DiskSpool
from sidecar.spool.rows import Changes
from tests.support.delivery import HOLD_S, Process, ScriptedFile, process_in, request
from tests.support.spans import make_span
from tests.support.spool import backlog, load, rows_on_disk

PROMPT = b'{"p":"%b"}' % (b"x" * 3000)
# Longer than it takes until a failed disk is tried again.
RETRIED_S = 6.0


def file_of(process: Process, transaction_bytes: int) -> ScriptedFile:
    """The process's file, which from now on splits larger transactions."""
    assert process.file is not None
    process.file.transaction_bytes = transaction_bytes
    return process.file


def recover(process: Process) -> None:
    """The upstreams accept everything from now on."""
    for upstream in process.upstreams:
        upstream.recover()
    process.run_ready()


def release_disk(process: Process) -> None:
    """The disk completes all calls, now and from now on."""
    process.loop.held = False
    process.loop.complete_calls()
    process.pass_time(RETRIED_S)


def start(id_: str) -> Span:
    """A START with a prompt."""
    return make_span(id_, complete=False, input=PROMPT)


def end(id_: str) -> Span:
    """An END that omits the prompt."""
    return make_span(id_, input=b"")


@pytest.mark.parametrize("fails", ["", "before", "after"])
def test_a_lane_loads_nothing_before_it_is_written(tmp_path: Path, fails: str) -> None:
    """It starts loading during the first of three transactions; whether that fails or not."""
    with process_in(tmp_path) as process:
        file = file_of(process, 4000)
        request(process, make_span("large", input=b'"%b"' % (b"x" * 13_500)))
        process.pass_time(0.2)
        assert all(upstream.pending for upstream in process.upstreams)
        process.loop.held = True
        ids = ("a", "b", "c")
        waiting = request(process, *(make_span(id_, input=PROMPT) for id_ in ids))
        assert [lane.on_disk for lane in process.lanes] == [3, 3]
        assert process.loop.calls, "a transaction should be under way"
        file.fails_once = fails
        recover(process)  # there is room for what is on disk only
        for _ in range(100):
            process.loop.complete_calls(1)
            process.pass_time(0.1)
        waiting.result()
        for upstream in process.upstreams:
            assert {id_: upstream.rows.get(id_) for id_ in ids} == dict.fromkeys(
                ids, ("complete", PROMPT)
            )
        assert process.lost() == [0, 0]
        process.check()


@pytest.mark.parametrize("complete", [False, True])
def test_a_repeated_event_waits_for_its_first_copy(tmp_path: Path, complete: bool) -> None:
    """It is joined, and its 202 says that the first one is on disk: here in a second transaction.

    A START that is repeated is kept already, because the disk takes longer than `hold_s`.
    """
    with process_in(tmp_path) as process:
        file_of(process, 1000)
        if complete:
            request(process, start("s")).result()
        event = end if complete else start
        process.loop.held = True
        first = request(process, make_span("other", input=PROMPT), event("s"))
        process.pass_time(HOLD_S)
        joined = process.accounting.joined
        again = request(process, event("s"))
        assert process.accounting.joined == joined + 1
        assert not again.done()
        for _ in range(10):
            process.loop.complete_calls(1)
            process.pass_time(0.01)
            assert first.done() or not again.done()
        first.result()
        again.result()


def test_a_repeated_event_does_not_wait_for_a_disk_that_fails(tmp_path: Path) -> None:
    """Both copies get their 202 when the transaction has failed: they are in memory."""
    with process_in(tmp_path) as process:
        file = file_of(process, 1000)
        request(process, start("s")).result()
        process.loop.held = True
        requests = [request(process, end("s")) for _ in range(2)]
        file.fails_once = "before"
        process.loop.complete_calls(1)
        process.pass_time(0.1)
        assert process.spool.degraded
        for each in requests:
            each.result()
        release_disk(process)
        assert not process.spool.degraded


def test_a_start_that_was_replaced_is_never_written_again(tmp_path: Path) -> None:
    """A write failed between the two: the next process would send the first one after the END."""
    with process_in(tmp_path) as process:
        recover(process)
        file = file_of(process, 2**16)
        process.loop.held = True
        requests = [request(process, make_span("other"))]
        assert process.loop.calls, "a transaction should be under way"
        requests += [request(process, start("s")) for _ in range(2)]
        file.fails_once = "before"
        process.loop.complete_calls(1)
        process.run_ready()
        assert process.spool.degraded
        release_disk(process)
        assert not process.spool.degraded
        for each in requests:
            each.result()
        request(process, end("s")).result()
        process.pass_time(1.0)
        process.finish()
        assert [up.rows["s"] for up in process.upstreams] == [("complete", PROMPT)] * 2
    with process_in(tmp_path) as process:
        assert (process.spool.status().writes, len(process.admission.open_spans)) == (0, 0)


def test_what_failed_is_written_again_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read failed first, then the write of the START: it is the base of its END all the same."""
    with process_in(tmp_path) as process:
        file = file_of(process, 1500)
        request(process, make_span("other")).result()
        assert isinstance(process.spool, DiskSpool)
        process.loop.held = True
        loading = process.loop.create_task(load(process.spool, 1))
        process.run_ready()
        requests = [request(process, start("s")), request(process, end("s"))]
        file.broken = True
        for _ in range(2):
            process.loop.complete_calls(1)
            process.run_ready()
        file.broken = False
        written: list[int] = []
        apply = file.apply

        def recorded(changes: Changes) -> None:
            apply(changes)
            written.extend(row.seq for row in changes.added)

        monkeypatch.setattr(file, "apply", recorded)
        release_disk(process)
        process.pass_time(RETRIED_S)
        assert not process.spool.degraded
        for each in requests:
            each.result()
        assert loading.result() == ["other"]
        assert written == [2, 3]
        process.kill(disk_call_done=False)
    assert rows_on_disk(tmp_path) == backlog([], [(1, 3), (3, 3)])
    with process_in(tmp_path) as process:
        recover(process)
        process.pass_time(1.0)
        assert [up.rows["s"] for up in process.upstreams] == [("complete", PROMPT)] * 2

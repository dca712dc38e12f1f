"""Rows that can't be read any more: one by one, all of a file, or none while the disk fails."""

import errno
import os
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from sidecar.queue.admission import QueueFull
from sidecar.spans.span import Span
from sidecar.spool.rows import Changes, StoredRow
from sidecar.spool.spool import Gone
from sidecar.spool.sqlite_file import SpoolFile
from tests.support import delivery
from tests.support.delivery import Process, ScriptedFile, process_in, request
from tests.support.spans import make_span
from tests.support.spool import (
    FlakyFile,
    added,
    backlog,
    load,
    new_span,
    row,
    rows_on_disk,
    running_spool,
    stored,
    until,
)

SIZE = 9000  # of `queue.max_bytes`, 60,000, the lanes reserve half
PROMPT = b'{"p":"%b"}' % (b"x" * SIZE)
# Virtual seconds. A failed disk is tried again every 5 s.
SOON_S, RETRIED_S = 20.0, 6.0


def file_of(process: Process) -> ScriptedFile:
    """The process's file."""
    assert process.file is not None
    return process.file


def start(id_: str) -> Span:
    """A START with a prompt."""
    return make_span(id_, complete=False, input=PROMPT)


def end(id_: str) -> Span:
    """An END that omits the prompt."""
    return make_span(id_, input=b"")


def large(id_: str) -> Span:
    """A write that fits only if STARTs leave memory for it."""
    return make_span(id_, input=b'"%b"' % (b"x" * 26_000))


def sent(process: Process, id_: str) -> list[tuple[str, bytes] | None]:
    """What the upstreams have of a span."""
    return [upstream.rows.get(id_) for upstream in process.upstreams]


FILLED = [("complete", PROMPT)] * 2


# A file that was moved aside.


def move_aside(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file becomes unreadable, and is replaced by a new one."""
    file = file_of(process)
    failing, apply = iter(range(2)), file.apply  # degraded, and then still failing

    def fails_twice(changes: Changes) -> None:
        if next(failing, None) is not None:
            raise sqlite3.DatabaseError("database disk image is malformed")
        apply(changes)

    monkeypatch.setattr(file, "apply", fails_twice)
    request(process, make_span("other"), seconds=0.5)
    process.pass_time(2 * RETRIED_S)
    assert (process.spool.degraded, file.moved_aside) == (False, 1)


def test_an_end_does_not_depend_on_a_file_that_was_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its START was in that file: its own row has all payloads, and outlives the process."""
    with process_in(tmp_path) as process:
        request(process, start("s"), seconds=0.5).result()
        move_aside(process, monkeypatch)
        request(process, end("s"), seconds=0.5).result()
        connection = file_of(process)._connected()
        assert connection.execute("SELECT max(base) FROM writes").fetchone() == (0,)
        process.kill(disk_call_done=False)
    with process_in(tmp_path, accepting=True) as process:
        process.pass_time(1.0)
        assert sent(process, "s") == FILLED
        assert process.lost() == [0, 0]


def test_payloads_that_are_nowhere_else_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short memory is: the row is in the file that was moved aside."""
    monkeypatch.setattr(delivery, "HOLD_S", 3600.0)
    with process_in(tmp_path, accepting=True) as process:
        request(process, start("s"), seconds=0.5).result()
        move_aside(process, monkeypatch)
        with suppress(QueueFull):
            request(process, large("large"), seconds=0.5).result()
        request(process, end("s"), seconds=0.5).result()
        process.pass_time(1.0)
        assert sent(process, "s") == FILLED
        process.check()


# Single rows.


async def test_a_row_without_its_base_is_unreadable(tmp_path: Path) -> None:
    """It is not sent with less than was accepted."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        begin, finish = new_span("s", complete=False, size=100), new_span("s", size=100)
        await added(spool, begin)
        spool.add(finish, begin)
        await added(spool, new_span("other"))
        spool.file._connected().execute("DELETE FROM bodies WHERE seq = 1")
        assert await load(spool, row(finish), 3, lane=1) == [Gone.UNREADABLE, "other"]


class DamagedFile(FlakyFile):
    """A file with damaged pages: those of the `damaged` rows."""

    damaged: tuple[int, ...] = ()

    def read(self, seqs: Iterable[int], max_bytes: int) -> list[StoredRow | None]:
        rows = list(seqs)
        found = super().read(rows, max_bytes)
        pairs = zip(rows, found, strict=False)
        return [None if seq in self.damaged else read for seq, read in pairs]


@pytest.mark.parametrize("complete", [False, True])
async def test_a_row_on_a_damaged_page(tmp_path: Path, complete: bool) -> None:
    """It is an error that is counted and logged, and it leaves the disk once both lanes know."""
    file = DamagedFile(tmp_path)
    async with running_spool(file) as spool:
        one = new_span("one", complete=complete)
        await added(spool, one, new_span("two"))
        for lane in (1, 2):
            spool.put_off(one, stored(one), lane)
        file.damaged = (1,)
        with structlog.testing.capture_logs() as logs:
            assert await load(spool, 1, 2, lane=1) == [Gone.UNREADABLE, "two"]
        assert [(line["event"], line["seq"]) for line in logs] == [("spool_row_unreadable", 1)]
        assert spool.status().errors == 1
        # Written in order, so that the first lane's outcome is on disk now.
        await added(spool, new_span("three"))
        assert spool.file.rows == 3
        assert await load(spool, 1, 2, lane=2) == [Gone.UNREADABLE, "two"]
        await until(lambda: spool.file.rows == 2)


def test_the_process_starts_although_a_row_is_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some tries each lane counts that row as lost; the others are recovered."""
    monkeypatch.setattr(delivery, "TTL_S", 3600.0)
    with process_in(tmp_path) as process:
        request(process, start("bad"), start("good"), seconds=0.5).result()
        process.kill(disk_call_done=False)
    tries: list[list[int]] = []
    read = ScriptedFile.read

    def fails(file: ScriptedFile, seqs: Iterable[int], max_bytes: int) -> list[StoredRow | None]:
        rows = list(seqs)
        if 1 in rows:
            tries.append(rows)
            raise sqlite3.OperationalError("disk I/O error")
        return read(file, rows, max_bytes)

    monkeypatch.setattr(ScriptedFile, "read", fails)
    with process_in(tmp_path, accepting=True) as process:
        for _ in range(120):
            process.pass_time(1.0)
            process.housekeeping()
        assert process.lost() == [1, 1]
        assert sent(process, "good") == [("open", PROMPT)] * 2
        given_up = len(tries)
        assert given_up > 1
        request(process, end("good"), seconds=0.5).result()
        process.pass_time(60.0)
        assert sent(process, "good") == FILLED
        assert len(tries) == given_up
        process.stop()
    assert rows_on_disk(tmp_path) == backlog([], [])


# A disk that fails.


def test_an_end_is_refused_if_its_prompt_can_not_be_loaded(tmp_path: Path) -> None:
    """It is not kept waiting, uncounted, and can be sent again once the disk works."""
    with process_in(tmp_path, accepting=True) as process:
        request(process, start("s"), seconds=0.5).result()
        request(process, large("large"), seconds=0.5).result()
        events = process.accounting.received_end
        file_of(process).broken = True
        ends = [request(process, end("s"), seconds=0.5) for _ in range(3)]
        process.pass_time(SOON_S / 2)
        for each in ends:
            assert each.done()
            with pytest.raises(QueueFull):
                each.result()
        assert process.accounting.received_end == events
        process.check()
        file_of(process).broken = False
        process.pass_time(RETRIED_S)
        request(process, end("s"), seconds=0.5).result()
        process.pass_time(1.0)
        assert sent(process, "s") == FILLED


def test_a_lock_that_fails_leaks_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is tried again for ever, and a process has few descriptors."""
    locked: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        locked.append(descriptor)
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    file = SpoolFile(str(tmp_path), 16 * 2**20, sync_full=False)
    for _ in range(2):
        with pytest.raises(OSError, match="No locks available"):
            file.open()
    for descriptor in locked:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)

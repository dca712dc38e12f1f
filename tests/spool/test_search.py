"""Finding the rows of a span or a trace in the spool."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.spans.heads import Wanted
from sidecar.spans.span import Span, to_row
from sidecar.spool import search
from sidecar.spool.rows import BASE
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.spans import make_span
from tests.support.spool import FlakyFile, changes, make_row, running_spool

MIB = 2**20
IDS = ["s", "t", "ss", 'a"b\\', "é"]
SPANS = st.builds(
    lambda id_, trace_id, content: make_span(
        id_, trace_id=trace_id, parent_id="s", input=b'{"q":%b}' % content
    ),
    st.sampled_from(IDS),
    st.sampled_from(IDS),
    st.sampled_from([b"1", b'{"id":"s","trace_id":"t","name":"s"}', b'"%b"' % (b"x" * 20_000)]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SPANS, max_size=8), st.integers(1, 5), st.integers(1, 50_000), st.booleans())
def test_it_finds_every_row(
    tmp_path_factory: pytest.TempPathFactory,
    spans: list[Span],
    rows: int,
    size: int,
    or_trace: bool,
) -> None:
    """However it is cut into pieces, it finds what is wanted, newest first, and no others."""
    file = SpoolFile(str(tmp_path_factory.mktemp("spool")), 16 * MIB, sync_full=False)
    file.open()
    bodies = [to_row(span) for span in spans]
    file.apply(changes(*(make_row(n, body, size=len(body)) for n, body in enumerate(bodies, 1))))
    with pytest.MonkeyPatch.context() as patch:
        limited = search.pieces_of(rows, size)
        patch.setattr(search, "_FIRST", limited)
        for id_ in IDS:
            found, pieces = everything(file, Wanted(id_, or_trace))
            assert found == [
                (number, span.id, span.trace_id)
                for number, span in reversed(list(enumerate(spans, 1)))
                if id_ == span.id or (or_trace and id_ == span.trace_id)
            ]
            assert pieces >= len(spans) / rows
    file.close()


def everything(file: SpoolFile, wanted: Wanted) -> tuple[list[tuple[int, str, str]], int]:
    """All rows that match, and in how many pieces they were looked for."""
    found, last, pieces = list[tuple[int, str, str]](), 1_000_000, 0
    while True:
        more, following = file.find(wanted, last)
        found += [(row.seq, row.id, row.trace_id) for row in more]
        if following is None:
            return found, pieces
        last = following
        pieces += 1


def test_a_base_is_no_write(tmp_path: Path) -> None:
    """The row of a START whose END has replaced it is not found."""
    file = SpoolFile(str(tmp_path), 16 * MIB, sync_full=False)
    file.open()
    body = to_row(make_span("s"))
    file.apply(changes(make_row(1, body, kind=BASE), make_row(2, body, base=1)))
    assert everything(file, Wanted("s", or_trace=False))[0] == [(2, "s", "t1")]
    file.close()


async def test_rows_in_memory_are_found(tmp_path: Path) -> None:
    """A row that is not on disk yet is found, too."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        for number in range(3):
            spool.add(make_span(f"s{number}", account=number))
        found = await spool.find(Wanted("s1", or_trace=False))
        assert [(row.id, row.account) for row in found] == [("s1", 1)]
        await spool.commit()
        assert await spool.find(Wanted("s1", or_trace=False)) == found
        assert len(await spool.find(Wanted("t1", or_trace=True))) == 3


async def test_it_ends_when_it_has_found_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops after the piece in which it has found `MAX_FOUND` rows."""
    monkeypatch.setattr(search, "_FIRST", search.pieces_of(2, MIB))
    monkeypatch.setattr(search, "MAX_FOUND", 3)
    async with running_spool(FlakyFile(tmp_path)) as spool:
        for number in range(9):
            spool.add(make_span(f"s{number}"))
        await spool.commit()
        found = await spool.find(Wanted("t1", or_trace=True))
    assert [row.id for row in found] == ["s8", "s7", "s6", "s5"]


async def test_requests_get_their_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction waits for one piece of a search only."""
    monkeypatch.setattr(search, "_FIRST", search.pieces_of(1, MIB))
    async with running_spool(FlakyFile(tmp_path)) as spool:
        for number in range(50):
            spool.add(make_span(f"s{number}"))
        await spool.commit()
        searching = asyncio.create_task(spool.find(Wanted("none", or_trace=True)))
        await asyncio.sleep(0)
        spool.add(make_span("later"))
        await spool.commit()
        assert not searching.done()
        assert await searching == []


async def test_a_disk_that_fails(tmp_path: Path) -> None:
    """It is an error of the search, and does not degrade the spool."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        spool.add(make_span("s"))
        await spool.commit()
        file.close()
        with pytest.raises(OSError, match="closed"):
            await spool.find(Wanted("s", or_trace=False))
        assert not spool.degraded
        file.open()

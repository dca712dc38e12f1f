"""Finding the dead letters of a span or a trace without decoding the others."""

import json
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.operate import letter_search
from sidecar.operate.letter_search import FoundLetter, search
from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.sinks.replayed import Place, known_by, mark
from sidecar.spans.heads import Wanted
from sidecar.spans.span import Span
from tests.support.spans import make_span

ERROR = Refused("HTTP 422", 422)
IDS = ["s", "t", "ss", 'a"b\\', "é", "\u2028\x01"]
SPANS = st.builds(
    lambda id_, trace_id, complete, content: make_span(
        id_,
        trace_id=trace_id,
        complete=complete,
        parent_id="s",
        input=b'{"q":%b}' % content,
    ),
    st.sampled_from(IDS),
    st.sampled_from(IDS),
    st.booleans(),
    # Content may look like a letter, or be longer than several chunks.
    st.sampled_from(
        [b"1", b'"s"', b'{"id":"s","trace_id":"t","name":"s"}', b'"%b"' % (b"x" * 200)]
    ),
)


def found(path: Path, id_: str, *, or_trace: bool = True) -> tuple[list[FoundLetter], bool]:
    """What a search without a deadline finds."""
    return search(str(path), Wanted(id_, or_trace), float("inf"))


def keep(path: Path, *spans: Span, max_bytes: int = 2**30) -> None:
    """Write the dead letters of `spans`."""
    letters = DeadLetters(str(path), max_bytes, lambda number: "acme" if number else "")
    for span in spans:
        letters.add("sgp", span, "refused", ERROR)


@given(st.lists(SPANS, max_size=6), st.integers(1, 70), st.booleans())
def test_it_finds_every_letter(
    tmp_path_factory: pytest.TempPathFactory, spans: list[Span], chunk: int, or_trace: bool
) -> None:
    """However the file is cut into chunks, it finds what is wanted, oldest first, and no others."""
    path = tmp_path_factory.mktemp("letters") / "letters"
    keep(path, *spans)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(letter_search, "CHUNK_BYTES", chunk)
        for id_ in IDS:
            letters, complete = found(path, id_, or_trace=or_trace)
            assert complete
            assert [(each.id, each.trace_id, each.kind) for each in letters] == [
                (span.id, span.trace_id, span.kind)
                for span in spans
                if id_ == span.id or (or_trace and id_ == span.trace_id)
            ]


def test_what_it_says_of_a_letter(tmp_path: Path) -> None:
    """Time, sink, reason, status, account and kind; never the content."""
    path = tmp_path / "letters"
    keep(path, make_span(account=1))
    ((head, kind, *ids, replayed),), _ = found(path, "s1")
    written = json.loads(path.read_bytes())
    assert (head.sink, head.reason, head.status, head.account) == ("sgp", "refused", 422, "acme")
    assert (head.time, kind, ids) == (written["time"], "complete", ["s1", "t1"])
    assert not replayed


def test_what_was_replayed(tmp_path: Path) -> None:
    """Each letter says whether it was replayed, also once its file is the older one."""
    path = tmp_path / "letters"
    keep(path, make_span("s1", trace_id="t0"))
    first = path.stat().st_size
    keep(path, make_span("s1", trace_id="t1"), make_span("s1", trace_id="t2"))
    mark(path, [Place(known_by(path.read_bytes()), first, path.stat().st_size)])
    keep(path, make_span("s1", trace_id="t3"))
    replayed = [("t0", False), ("t1", True), ("t2", True), ("t3", False)]
    assert [(each.trace_id, each.replayed) for each in found(path, "s1")[0]] == replayed
    path.rename(path.with_name("letters.1"))
    assert [(each.trace_id, each.replayed) for each in found(path, "s1")[0]] == replayed


def test_both_files(tmp_path: Path) -> None:
    """The older file is searched, too, and comes first."""
    path = tmp_path / "letters"
    spans = [make_span("s1", trace_id=f"t{number}") for number in range(4)]
    keep(path, *spans, max_bytes=1500)
    assert path.with_name("letters.1").exists()
    assert [each.trace_id for each in found(path, "s1")[0]] == ["t0", "t1", "t2", "t3"]
    path.unlink()
    assert [each.trace_id for each in found(path, "s1")[0]] == ["t0", "t1"]


def test_no_file(tmp_path: Path) -> None:
    """Without a file there are no letters; one that can't be opened is an error."""
    assert found(tmp_path / "none", "s1") == ([], True)
    with pytest.raises(OSError, match="directory"):
        found(tmp_path, "s1")


@pytest.mark.parametrize(
    "line",
    [
        b'{"time":"2026","sink":"sgp","reason":"refused","event":{"event_type":"end","span":{"id":"s1',
        b'"s1"',
        b'{"time":1,"event":{"event_type":"end","span":{"id":"s1","trace_id":"t","name":"n"}}}',
        b'{"time":"","event":{"event_type":"end","span":{"id":"s1","trace_id":"\xff","name":"n"}}}',
    ],
)
def test_a_line_that_is_no_letter(tmp_path: Path, line: bytes) -> None:
    """If it has the id, then not all that may be wanted was read; the letters are found."""
    path = tmp_path / "letters"
    path.write_bytes(b"garbage\n" + line + b'"s1"\n')
    keep(path, make_span("s1"))
    letters, complete = found(path, "s1")
    assert ([each.id for each in letters], complete) == (["s1"], False)
    assert found(path, "s2") == ([], True)


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives the newest letters only, and ends at its deadline."""
    path = tmp_path / "letters"
    keep(path, *(make_span("s1", trace_id=f"t{number}") for number in range(5)))
    monkeypatch.setattr(letter_search, "MAX_FOUND", 2)
    assert [each.trace_id for each in found(path, "s1")[0]] == ["t3", "t4"]
    with pytest.raises(TimeoutError):
        search(str(path), Wanted("s1", or_trace=False), monotonic() - 1)

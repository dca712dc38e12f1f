"""A START that arrives after its END: what it adds to the finished span (D26).

The states themselves are tested in test_open_spans.py, with no lane that needs supplements.
"""

from typing import Any

import pytest

from sidecar.queue import join
from sidecar.spans.span import ALL_PAYLOADS, SdkFields
from tests.support.open_spans import (
    AGENTEX,
    ALL,
    INPUT,
    OUTPUT,
    SGP,
    Bench,
    RecordingSpool,
    adds,
)

S = b'{"s":1}'
DATA_FOLLOWS = AGENTEX


@pytest.mark.parametrize("has", range(ALL_PAYLOADS))
@pytest.mark.parametrize("sdk", [None, SdkFields(AGENTEX)])
def test_a_late_start_adds_what_its_end_lacks(
    bench: Bench, has: int, sdk: SdkFields | None
) -> None:
    """Only that, and only once: a repeated START is joined."""
    names = [name for bit, name in enumerate(ALL) if has >> bit & 1]
    said: dict[str, Any] = {name: OUTPUT if name in names else b"" for name in ALL}
    end = bench.end(sdk=sdk, **said)
    bench.settle(end)
    start = bench.start(at=3.0, sdk=sdk, **ALL)
    assert bench.states() == (None, ["complete", "supplement"], (0, 0, 2))
    added = bench.written[-1]
    assert adds(added) == {name: ALL[name] for name in ALL if name not in names}
    assert (bench.budget.used, start.holders, len(bench.open_spans)) == (added.size, 0, 0)
    if isinstance(bench.spool, RecordingSpool):
        assert bench.spool.starts == [None, None]
    bench.start(at=4.0, sdk=sdk, **ALL)
    assert bench.states() == (None, ["complete", "supplement"], (1, 0, 2))


def test_a_late_start_adds_nothing_to_a_whole_end(bench: Bench) -> None:
    """It is joined."""
    bench.end(**ALL)
    bench.start(at=3.0, **ALL)
    assert bench.states() == (None, ["complete"], (1, 0, 1))


def test_a_late_start_without_what_is_lacking_adds_nothing(bench: Bench) -> None:
    """It is joined; one that has it is not."""
    bench.end(input=b"", output=OUTPUT)
    bench.start(at=3.0, input=b"", output=b'{"o":1}')
    assert bench.states() == (None, ["complete"], (1, 0, 1))
    bench.start(at=3.0, input=INPUT)
    bench.start(at=3.0, input=INPUT, data=S)
    assert bench.states() == (None, ["complete", "supplement", "supplement"], (1, 0, 3))
    assert [adds(span) for span in bench.written[1:]] == [{"input": INPUT}, {"data": S}]


def test_a_start_after_an_end_that_it_filled_adds_nothing(bench: Bench) -> None:
    """What the END left out was its START's, and is written."""
    bench.start()
    bench.end()
    bench.start(at=3.0, **ALL)
    assert bench.states() == (None, ["complete"], (2, 0, 1))


def test_a_late_start_for_another_lane_adds_nothing(bench: Bench) -> None:
    """There, it could only replace the finished row."""
    bench.end(sdk=SdkFields(SGP))
    bench.start(at=3.0, sdk=SdkFields(SGP), **ALL)
    assert bench.states() == (None, ["complete"], (1, 0, 1))


@pytest.mark.parametrize(("ticked", "accepted_at"), [(2.0, 3.0), (3.0, 3.0), (4.5, 4.5)])
def test_what_a_late_start_adds_is_as_old_as_the_start(
    bench: Bench, ticked: float, accepted_at: float
) -> None:
    """Or as new as the last tick, if that was later."""
    bench.end()
    bench.tick(ticked)
    bench.start(at=3.0)
    assert bench.written[-1].accepted_at == accepted_at


@pytest.mark.parametrize("second", range(ALL_PAYLOADS + 1))
@pytest.mark.parametrize("first", range(ALL_PAYLOADS + 1))
def test_a_late_start_adds_what_all_ends_lack(bench: Bench, first: int, second: int) -> None:
    """What any of them said is written."""
    for at, has in enumerate((first, second), 1):
        said: dict[str, Any] = {
            name: OUTPUT if has >> bit & 1 else b"" for bit, name in enumerate(ALL)
        }
        bench.end(at=at, end_time=f"2026-01-02T03:04:0{at + 6}+00:00", **said)
    bench.start(at=3.0, **ALL)
    bench.start(at=4.0, **ALL)
    lacking = ~(first | second)
    expected = {name: ALL[name] for bit, name in enumerate(ALL) if lacking >> bit & 1}
    assert [adds(span) for span in bench.written[2:]] == ([expected] if expected else [])


def test_an_end_between_two_late_starts(bench: Bench) -> None:
    """What the first START added counts, and what that END said."""
    bench.end(output=b"")
    bench.start(at=3.0, input=b"", data=S)
    bench.end(at=4.0)
    bench.start(at=5.0, **ALL)
    assert bench.states() == (None, ["complete", "supplement", "complete", "supplement"], (0, 0, 4))
    assert [adds(bench.written[at]) for at in (1, 3)] == [{"data": S}, {"input": ALL["input"]}]


def test_an_end_after_one_that_was_filled_lacks_nothing(bench: Bench) -> None:
    """What it leaves out, the first END and its START have said."""
    bench.start()
    bench.end()
    bench.end(at=2.0, input=b"", output=b'{"o":2}')
    bench.start(at=3.0, **ALL)
    assert bench.states() == (None, ["complete", "complete"], (2, 0, 2))


@pytest.mark.parametrize("first", [{}, ALL], ids=["thin", "whole"])
def test_a_repeated_end_lacks_nothing_that_was_written_before(
    bench: Bench, first: dict[str, Any]
) -> None:
    """Whether an earlier END or a late START said it: written again, it would replace that."""
    bench.end(**first)
    bench.start(at=3.0, **ALL)
    written = len(bench.written)
    bench.end(at=4.0)
    bench.start(at=5.0, **ALL)
    assert [span.kind for span in bench.written[written:]] == ["complete"]


def test_how_many_ends_are_remembered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an END lacks is forgotten together with the END."""
    monkeypatch.setattr(join, "MAX_REMEMBERED", 3)
    for number in range(10):
        bench.end(f"s{number}")
    assert len(bench.open_spans._ended._lacking) == 3
    bench.start("s9", at=3.0)
    bench.start("s6", at=3.0)
    assert bench.states()[1:] == (["complete"] * 10 + ["supplement"], (0, 1, 11))

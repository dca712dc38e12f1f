"""What an upstream must not see is taken out of each write."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.sinks.hiding import HidingSink, names_of, taken_out, without
from sidecar.spans.span import (
    ALL_PAYLOADS,
    DATA,
    PAYLOADS,
    SGP_ROUTE,
    SUPPLEMENT,
    Lanes,
    SdkFields,
    Span,
    Stored,
    to_row,
)
from tests.support.delivery import Upstream
from tests.support.spans import make_span

ANY = {name: b'{"%b":1}' % name.encode() for name in PAYLOADS}
EXTRA = b'"status":"ERROR","type":"CUSTOM","group_id":"g","expected":{"e":1},"new":{"n":1}'


@given(st.integers(0, ALL_PAYLOADS), st.sets(st.sampled_from(PAYLOADS)))
def test_payloads(hidden: int, present: set[str]) -> None:
    """Exactly the hidden ones are gone; the others are the same bytes; the span is as it was."""
    fields: dict[str, Any] = {name: ANY[name] if name in present else b"" for name in PAYLOADS}
    span = make_span(**fields)
    before = to_row(span)
    shown = without(span, hidden)
    for index, name in enumerate(PAYLOADS):
        assert getattr(shown, name) is (b"" if hidden >> index & 1 else getattr(span, name))
    gone = [name for index, name in enumerate(PAYLOADS) if hidden >> index & 1 and name in present]
    assert names_of(taken_out(span, hidden)) == gone
    assert (shown is span) == (not gone)
    assert to_row(span) == before
    assert without(shown, hidden) is shown


@pytest.mark.parametrize(
    ("hidden", "kept"),
    [
        (1, {"status", "type", "group_id", "expected", "new"}),
        (2, {"status", "type", "group_id", "new"}),
        (4, {"status", "type", "group_id", "expected"}),
        (7, {"status", "type", "group_id"}),
    ],
)
def test_members_of_an_sdks_item(hidden: int, kept: set[str]) -> None:
    """What was expected goes with the output, and what we do not know with `data`."""
    span = make_span(input=b"", output=b"", data=b"", sdk=SdkFields(SGP_ROUTE, EXTRA))
    shown = without(span, hidden)
    assert shown.sdk is not None
    members = msgspec.json.decode(b"{%b}" % shown.sdk.extra)
    assert (set(members), shown.sdk.lanes) == (kept, SGP_ROUTE)
    assert names_of(taken_out(span, hidden)) == names_of(hidden & ~1)


def supplement(**payloads: bytes) -> Span:
    """A write that only adds payloads."""
    fields: dict[str, Any] = {"input": b"", "output": b"", "data": b""} | payloads
    sdk = SdkFields(int(Lanes.AGENTEX), SUPPLEMENT)
    return make_span(complete=False, sdk=sdk, **fields)


def test_a_supplement_of_which_nothing_is_left() -> None:
    """It is skipped; one that has something left is still a supplement."""
    sink = HidingSink(Upstream("agentex", 1, data_follows=True), DATA | 1)
    assert sink.skips(supplement(data=b"{}", input=b"{}")) == "hidden"
    assert sink.skips(supplement(data=b"{}", output=b"{}")) is None
    assert without(supplement(data=b"{}", output=b"{}"), DATA | 1).is_supplement
    assert sink.skips(make_span(input=b"", output=b"", data=b"")) is None


@pytest.mark.parametrize(("on_disk", "reason"), [(DATA, None), (1, "hidden")])
def test_a_supplement_whose_payloads_are_on_disk(on_disk: int, reason: str | None) -> None:
    """What is only on disk now is something left, if the upstream may see it."""
    span = supplement()
    span.stored = Stored(1, dropped=on_disk)
    assert HidingSink(Upstream("agentex", 1, data_follows=True), 1).skips(span) == reason


@pytest.mark.parametrize(("hidden", "follows"), [(1, True), (DATA, False)])
def test_hidden_data_does_not_follow(hidden: int, follows: bool) -> None:
    """An open write without `data` needs no supplement if the upstream must not see it."""
    assert HidingSink(Upstream("agentex", 1, data_follows=True), hidden).data_follows == follows


async def test_what_the_sink_says_is_passed_on() -> None:
    """How many writes were not kept, the suspicion, and the reasons that the sink can have."""
    seen: list[tuple[Sequence[Span], int]] = []

    class Sink(Upstream):
        async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> int:
            seen.append((batch, suspicion))
            return 1

    inner = Sink("sgp", 5, reasons=frozenset({"id_taken"}))
    sink = HidingSink(inner, 1)
    assert await sink.send([make_span("a"), make_span("b")], suspicion=3) == 1
    ((batch, suspicion),) = seen
    assert ([span.input for span in batch], suspicion) == ([b"", b""], 3)
    assert [span.id for span in batch] == ["a", "b"]
    assert (sink.name, sink.max_batch) == ("sgp", 5)
    assert sink.reasons == {"id_taken", "hidden"}

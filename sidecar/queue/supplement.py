"""Supplements: writes that add payloads to a span that an upstream has already.

An upstream that merges `data` gets open writes without it, so that an END can store its own
(`Sink.data_follows`, D26). Then `data` has to follow if no END comes. And a START can arrive after
its END, from an SDK whose first request failed, with payloads that the END left out.
"""

from sidecar.spans.span import SUPPLEMENT, SdkFields, Span, copy_payloads, payloads_in_memory


def supplement(start: Span, which: int, lane: int, now: float) -> Span:
    """The write that adds the payloads of `start` with a bit in `which`, for one lane.

    `now` is loop time in seconds: a START may be an hour old, but this write is new.
    """
    trace = start.key, start.name, start.start_time, None, start.parent_id, start.task_id
    added = Span(*trace, b"", b"", b"", now, sdk=SdkFields(lane, SUPPLEMENT))
    added.lanes, added.account = lane, start.account
    copy_payloads(added, start, which)
    return added


def both_needed(earlier: Span, later: Span) -> bool:
    """Whether neither makes the other redundant: one of them adds to what the other has."""
    if later.is_supplement:
        stored = earlier.end_time is not None or earlier.is_supplement
        return stored and _adds(later, earlier)
    return earlier.is_supplement and (later.end_time is None or _adds(earlier, later))


def _adds(supplement: Span, other: Span) -> bool:
    return bool(payloads_in_memory(supplement) & ~payloads_in_memory(other))

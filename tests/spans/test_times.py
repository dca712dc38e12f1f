"""The times of a span: what is accepted, and in which form it is forwarded (docs/api.md)."""

from datetime import UTC, datetime, timedelta, timezone

import orjson
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sidecar.demo.bodies import parse_time
from sidecar.spans.decode import decode, validated_span
from sidecar.spans.span import WireSpan
from sidecar.spans.validation import FieldError
from tests.support.spans import make_event


def forwarded(start: str, end: str | None = None) -> tuple[str, str | None]:
    """The start and the end of a span as they are forwarded. Raises `FieldError`."""
    span = validated_span(WireSpan("s1", "t1", "turn", start, end), 0.0)
    return span.start_time, span.end_time


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-02T03:04:05Z",
        "2026-01-02T03:04:05+00:00",
        "2026-01-02T03:04:05-00:00",
        "2026-01-02T03:04:05.6Z",
        "2026-01-02T03:04:05.678901+00:00",
        "2026-01-02T03:04:05.678901234Z",
        "2026-01-02T03:04:05.678901234567-08:00",
        "2026-01-02 03:04:05Z",
        "2026-01-02T03:04Z",
        "2026-01-02T03:04+05:30",
        "2026-01-02T03:04:05.1+05:30",
        "2026-01-02T03:04:05+23:59",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999999Z",
        "9999-12-31T23:59:59+00:01",
    ],
)
def test_plain_times_are_forwarded_unchanged(text: str) -> None:
    """Text that upstreams accept is kept: a replay must carry the same start."""
    assert forwarded(text, text) == (text, text)


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-02T03:04:05",
        "2026-01-02T03:04:05.678901234",
        "2026-01-02 03:04:05.6",
        "2026-01-02T03:04",
    ],
)
def test_a_missing_offset_is_added(text: str) -> None:
    """A time without an offset is UTC."""
    assert forwarded(text, text) == (f"{text}+00:00", f"{text}+00:00")


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("2026-01-02t03:04:05Z", "2026-01-02T03:04:05+00:00"),
        ("2026-01-02T03:04:05z", "2026-01-02T03:04:05+00:00"),
        ("2026-01-02t03:04:05.678z", "2026-01-02T03:04:05.678000+00:00"),
        ("2026-01-02t03:04", "2026-01-02T03:04:00+00:00"),
        ("2026-01-02T03:04:05,678Z", "2026-01-02T03:04:05.678000+00:00"),
        ("2026-01-02T03:04:05,678901234", "2026-01-02T03:04:05.678901+00:00"),
        ("2026-01-02T03:04:05+05", "2026-01-02T03:04:05+05:00"),
        ("2026-01-02T03:04:05-0530", "2026-01-02T03:04:05-05:30"),
        ("2026-01-02T03:04:05.6+0530", "2026-01-02T03:04:05.600000+05:30"),
        ("2026-01-02T03:04+05", "2026-01-02T03:04:00+05:00"),
        ("2026-01-02T03:04:05+05:60", "2026-01-02T03:04:05+06:00"),
        ("2026-01-02T03:04:05+05:30:00", "2026-01-02T03:04:05+05:30"),
        ("2026-01-02T03:04:05+00:00:00", "2026-01-02T03:04:05+00:00"),
        ("2026-01-02T03:04:05+01:02:03", "2026-01-02T02:02:02+00:00"),
        ("2026-01-02T03:04:05-010203", "2026-01-02T04:06:08+00:00"),
        ("2026-01-02T03:04:05+05:30:10.5", "2026-01-01T21:33:54.500000+00:00"),
        ("2026-01-02T03:04:05-00:00:01,000001", "2026-01-02T03:04:06.000001+00:00"),
        ("2026-01-02 03:04:05 +0000", "2026-01-02T03:04:05+00:00"),
        ("2026-01-02 03:04:05.678 Z", "2026-01-02T03:04:05.678000+00:00"),
    ],
)
def test_other_times_are_rewritten(text: str, instead: str) -> None:
    """What an upstream may refuse is forwarded as the same instant in plain form."""
    assert forwarded(text, text) == (instead, instead)
    assert forwarded(instead) == (instead, None)


@pytest.mark.parametrize(
    "text",
    [
        "now",
        "2026-01-02",
        "20260102T030405Z",
        "2026-01-02T030405Z",
        "2026-W01-1T03:04:05Z",
        "2026-13-02T03:04:05Z",
        "2026-02-30T03:04:05Z",
        "2026-01-02T25:04:05Z",
        "2026-01-02T24:00:01Z",
        "2026-01-02T23:59:60Z",
        "2026-01-02X03:04:05Z",
        "2026-01-02_03:04:05Z",
        "2026-01-02T03Z",
        "2026-01-02T03:04.5Z",
        "2026-01-02T03:04:05.Z",
        "2026-01-02T03:04:05:06Z",
        "2026-01-02T03:04:05X+00:00",
        "2026-01-02T03:04:05.678901XZ",
        "2026-01-02T03:04:05Z\0Z",
        "2026-01-02T03:04:05\0Z",
        "2026-01-02T03:04:05+24:00",
        "2026-01-02T03:04:05-23:60",
        "2026-01-02T03:04:05+5",
        "2026-01-02T03:04:05+05:30.5",
        "2026-01-02T03:04:05+00:00:00.5",
        "2026-01-02T03:04:05\u221205:30",
        "2026-01-02T03:04:0\u0665Z",
        " 2026-01-02T03:04:05Z",
        "2026-01-02T03:04:05Z ",
        "2026-01-02T03:04:05 ",
        "2026-01-02T03:04:05Z\n",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "03:04:05",
        "1767323045",
        "2026-01-02T03:04:05 UTC",
        "\ufffd",
    ],
)
@pytest.mark.parametrize("field", ["start_time", "end_time"])
def test_what_is_not_a_time(field: str, text: str) -> None:
    """Text that is not a time is rejected, even where Python's parser finds a time in it."""
    event = make_event(kind="end", **{field: text})
    ((_, _, error, *_),) = decode(orjson.dumps(event), 0.0).rejected
    assert error == f"span.{field} is not an RFC 3339 time"


@pytest.mark.parametrize(
    "text",
    [
        "0001-01-01T00:00:00+00:01",
        "0001-01-01T23:58:59.999999+23:59",
        "9999-12-31T23:59:59-00:01",
        "9999-12-31t23:59:59-01",
        "0001-01-01T00:00:00+00:00:01",
    ],
)
@pytest.mark.parametrize("field", ["start_time", "end_time"])
def test_years_end_in_utc(field: str, text: str) -> None:
    """A time is rejected if its UTC has no year that upstreams can store."""
    event = make_event(kind="end", **{field: text})
    ((_, _, error, *_),) = decode(orjson.dumps(event), 0.0).rejected
    assert error == f"span.{field} is outside the years 1 to 9999 in UTC"


@pytest.mark.parametrize(
    ("end", "valid"),
    [
        ("2026-01-02T03:04:05.678901Z", True),
        ("2026-01-02T03:04:05.6789Z", False),
        ("2026-01-02T04:04:05.678901+01:00", True),
        ("2026-01-02T04:04:05,678901+01", True),
        ("2026-01-02t03:04:05.678901z", True),
        ("2026-01-02T04:06:08.678900+01:02:03", False),
        ("2026-01-02T04:06:08.678901+01:02:03", True),
        ("2026-01-02T03:04:06+01:00", False),
        ("2026-01-02T03:04:06", True),
        ("2026-01-01T23:04:06-08:00", True),
    ],
)
def test_an_end_is_not_before_its_start(end: str, valid: bool) -> None:
    """Instants are compared, not text; no offset means UTC; a duration of 0 is valid."""
    start = "2026-01-02T03:04:05.678901Z"
    if valid:
        assert forwarded(start, end)[1] is not None
    else:
        with pytest.raises(FieldError, match=r"^span\.end_time is before span\.start_time$"):
            forwarded(start, end)


offsets = st.integers(-23 * 60, 23 * 60).map(lambda m: timezone(timedelta(minutes=m)))
moments = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29))  # noqa: DTZ001 (naive on purpose)


@given(st.datetimes(timezones=st.none() | offsets))
def test_every_isoformat_is_a_time(at: datetime) -> None:
    """Every output of `isoformat` is forwarded as it is, but for a missing offset."""
    text = at.isoformat()
    try:
        at.astimezone(UTC) if at.tzinfo else None
    except OverflowError:
        with pytest.raises(FieldError, match="years"):
            forwarded(text)
    else:
        assert forwarded(text)[0] == (text if at.tzinfo else f"{text}+00:00")


@given(
    moments,
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)),
    st.sampled_from("Tt "),
    st.sampled_from(".,"),
    st.booleans(),
    st.sampled_from([0, 1_000_000, 60_000_000, 3_600_000_000]),
)
def test_a_written_time_keeps_its_instant(
    at: datetime, offset: timedelta, separator: str, point: str, basic: bool, step: int
) -> None:
    """However a moment is written, upstreams read the same one."""
    offset -= offset % timedelta(microseconds=step or 1)
    assume(not timedelta(0) < abs(offset) < timedelta(seconds=1))  # refused
    aware = at.replace(tzinfo=timezone(offset))
    clock, zone = at.isoformat(separator), aware.isoformat()[len(at.isoformat()) :]
    if step == 3_600_000_000:
        zone = zone[:3]
    zone = zone.replace(":", "") if basic else zone
    start, _ = forwarded(clock.replace(".", point) + zone)
    assert parse_time(start) == aware


seeds = [
    "2026-01-02T03:04:05.678901+00:00",
    "2026-01-02t03:04:05,6z",
    "2026-01-02 03:04+0530",
    "0001-01-01T00:00:00.678901234-01:02:03",
    "9999-12-31T23:59:59.678901 +01",
]
edits = st.tuples(
    st.integers(0, 40),
    st.sampled_from(["", *"0123456789TtZz.,:+- _XW\0\n\u2212\u0665", ":30", "00"]),
    st.integers(0, 3),
)


@given(st.sampled_from(seeds), st.lists(edits, max_size=4))
@example("2026-01-02T03:04:05.678901+00:00", [(26, "Z\0", 0), (60, "Z", 0)])
def test_whatever_is_accepted_can_be_delivered(
    text: str, changes: list[tuple[int, str, int]]
) -> None:
    """Agentex reads each forwarded time, and reads the text itself as no other instant."""
    for at, new, drop in changes:
        text = text[:at] + new + text[at + drop :]
    try:
        start, _ = forwarded(text)
    except FieldError:
        return
    try:
        meant = parse_time(text)
    except ValueError:
        assert start != text
        parse_time(start)
    else:
        assert parse_time(start) == meant

"""The batch size limit: smaller after a failure, larger again after successes."""

import random
from collections.abc import Callable, Collection

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from sidecar.drain.evidence import BatchSizeLimit, Evidence
from sidecar.drain.retry_queue import Batch
from sidecar.sinks import Misdirected, Refused, SinkError, TooLarge, Unauthorized, Unavailable
from sidecar.spans.span import total_size
from tests.drain.test_scheduler import NOW, Lane
from tests.support.spans import make_span

LIMIT = 1000  # bytes
TIMEOUT, TOO_LARGE = Unavailable("timed out"), TooLarge("HTTP 413", 413)


def learned(limit: BatchSizeLimit, *sizes: int, certain: bool = False) -> int:
    """The limit after batches of these sizes; a negative one failed."""
    for size in sizes:
        if size < 0:
            limit.failed(-size, certain=certain)
        elif limit.learning:
            limit.succeeded(size)
    return limit.max_bytes


def batch_of(*sizes: int) -> Batch:
    """A batch of writes of these sizes."""
    spans = [make_span(f"s{number}") for number in range(len(sizes))]
    for span, size in zip(spans, sizes, strict=True):
        span.size = size
    return Batch(spans)


# What a failure teaches.


@pytest.mark.parametrize(
    ("sizes", "max_bytes"),
    [
        ([-800], 400),  # smaller batches come next
        ([-800, -400], 200),
        ([-800, -800, -800], 400),  # those of the same time count as one
        ([-400, -800], 200),  # what was formed under an earlier limit proves nothing new
        ([-800, 400], 800),  # one that gets through is enough
        ([-800, 201], 800),
        ([-800, 200], 400),  # it would have passed under half of the limit, too
        ([-800, 400, 800], 1000),  # never more than what is configured
        ([-800, 400, -800], 400),
        ([300, 900, -800], 400),
        ([-1600], 800),  # a large write made it larger than the limit
        ([-2000], 1000),
        ([-3], 1),
        ([-2, -2], 1),
    ],
    ids=str,
)
def test_smaller_after_a_failure_larger_after_a_success(sizes: list[int], max_bytes: int) -> None:
    """Half of what failed; twice as much after a batch that fills more than half of the limit."""
    assert learned(BatchSizeLimit(LIMIT), *sizes) == max_bytes


def fail_trial(limit: BatchSizeLimit, *, certain: bool = False) -> int:
    """The next batch of the size that is on trial fails; how many have to pass before another."""
    size = limit.max_bytes
    lower = learned(limit, -size, certain=certain)
    passed = 0
    while limit.max_bytes == lower:
        learned(limit, lower)
        passed += 1
    assert limit.max_bytes == size
    return passed


def test_each_failed_trial_doubles_the_patience() -> None:
    """Contrast: smaller batches have passed, and larger ones fail right after them."""
    limit = BatchSizeLimit(LIMIT)
    found = [fail_trial(limit) for _ in range(10)]
    assert found == [1, 2, 4, 8, 16, 32, 64, 128, 128, 128]


def test_a_trial_that_succeeds_halves_the_patience() -> None:
    """The larger size is fine after all, at least now; so the next larger one is due earlier."""
    limit = BatchSizeLimit(LIMIT)
    learned(limit, -LIMIT, -500, -250)  # 125
    learned(limit, 125)
    assert [fail_trial(limit) for _ in range(4)] == [2, 4, 8, 16]
    assert learned(limit, *[250] * 7) == 250
    assert learned(limit, 250) == 500
    assert learned(limit, *[500] * 3) == 500
    assert learned(limit, 500) == LIMIT


def test_a_failure_of_a_size_that_has_passed_is_no_contrast() -> None:
    """Its size was fine before: the limit falls, but the patience does not grow."""
    limit = BatchSizeLimit(LIMIT)
    for _ in range(10):
        assert learned(limit, 400, 900, -900) == 450
        assert learned(limit, 450, 900) == LIMIT


def test_batches_that_fail_together_are_one_contrast() -> None:
    """Several of the size on trial are in flight when the first one fails."""
    limit = BatchSizeLimit(LIMIT)
    learned(limit, -800, 400)
    assert learned(limit, -800, -790, -800, -800) == 395
    assert learned(limit, 395, -790) == 395
    assert learned(limit, 395) == 790


def test_a_failure_starts_the_count_again() -> None:
    """What passed before it says nothing about the new limit."""
    limit = BatchSizeLimit(LIMIT)
    learned(limit, -800, 400, -800)
    assert learned(limit, 400, -400) == 200
    assert learned(limit, 200) == 200
    assert learned(limit, 200) == 400


def test_small_batches_do_not_raise_the_limit() -> None:
    """Those that would pass under half of it, too, say nothing about a higher one."""
    limit = BatchSizeLimit(LIMIT)
    assert learned(limit, -800, *[200] * 1000) == 400
    assert learned(limit, 201) == 800
    assert learned(limit, *[400] * 1000, -800) == 400  # 800 was still on trial
    assert learned(limit, 400) == 400


def test_a_413_needs_much_patience() -> None:
    """It says that it is the size; but a gateway's setting may change, or a server behind it."""
    limit = BatchSizeLimit(LIMIT)
    found = [fail_trial(limit, certain=True) for _ in range(4)]
    assert found == [32, 64, 128, 128]
    limit = BatchSizeLimit(LIMIT)
    found = [fail_trial(limit, certain=certain) for certain in (False, True, False)]
    assert found == [1, 32, 64]


def test_in_the_end_the_limit_is_forgotten() -> None:
    """Back at the maximum, there is nothing left to learn, and the next failure costs little."""
    limit = BatchSizeLimit(LIMIT)
    assert not limit.learning
    for _ in range(8):
        fail_trial(limit)
    assert limit.learning
    learned(limit, *[LIMIT] * 500)
    assert (limit.max_bytes, limit.learning) == (LIMIT, False)
    assert fail_trial(limit) == 1


@given(st.lists(st.tuples(st.integers(-1500, 1500).filter(bool), st.booleans()), max_size=60))
def test_the_limit_stays_within_its_bounds(outcomes: list[tuple[int, bool]]) -> None:
    """At least one byte and at most what is configured; and it is never stuck."""
    limit = BatchSizeLimit(LIMIT)
    for size, certain in outcomes:
        before = limit.max_bytes
        after = learned(limit, size, certain=certain)
        assert 1 <= after <= LIMIT
        assert after <= before if size < 0 else before <= after <= 2 * before
        assert limit.learning or after == LIMIT
    batches = 0
    while limit.learning:
        learned(limit, limit.max_bytes)
        batches += 1
    assert limit.max_bytes == LIMIT
    assert batches <= 3 * BatchSizeLimit.MAX_PATIENCE + 10


@pytest.mark.parametrize(
    ("error", "learns"),
    [
        (Unavailable("HTTP 500", 500), True),
        (TIMEOUT, True),
        (Unauthorized("HTTP 403", 403), True),  # of a firewall, perhaps
        (Misdirected("HTTP 404", 404), True),
        (TOO_LARGE, True),
        (Refused("HTTP 422", 422), False),  # about content, whatever its size
        (Unavailable("ConnectionRefusedError", reached=False), False),  # nobody saw its size
        (Unauthorized("no credential yet", reached=False), False),
    ],
    ids=str,
)
def test_which_failures_may_be_about_size(error: SinkError, learns: bool) -> None:
    """Of several writes together: a single one can't be made smaller."""
    for sizes in ((800,), (400, 400), (100, 100, 600)):
        evidence = Evidence(LIMIT)
        evidence.failed(batch_of(*sizes), error)
        fell = learns and len(sizes) > 1
        assert evidence.size_limit.max_bytes == (400 if fell else LIMIT)
        for _ in range(31):
            evidence.succeeded(batch_of(400))
        still = fell and error is TOO_LARGE
        assert (evidence.size_limit.max_bytes == 400) is still


# What it costs a lane.


@pytest.mark.parametrize("size", [2, 300, 600, 1000])
def test_many_outages_cost_no_more_than_one(size: int) -> None:
    """Whatever the lane's batches are like: a few smaller ones, and then as many as before."""
    limit = BatchSizeLimit(LIMIT)
    for _ in range(20):
        learned(limit, -size)
        batches = 0
        while limit.max_bytes < size:
            learned(limit, limit.max_bytes)
            batches += 1
        assert batches <= 2
        learned(limit, *[size] * 20)


def test_an_outage_may_hit_a_tiny_batch() -> None:
    """The limit is soon back, because all batches are large from now on."""
    limit, batches = BatchSizeLimit(LIMIT), 0
    assert learned(limit, -2) == 1
    while limit.max_bytes < LIMIT:
        learned(limit, limit.max_bytes)
        batches += 1
    assert batches <= 10


class Upstream:
    """One that a lane with much to send depends on; counts its requests."""

    def __init__(
        self, lane: Lane, takes: Callable[[Batch], bool], error: SinkError = TIMEOUT
    ) -> None:
        self.lane, self.takes, self.error = lane, takes, error
        self.now, self.requests, self.failed = NOW, 0, 0

    def serve(self) -> None:
        """Respond until nothing is left to be sent."""
        lane = self.lane
        while (step := lane.scheduler.next(self.now)) is not None:
            lane.scheduler.sending = 0
            if not isinstance(step, Batch):
                self.now = step
                continue
            self.requests += 1
            sent_at, self.now = self.now, self.now + 0.01
            if self.takes(step):
                lane.settlement.succeeded(step, sent_at, self.now, 1)
            else:
                self.failed += 1
                lane.failed(step, self.error, sent_at, self.now)


def full_lane(writes: int, sizes: Collection[int], max_batch: int = 500) -> Lane:
    """A lane with a backlog of writes of such sizes, by chance."""
    lane, chance, choices = Lane(max_batch=max_batch, max_bytes=LIMIT), random.Random(1), [*sizes]
    for number in range(writes):
        span = make_span(f"s{number}", accepted_at=NOW)
        span.size = chance.choice(choices)
        lane.queue.put(span)
    return lane


@pytest.mark.parametrize("error", [TIMEOUT, TOO_LARGE], ids=str)
@pytest.mark.parametrize("takes", [130, 400, 510, 700])
@pytest.mark.parametrize("sizes", [[20], range(1, 41)], ids=["alike", "mixed"])
def test_a_gateways_limit_costs_few_requests(
    takes: int, sizes: Collection[int], error: SinkError
) -> None:
    """Almost all batches are below it, and they are not too small."""
    lane = full_lane(10_000, sizes)
    upstream = Upstream(lane, lambda batch: total_size(batch.spans) <= takes, error)
    upstream.serve()
    assert (lane.queue.depth, lane.given_up) == (0, [])
    assert upstream.failed <= 0.05 * upstream.requests
    mean = sum(sizes) / len(sizes)
    assert upstream.requests <= 2.5 * 10_000 * mean / takes


def test_a_hated_write_costs_few_requests() -> None:
    """It is soon alone; the others are not sent one by one because of it."""
    lane = full_lane(5_000, [10], max_batch=100)
    hated = {"s777", "s2222", "s3333", "s4444"}
    upstream = Upstream(lane, lambda batch: hated.isdisjoint(span.id for span in batch.spans))
    with structlog.testing.capture_logs():
        upstream.serve()
    assert {*lane.given_up} == hated
    assert upstream.requests - upstream.failed <= 50 + 4 * 20


def test_random_failures_cost_few_requests() -> None:
    """If one request in ten fails, batches stay large, and nothing is given up."""
    lane, chance = full_lane(10_000, [10], max_batch=100), random.Random(1)
    upstream = Upstream(lane, lambda _: chance.random() >= 0.1)
    upstream.serve()
    assert lane.given_up == []
    assert upstream.requests <= 2 * 100

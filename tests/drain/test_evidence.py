"""Poison detector, circuit breaker, and what they find together."""

import pytest

from sidecar.drain.evidence import CircuitBreaker, Evidence, Findings, PoisonDetector
from sidecar.drain.retry_queue import Batch
from sidecar.sinks import (
    IdTaken,
    Misdirected,
    Refused,
    SinkError,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from tests.support.spans import make_span

LIMIT = 1000  # bytes
HTTP_500 = Unavailable("HTTP 500", 500)
NOT_REACHED = Unavailable("ConnectionRefusedError", reached=False)
REFUSED, TOO_LARGE = Refused("HTTP 422", 422), TooLarge("HTTP 413", 413)
# Failures that are no verdict on content.
FAILURES = [HTTP_500, Unauthorized("HTTP 403", 403), Misdirected("HTTP 404", 404)]


def new_batch(writes: int = 1) -> Batch:
    """A batch that has not failed yet."""
    return Batch([make_span(f"s{number}") for number in range(writes)])


def fail(evidence: Evidence, batch: Batch, error: SinkError = HTTP_500) -> Findings:
    """Record a failure of `batch` as the drain does."""
    findings = evidence.failed(batch, error)
    batch.attempts += 1
    batch.failures += 1
    return findings


def fail_in(detector: PoisonDetector, batch: Batch) -> bool:
    """Record a failure of `batch` in the detector alone; whether it is contradicted."""
    found = detector.failed(batch)
    batch.attempts += 1
    batch.failures += 1
    return found


# The poison detector.


def test_a_failure_proves_nothing_while_nothing_succeeds() -> None:
    """If no other batch succeeds, no failure is contradicted."""
    detector, batch = PoisonDetector(), new_batch()
    assert not any(fail_in(detector, batch) for _ in range(20))


@pytest.mark.parametrize("writes", [1, 3])
def test_each_contradiction_needs_another_success(writes: int) -> None:
    """A failure is contradicted by a success after the previous failure, and only once."""
    detector, batch = PoisonDetector(), new_batch(writes)
    detector.succeeded(new_batch())
    assert not fail_in(detector, batch)
    detector.succeeded(new_batch(writes))
    assert [fail_in(detector, batch) for _ in range(2)] == [True, False]
    detector.succeeded(new_batch())
    assert fail_in(detector, batch)


@pytest.mark.parametrize(
    ("failures_in_ten", "most_succeed"), [(0, True), (2, True), (3, False), (5, False), (10, False)]
)
def test_a_half_broken_upstream_proves_nothing(failures_in_ten: int, most_succeed: bool) -> None:
    """Three quarters of the recent writes sent alone, or of what got through, must succeed."""
    detector, batch = PoisonDetector(), new_batch()
    for number in range(100):
        if number % 10 < failures_in_ten:
            fail_in(detector, new_batch())
        else:
            detector.succeeded(new_batch())
    fail_in(detector, batch)
    assert detector.most_succeed is most_succeed


def test_the_detector_has_a_short_memory() -> None:
    """It forgets what happened more than 50 requests ago."""
    detector = PoisonDetector()
    for _ in range(100):
        fail_in(detector, new_batch())
    for number in range(50):
        assert detector.most_succeed is (number >= 37)
        detector.succeeded(new_batch())
    assert detector.most_succeed


def test_a_request_counts_once() -> None:
    """A write that fails alone counts by its first failure, whatever becomes of it then."""
    detector, bad = PoisonDetector(), new_batch()
    fail_in(detector, new_batch())
    fail_in(detector, bad)
    for _ in range(20):
        fail_in(detector, bad)
        detector.succeeded(bad)
    assert not detector.most_succeed
    for _ in range(3):
        detector.succeeded(new_batch())
    assert detector.most_succeed


def test_batches_of_several_count_only_if_they_get_through() -> None:
    """One bad write is enough to make them fail, however healthy the upstream is."""
    detector = PoisonDetector()
    for _ in range(50):
        fail_in(detector, whole := new_batch(2))
    assert detector.most_succeed
    for half in whole.halves():
        fail_in(detector, half)
    assert not detector.most_succeed
    retried = new_batch(2)
    fail_in(detector, retried)
    for _ in range(3):
        detector.succeeded(retried)
    assert detector.most_succeed


# The circuit breaker.


def test_the_breaker_tolerates_a_few_refusals() -> None:
    """Ten refused writes are given up, the next one is kept; one success closes the breaker."""
    breaker = CircuitBreaker()
    assert not any(breaker.refused() for _ in range(CircuitBreaker.TOLERATED_REFUSALS))
    assert breaker.refused()
    breaker.forwarded(1)
    assert not breaker.is_open
    assert not breaker.refused()


def test_bad_writes_among_good_ones_do_not_open_the_breaker() -> None:
    """The breaker stays closed while one write in five is refused."""
    breaker = CircuitBreaker()
    for _ in range(100):
        breaker.forwarded(4)
        assert not breaker.refused()


@pytest.mark.parametrize("error", [REFUSED, TOO_LARGE], ids=str)
def test_only_writes_refused_alone_open_the_breaker(error: SinkError) -> None:
    """A batch of several may be refused for one of them: it proves nothing about the settings."""
    evidence = Evidence(LIMIT)
    several = [fail(evidence, new_batch(2), error) for _ in range(50)]
    alone = [fail(evidence, new_batch(), error) for _ in range(12)]
    assert {*several, *alone[:10]} == {Findings()}
    assert alone[10:] == [Findings(breaker_is_open=True)] * 2
    evidence.succeeded(new_batch())
    assert fail(evidence, new_batch(), error) == Findings()


@pytest.mark.parametrize("error", [IdTaken("taken", 400), *FAILURES], ids=str)
def test_other_failures_never_open_the_breaker(error: SinkError) -> None:
    """That an id is taken depends on the write, and other failures are no refusal."""
    evidence = Evidence(LIMIT)
    assert not any(fail(evidence, new_batch(), error).breaker_is_open for _ in range(50))


# Consecutive failures.


def test_consecutive_failures_are_counted_until_the_upstream_responds() -> None:
    """A success or a verdict on content ends the count, whichever batch gets it."""
    for ending in (None, REFUSED, TOO_LARGE, IdTaken("taken", 400)):
        evidence = Evidence(LIMIT)
        counts = [fail(evidence, new_batch(2)).failures for _ in range(4)]
        if ending is None:
            evidence.succeeded(new_batch())
        else:
            fail(evidence, new_batch(), ending)
        assert counts == [1, 2, 3, 4]
        assert fail(evidence, new_batch()) == Findings()


def test_new_failures_are_those_of_batches_that_had_not_failed_before() -> None:
    """A batch that is sent again counts once; each half of a batch that was split is new."""
    evidence, batch, other = Evidence(LIMIT), new_batch(4), new_batch()
    first, second = [fail(evidence, each) for each in (batch, batch)]
    assert (first.new_failures, second.new_failures) == (1, 1)
    found = [fail(evidence, each).new_failures for each in (*batch.halves(), other, other)]
    assert found == [2, 3, 4, 4]


# Suspicion.


@pytest.mark.parametrize("error", FAILURES, ids=str)
def test_a_write_collects_suspicion(error: SinkError) -> None:
    """Each failure after which others get through adds one, whatever the decision."""
    evidence, batch = Evidence(LIMIT), new_batch()
    found = []
    for others_succeed in (False, False, True, True, False):
        if others_succeed:
            evidence.succeeded(new_batch())
        found.append((fail(evidence, batch, error).contradicted, batch.suspicion))
    assert found == [(False, 0), (False, 0), (True, 1), (True, 2), (False, 2)]


@pytest.mark.parametrize(
    ("error", "writes", "contradicted"),
    [(HTTP_500, 2, True), (NOT_REACHED, 1, False), (REFUSED, 1, False), (TOO_LARGE, 1, False)],
    ids=str,
)
def test_what_causes_no_suspicion(error: SinkError, writes: int, contradicted: bool) -> None:
    """Failing together with others, not reaching the upstream, or a verdict on content."""
    evidence, batch = Evidence(LIMIT), new_batch(writes)
    fail(evidence, batch, error)
    for _ in range(20):
        evidence.succeeded(new_batch())
        assert fail(evidence, batch, error).contradicted is contradicted
    assert batch.suspicion == 0


def test_a_part_that_fails_alone_is_suspected_at_once() -> None:
    """The other half got through after the whole had failed."""
    evidence, whole = Evidence(LIMIT), new_batch(2)
    fail(evidence, whole)
    good, bad = whole.halves()
    evidence.succeeded(good)
    assert fail(evidence, bad).contradicted
    assert (good.suspicion, bad.suspicion) == (0, 1)


def test_no_suspicion_while_many_writes_fail() -> None:
    """The batch is contradicted, but the upstream may be half broken."""
    evidence, batch = Evidence(LIMIT), new_batch()
    for _ in range(20):
        fail(evidence, new_batch())
        evidence.succeeded(new_batch())
        fail(evidence, batch)
    evidence.succeeded(new_batch())
    assert fail(evidence, batch).contradicted
    assert batch.suspicion == 0


def test_a_success_before_a_refusal_proves_nothing_later() -> None:
    """Half of a refused batch is contradicted only by a success after the refusal."""
    evidence, batch = Evidence(LIMIT), new_batch(2)
    evidence.succeeded(new_batch())
    fail(evidence, batch, REFUSED)
    half, _ = batch.halves()
    assert not fail(evidence, half).contradicted
    assert half.suspicion == 0

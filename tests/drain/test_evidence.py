"""Poison detector, circuit breaker and batch size limit."""

import pytest

from sidecar.drain.evidence import (
    BatchSizeLimit,
    CircuitBreaker,
    Evidence,
    Findings,
    PoisonDetector,
)
from sidecar.drain.retry_queue import Batch
from sidecar.sinks import Refused, SinkError, TooLarge, Unauthorized, Unavailable
from tests.support.spans import make_span


def fail(detector: PoisonDetector, batch: Batch) -> bool:
    """Record a failure of `batch`; whether it counts against it."""
    first = batch.attempts == 0
    batch.attempts += 1
    return detector.counts_against(batch, first=first)


def test_a_failure_proves_nothing_while_nothing_succeeds() -> None:
    """If no other batch succeeds, a batch is never suspected."""
    detector, batch = PoisonDetector(), Batch([make_span()])
    assert not any(fail(detector, batch) for _ in range(20))


def test_each_suspicion_needs_another_success() -> None:
    """A failure counts only if another batch has succeeded since the previous failure."""
    detector, batch = PoisonDetector(), Batch([make_span()])
    fail(detector, batch)
    detector.succeeded(first=True)
    assert [fail(detector, batch), fail(detector, batch)] == [True, False]
    detector.succeeded(first=True)
    assert fail(detector, batch)


def test_a_half_broken_upstream_proves_nothing() -> None:
    """If every other first attempt fails, no batch is suspected."""
    detector, batch = PoisonDetector(), Batch([make_span()])
    fail(detector, batch)
    for number in range(50):
        if number % 2:
            detector.succeeded(first=True)
        else:
            fail(detector, Batch([make_span()]))
    assert not fail(detector, batch)


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


def test_the_batch_size_limit_shrinks_and_grows_back() -> None:
    """A 413 halves the limit; successful batches raise it again, up to the configured one."""
    limit = BatchSizeLimit(1000)
    limit.too_large(800)
    assert limit.max_bytes == 400
    for _ in range(BatchSizeLimit.SUCCESSES_TO_GROW):
        limit.succeeded()
    assert 400 < limit.max_bytes < 500
    for _ in range(100 * BatchSizeLimit.SUCCESSES_TO_GROW):
        limit.succeeded()
    assert limit.max_bytes == 1000


def new_batch(writes: int = 1) -> Batch:
    """A batch that has not failed yet."""
    return Batch([make_span(f"s{number}") for number in range(writes)])


def test_a_suspected_batch_collects_suspicion() -> None:
    """Each failure that counts against it adds one; the first, and those of an outage, do not."""
    evidence, batch = Evidence(1000), new_batch()
    error = Unavailable("HTTP 500", 500, suspect=True)
    found = []
    for others_succeed in (False, False, True, True, False):
        if others_succeed:
            evidence.succeeded(new_batch())
        found.append(evidence.failed(batch, error))
        batch.attempts += 1
    against = Findings(counts_against=True)
    assert found == [Findings(), Findings(), against, against, Findings()]
    assert batch.suspicion == 2


@pytest.mark.parametrize(
    "error", [Unavailable("HTTP 503", 503), Unauthorized("HTTP 401"), TooLarge("HTTP 413")]
)
def test_other_failures_never_count_against_a_batch(error: SinkError) -> None:
    """However often the batch fails while others succeed."""
    evidence, batch = Evidence(1000), new_batch()
    for _ in range(20):
        evidence.succeeded(new_batch())
        assert evidence.failed(batch, error) == Findings()
        batch.attempts += 1
    assert batch.suspicion == 0


def test_only_writes_refused_alone_open_the_breaker() -> None:
    """A batch of several may be refused for one of them: it proves nothing about the settings."""
    evidence, refused = Evidence(1000), Refused("HTTP 422", 422)
    several = [evidence.failed(new_batch(2), refused) for _ in range(50)]
    alone = [evidence.failed(new_batch(), refused) for _ in range(12)]
    assert {*several, *alone[:10]} == {Findings()}
    assert alone[10:] == [Findings(breaker_is_open=True)] * 2
    evidence.succeeded(new_batch())
    assert evidence.failed(new_batch(), refused) == Findings()


def test_a_batch_that_is_too_large_lowers_the_size_limit() -> None:
    """To half of its bytes; successes raise it again."""
    evidence, batch = Evidence(2**20), new_batch(4)
    evidence.failed(batch, TooLarge("HTTP 413", 413))
    limit = evidence.size_limit.max_bytes
    assert limit == sum(span.size for span in batch.spans) // 2
    for _ in range(BatchSizeLimit.SUCCESSES_TO_GROW):
        evidence.succeeded(new_batch())
    assert evidence.size_limit.max_bytes > limit

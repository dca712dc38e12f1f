"""Poison detector, circuit breaker and batch size limit."""

from sidecar.drain.evidence import BatchSizeLimit, CircuitBreaker, PoisonDetector
from sidecar.drain.retry_queue import Batch
from tests.support.world import make_span


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

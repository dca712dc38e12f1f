"""Three judges: is it the write that is bad, or the upstream?"""

from sidecar.drain.evidence import BatchSizeLimit, CircuitBreaker, PoisonDetector
from sidecar.drain.retry_queue import Batch
from tests.support.world import make_span


def failing(evidence: PoisonDetector, batch: Batch) -> bool:
    """One more failure of `batch`; whether it speaks against it."""
    first = batch.attempts == 0
    batch.attempts += 1
    return evidence.against(batch, first=first)


def test_a_failure_alone_proves_nothing() -> None:
    """Without a neighbour that got through, a batch is never suspected."""
    evidence, batch = PoisonDetector(), Batch([make_span()])
    assert not any(failing(evidence, batch) for _ in range(20))


def test_each_suspicion_needs_a_success_of_its_own() -> None:
    """Something must have got through since the batch failed last."""
    evidence, batch = PoisonDetector(), Batch([make_span()])
    failing(evidence, batch)
    evidence.succeeded(first=True)
    assert [failing(evidence, batch), failing(evidence, batch)] == [True, False]
    evidence.succeeded(first=True)
    assert failing(evidence, batch)


def test_a_half_broken_upstream_proves_nothing() -> None:
    """When every second first attempt fails, nobody is suspected."""
    evidence, batch = PoisonDetector(), Batch([make_span()])
    failing(evidence, batch)
    for number in range(50):
        if number % 2:
            evidence.succeeded(first=True)
        else:
            failing(evidence, Batch([make_span()]))
    assert not failing(evidence, batch)


def test_the_brake_tolerates_a_few() -> None:
    """Ten refusals are dead letters, the next is kept; one success lets the brake go."""
    brake = CircuitBreaker()
    assert not any(brake.refused() for _ in range(CircuitBreaker.TOLERATED))
    assert brake.refused()
    brake.forwarded(1)
    assert not brake.on
    assert not brake.refused()


def test_the_brake_does_not_mind_bad_writes_among_good_ones() -> None:
    """One refused in five for ever never puts the brake on."""
    brake = CircuitBreaker()
    for _ in range(100):
        brake.forwarded(4)
        assert not brake.refused()


def test_a_size_is_learnt_and_slowly_forgotten() -> None:
    """A 413 halves what is sent; many good batches let it grow back, never above the setting."""
    lesson = BatchSizeLimit(1000)
    lesson.too_large(800)
    assert lesson.max_bytes == 400
    for _ in range(BatchSizeLimit.GOOD_BATCHES):
        lesson.taken()
    assert 400 < lesson.max_bytes < 500
    for _ in range(100 * BatchSizeLimit.GOOD_BATCHES):
        lesson.taken()
    assert lesson.max_bytes == 1000

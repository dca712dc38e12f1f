"""What every response and every transport failure means for a batch: all of it, in one table.

The sinks' own special cases are tested with the sinks.
"""

import ast
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

import sidecar.drain
from sidecar.drain.evidence import CircuitBreaker, Evidence
from sidecar.drain.failures import DeadLetter, Hold, RetryAt, Split, meaning
from sidecar.drain.retry_queue import Batch
from sidecar.sinks import SinkError, Unavailable
from sidecar.sinks.http import TAKEN, Response, decide
from sidecar.telemetry.accounting import DEAD_LETTER_REASONS
from sidecar.telemetry.outcomes import OUTCOMES, SinkState
from tests.support.spans import make_span

Outcome = RetryAt | Split | DeadLetter | Hold | None

MAX_ATTEMPTS = 3
AT = 12.5
RETRY, SPLIT = RetryAt(AT), Split()
STATUSES = range(200, 600)


class Case(NamedTuple):
    """The state in which a batch fails."""

    writes: int  # in the batch
    suspicion: int  # failures of the batch so far that count against it
    suspected: bool  # others got through since its last failure: this one counts, too
    braked: bool  # the circuit breaker is open


CASES = [
    Case(*case) for case in product((1, 2, 5), range(MAX_ATTEMPTS), (False, True), (False, True))
]


def table(case: Case) -> dict[int, Outcome]:
    """What the drain does with a batch in this state, by status; later rows override earlier."""
    alone, last = case.writes == 1, case.suspicion + 1 == MAX_ATTEMPTS
    refused = Hold(SinkState.BRAKED) if case.braked else DeadLetter("refused")
    failing = DeadLetter("failing") if last else RETRY
    rows: list[tuple[Iterable[int], Outcome]] = [
        (range(200, 300), None),
        (range(300, 400), Hold(SinkState.DOWN)),
        (range(400, 500), refused if alone else SPLIT),
        (range(500, 600), RETRY if not case.suspected else failing if alone else SPLIT),
        ((401, 403), Hold(SinkState.UNAUTHORIZED)),
        ((404, 405, 410), Hold(SinkState.DOWN)),
        ((408, 425, 429), RETRY),
        ((413,), DeadLetter("too_large") if alone else SPLIT),
    ]
    return {status: outcome for statuses, outcome in rows for status in statuses}


def outcome(error: SinkError | None, case: Case) -> Outcome:
    """What the drain's own parts make of a failure in this state."""
    if error is None:
        return None
    batch = Batch([make_span(f"s{n}") for n in range(case.writes)])
    evidence = Evidence(2**20)
    server_error, refused = decision(500), decision(400)
    assert server_error is not None
    assert refused is not None
    evidence.failed(batch, server_error)
    batch.attempts, batch.suspicion = 1, case.suspicion
    if case.suspected:
        evidence.succeeded(Batch([make_span("good")]))
    if case.braked:
        for _ in range(CircuitBreaker.TOLERATED_REFUSALS + 1):
            evidence.failed(Batch([make_span("refused")]), refused)
    findings = evidence.failed(batch, error)
    return meaning(error, batch, findings, at=AT, max_attempts=MAX_ATTEMPTS)


def decision(status: int, retry_after: float = 0.0) -> SinkError | None:
    """What a sink makes of a response; None if the upstream has accepted the batch."""
    return None if status in TAKEN else decide(Response(status, b"", retry_after))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_every_status_means(case: Case) -> None:
    """Each status from 200 to 599 leads to what the table says, whether or not it asks to wait."""
    meant = table(case)
    for retry_after in (0.0, 30.0):
        found = {status: outcome(decision(status, retry_after), case) for status in STATUSES}
        assert found == meant
        assert [*map(type, found.values())] == [type(meant[status]) for status in STATUSES]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    "error",
    [
        Unavailable("timed out"),
        Unavailable("the connection ended"),
        Unavailable("the connection was refused", outage=True),
    ],
    ids=["timed out", "ended", "refused"],
)
def test_a_batch_without_a_response_is_always_retried(error: SinkError, case: Case) -> None:
    """Its writes are never the cause: none is given up, and none is suspected."""
    found = outcome(error, case)
    assert (type(found), found) == (RetryAt, RETRY)


def test_what_is_counted_has_a_name() -> None:
    """Each decision has an outcome, and each dead letter a reason, that the metrics know."""
    for status in STATUSES:
        error = decision(status)
        assert error is None or (error.outcome in OUTCOMES and error.status == status)
        meant = [outcome(error, case) for case in CASES]
        reasons = {each.reason for each in meant if isinstance(each, DeadLetter)}
        assert reasons <= set(DEAD_LETTER_REASONS)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_requested_delay_reaches_the_drain(status: int) -> None:
    """A decision to try again later says how much later."""
    assert getattr(decision(status, 7.0), "retry_after", None) == 7.0


def test_only_a_connection_that_could_not_be_opened_is_an_outage() -> None:
    """A connection that ended, or a response, is not conclusive."""
    errors = [decision(status) for status in STATUSES]
    assert not any(getattr(error, "outage", False) for error in errors)
    assert not Unavailable("the connection ended").outage
    assert not Unavailable("timed out").outage


def nodes_of_the_drain() -> Iterator[tuple[str, ast.AST]]:
    """Every node of the syntax trees of the folder, with the name of its file."""
    for path in Path(sidecar.drain.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            yield path.name, node


def test_the_drain_knows_no_http_status() -> None:
    """It names no number that could be one, and imports nothing of HTTP: sinks map statuses."""
    found, files = [], set()
    for name, node in nodes_of_the_drain():
        files.add(name)
        match node:
            case ast.Constant(value=int() as number) if number in STATUSES:
                found.append((name, str(number)))
            case ast.Name(id=word) | ast.Attribute(attr=word) if word == "HTTPStatus":
                found.append((name, word))
            case ast.Import(names=aliases):
                found += [(name, each.name) for each in aliases if is_http(each.name)]
            case ast.ImportFrom(module=module, names=aliases):
                imported = [f"{module}.{each.name}" for each in aliases]
                found += [(name, each) for each in imported if is_http(each)]
            case _:
                pass
    assert "failures.py" in files
    assert found == []


def is_http(module: str) -> bool:
    """Whether a module or a name in it is about HTTP."""
    return bool({"http", "HTTPStatus"}.intersection(module.split(".")))

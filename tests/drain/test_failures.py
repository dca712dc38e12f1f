"""What every response and every transport failure means for a batch: all of it, in one table.

The sinks' own special cases are tested with the sinks.
"""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sidecar.drain
from sidecar.drain.evidence import Evidence, Findings
from sidecar.drain.failures import DeadLetter, Hold, RetryAt, Split, meaning
from sidecar.drain.retry_queue import Batch
from sidecar.sinks import IdTaken, Refused, SinkError, Unauthorized, Unavailable
from sidecar.sinks.http import Response, decide
from sidecar.telemetry.accounting import DEAD_LETTER_REASONS
from sidecar.telemetry.outcomes import OUTCOMES, SinkState
from tests.support.spans import make_span

Outcome = RetryAt | Split | DeadLetter | Hold | None

MAX_ATTEMPTS = 3
AT, WAIT_S = 12.5, 30.0
STATUSES = range(200, 600)
SUSPICIONS = range(MAX_ATTEMPTS + 1)
# What each status is about; later rows override earlier ones.
ABOUT: list[tuple[Iterable[int], str]] = [
    (range(200, 300), "success"),
    (range(300, 500), "the hop"),
    (range(500, 600), "the moment"),
    ((408, 425, 429), "the moment"),
    ((401, 403), "the credential"),
    ((400, 409, 422), "the content"),
    ((413,), "the size"),
]
TOPICS = {status: topic for statuses, topic in ABOUT for status in statuses}
NO_RESPONSE = {
    "timed out": Unavailable("timed out"),
    "ended": Unavailable("connection ended"),
    "refused": Unavailable("ConnectionRefusedError", reached=False),
    "no credential": Unauthorized("no credential yet", reached=False),
}


class Case(NamedTuple):
    """The state in which a batch fails."""

    writes: int  # in the batch
    suspicion: int  # failures that counted against it so far
    others_pass: bool  # another batch got through since its last failure
    failures: int  # consecutive ones in the lane, this one included
    new: bool  # they are failures of batches that had not failed before
    probing: bool  # the lane is held
    braked: bool  # the circuit breaker is open


def cases(writes: int) -> list[Case]:
    """Every state of a batch with so many writes."""
    both = (False, True)
    states = product(SUSPICIONS, both, (1, 2, 3, 5), both, both, both)
    return [Case(writes, *state) for state in states]


each_size = pytest.mark.parametrize("writes", [1, 2, 5])


def table(about: str, wait_s: float, case: Case) -> Outcome:
    """What the drain does in this state: the first row that applies."""
    alone, several = case.writes == 1, case.writes > 1
    counted = case.suspicion + case.others_pass
    outage = case.new and case.failures >= 3
    split = several and case.others_pass and not outage and not case.probing
    state = SinkState.UNAUTHORIZED if about == "the credential" else SinkState.DOWN
    verdict = about in {"the content", "the size"}
    reason = "refused" if about == "the content" else "too_large"
    waits = about == "the moment" and wait_s > 0
    refuses_all = about in {"the credential", "the hop"}
    rows: list[tuple[bool, Outcome]] = [
        (about == "success", None),
        (verdict and several, Split()),
        (verdict and case.braked, Hold(SinkState.BRAKED)),
        (verdict, DeadLetter(reason)),
        (alone and counted >= MAX_ATTEMPTS, DeadLetter("failing")),
        (alone and counted > 0 and not case.probing, RetryAt(AT)),
        (split, Split(AT)),
        (waits, Hold(SinkState.THROTTLED, WAIT_S)),
        # A failure that others contradict does not count.
        (refuses_all and (case.failures - case.others_pass >= 2 or case.probing), Hold(state)),
        (refuses_all, RetryAt(AT)),
        (outage or case.probing, Hold(SinkState.DOWN)),
        (several, Split(AT)),
        (alone, RetryAt(AT)),
    ]
    return next(outcome for applies, outcome in rows if applies)


@cache
def failed_in(case: Case, *, reached: bool, verdict: bool) -> tuple[Batch, Findings]:
    """A batch that has failed in this state, and what the lane's evidence says about that."""
    evidence, batch = Evidence(2**20), new_batch(case.writes)
    for _ in range(20):
        evidence.succeeded(new_batch())
    evidence.failed(batch, Unavailable("HTTP 500", 500))
    batch.attempts, batch.failures, batch.suspicion = 1, int(not case.new), case.suspicion
    if case.others_pass:
        evidence.succeeded(new_batch())
    for _ in range(30 if case.braked else 1):
        evidence.failed(new_batch(), Refused("HTTP 422", 422))
    for _ in range(case.failures - 1):
        earlier = new_batch()
        earlier.attempts = earlier.failures = int(not case.new)
        earlier.successes_seen = 100  # nobody has succeeded since it last failed
        evidence.failed(earlier, Unavailable("HTTP 500", 500))
    error = Refused if verdict else Unavailable
    return batch, evidence.failed(batch, error("", reached=reached))


def outcome(error: SinkError | None, case: Case) -> Outcome:
    """What the drain's own parts make of a failure in this state."""
    if error is None:
        return None
    batch, findings = failed_in(case, reached=error.reached, verdict=error.about_content)
    return meaning(error, batch, findings, at=AT, max_attempts=MAX_ATTEMPTS, probing=case.probing)


def same(found: Outcome, meant: Outcome) -> bool:
    """Whether two outcomes are equal: as tuples, those of different types could be, too."""
    return type(found) is type(meant) and found == meant


def new_batch(writes: int = 1) -> Batch:
    """A batch that has not failed yet."""
    return Batch([make_span(f"s{number}") for number in range(writes)])


def decision(status: int, wait_s: float = 0.0) -> SinkError | None:
    """What a sink makes of a response; None if the upstream has accepted the batch."""
    response = Response(status, retry_after=wait_s)
    return None if response.taken else decide(response)


DECISIONS = [
    (decision(status, wait_s), about, wait_s)
    for wait_s in (0.0, WAIT_S)
    for status, about in TOPICS.items()
]


@each_size
def test_what_every_status_means(writes: int) -> None:
    """In every state, each status from 200 to 599 leads to what the table says."""
    for case in cases(writes):
        meant = {key: table(*key, case) for key in product(set(TOPICS.values()), (0.0, WAIT_S))}
        for error, about, wait_s in DECISIONS:
            found = outcome(error, case)
            assert same(found, meant[about, wait_s]), (error, case, found, meant[about, wait_s])


@each_size
@pytest.mark.parametrize("name", ["timed out", "ended"])
def test_a_batch_without_a_response(name: str, writes: int) -> None:
    """The upstream may have seen it: it means the same as a 503."""
    for case in cases(writes):
        found, meant = outcome(NO_RESPONSE[name], case), table("the moment", 0.0, case)
        assert same(found, meant), (case, found, meant)


@each_size
@pytest.mark.parametrize(
    ("name", "state"),
    [("refused", SinkState.DOWN), ("no credential", SinkState.UNAUTHORIZED)],
)
def test_a_batch_that_nobody_saw(name: str, state: SinkState, writes: int) -> None:
    """It holds the lane at once: its writes can't be the cause, whatever happened before."""
    for case in cases(writes):
        found = outcome(NO_RESPONSE[name], case)
        assert same(found, Hold(state)), (case, found)


@pytest.mark.parametrize(("is_own", "body"), [(True, b""), (False, b""), (True, None)])
def test_whose_decision_it_is(is_own: bool, body: bytes | None) -> None:
    """Only the API's own JSON is success or a refusal; what can't be read may be accepted later."""
    expected: dict[str, str] = {
        "success": "accepted" if is_own else "Misdirected",
        "the hop": "Misdirected",
        "the moment": "Unavailable",
        "the credential": "Unauthorized",
        "the content": ("Unavailable" if body is None else "Refused") if is_own else "Misdirected",
        "the size": "TooLarge",
    }
    for status, about in TOPICS.items():
        response = Response(status, body, is_own)
        found = "accepted" if response.taken else type(decide(response)).__name__
        assert (status, found) == (status, expected[about])


def test_only_a_delay_that_can_be_meant_reaches_the_drain() -> None:
    """One that comes with "try again later" does, and no other: a proxy's page knows nothing."""
    for status, about in TOPICS.items():
        error = decision(status, WAIT_S)
        if error is not None:
            assert error.retry_after == (WAIT_S if about == "the moment" else 0.0)
            assert error.reached


def test_what_is_counted_has_a_name() -> None:
    """Each decision has an outcome, and each dead letter a reason, that the metrics know."""
    for status in STATUSES:
        error = decision(status)
        assert error is None or (error.outcome in OUTCOMES and error.status == status)
    errors = [decision(status) for status in (400, 413, 500)]
    for error in (*errors, *NO_RESPONSE.values(), IdTaken("", 400)):
        assert error is not None
        assert error.outcome in OUTCOMES
        for case in cases(1):
            found = outcome(error, case)
            assert not isinstance(found, DeadLetter) or found.reason in DEAD_LETTER_REASONS


ERRORS = [error for error in map(decision, STATUSES) if error] + [
    *NO_RESPONSE.values(),
    IdTaken("", 400),
    *[Unavailable(f"HTTP {status}", status, retry_after=WAIT_S) for status in (429, 503)],
]


@given(
    error=st.sampled_from(ERRORS),
    writes=st.integers(1, 6),
    suspicion=st.integers(0, MAX_ATTEMPTS + 1),
    contradicted=st.booleans(),
    counts=st.tuples(st.integers(1, 5), st.integers(0, 5)),
    breaker_is_open=st.booleans(),
    probing=st.booleans(),
)
def test_laws_of_meaning(
    error: SinkError,
    writes: int,
    suspicion: int,
    contradicted: bool,
    counts: tuple[int, int],
    breaker_is_open: bool,
    probing: bool,
) -> None:
    """A write is given up alone; in an outage, only a verdict on content does not hold the lane."""
    batch, new = new_batch(writes), min(counts)
    batch.suspicion = suspicion
    findings = Findings(contradicted, counts[0], new, breaker_is_open)
    found = meaning(error, batch, findings, at=AT, max_attempts=MAX_ATTEMPTS, probing=probing)
    if isinstance(found, DeadLetter):
        assert writes == 1
        assert error.about_content or suspicion >= MAX_ATTEMPTS
    if isinstance(found, Split):
        assert writes > 1
        assert error.about_content or new < 3
    if probing and not error.about_content:
        assert isinstance(found, Hold | DeadLetter)
    if not error.reached:
        assert isinstance(found, Hold)


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

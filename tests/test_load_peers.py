"""The parts of the peers' benchmark that could produce a wrong figure."""

import json
import os
from collections import Counter

import pytest

from tests.load.loads import Plan
from tests.load.peers import otlp, sender
from tests.load.peers.payload import LARGE, SMALL, encoded, input_of, output_of
from tests.load.peers.proc import Watched
from tests.load.peers.summary import Spread


def bodies(kind: str, spans: int) -> list[bytes]:
    plan = Plan(kind=kind, spans=spans, size=SMALL)
    return [request.partition(b"\r\n\r\n")[2] for flow in sender.requests(plan) for request in flow]


@pytest.mark.parametrize("size", [LARGE, SMALL])
def test_payloads_have_their_nominal_size(size: int) -> None:
    """The input and output of a span together are within 10% of its nominal size."""
    made = len(encoded(input_of(7, size))) + len(encoded(output_of(7, size)))
    assert abs(made - size) < size / 10


def test_otlp_ids_are_read_back() -> None:
    """The sink finds every span in a request, whatever its size."""
    spans = [otlp.span(n, "llm", {"input.value": b"x" * (50 * n)}) for n in range(1, 300)]
    ids = [id_.hex() for id_ in otlp.span_ids(otlp.export_request(spans))]
    assert ids == [f"{n:016x}" for n in range(1, 300)]


@pytest.mark.parametrize(
    ("kind", "posts", "starts"), [("pairs", 500, 250), ("arrays", 5, 250), ("ends", 3, 0)]
)
def test_ready_requests_for_the_sidecar_hold_every_span(kind: str, posts: int, starts: int) -> None:
    """250 spans are 250 ENDs with different ids, in as many posts as the kind defines."""
    sent = [json.loads(body) for body in bodies(kind, 250)]
    events = [event for body in sent for event in (body if isinstance(body, list) else [body])]
    kinds = Counter(event["event_type"] for event in events)
    assert len(sent) == posts
    assert (kinds["start"], kinds["end"]) == (starts, 250)
    assert len({event["span"]["id"] for event in events}) == 250


@pytest.mark.parametrize(("kind", "posts"), [("single", 250), ("batches", 3)])
def test_ready_requests_for_otlp_hold_every_span(kind: str, posts: int) -> None:
    """Each of 250 spans appears once, in as many requests as the kind defines."""
    sent = bodies(kind, 250)
    assert len(sent) == posts
    assert len({id_ for body in sent for id_ in otlp.span_ids(body)}) == 250


def test_spread_is_the_median_and_the_range() -> None:
    """One slow repetition changes the range, but not the median."""
    assert Spread.of([1.0, 9.0, 2.0]).text(1) == "2.0 (1.0\u20139.0)"


def test_cpu_of_this_process_is_seen() -> None:
    """The CPU time of a busy process grows, by the kernel's count."""
    watched = Watched(os.getpid())
    before = watched.cpu_s()
    while watched.cpu_s() <= before:
        sum(range(100_000))
    assert watched.rss_mib() > 5

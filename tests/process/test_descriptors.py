"""How the process's descriptors are shared out."""

import resource
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sidecar.config_load import load
from sidecar.lanes import share_descriptors
from sidecar.process.descriptors import (
    _RESERVED,
    MAX_ADMIN_CONNECTIONS,
    MAX_AGENT_CONNECTIONS,
    MIN_CONNECTIONS,
    Requests,
    occupy_standard_descriptors,
    share,
)

BOTH = {"agentex": Requests(64), "sgp": Requests(8)}
RELAY = {"agentex": Requests(64), "sgp": Requests(8, clients=8)}


def test_enough_for_all() -> None:
    """With a high limit, or none, everyone gets the normal number."""
    for limit in (0, 4096, 2**20):
        shares = share(RELAY, per_agent=2, limit=limit, in_use=20)
        assert shares[:4] == (
            limit,
            MAX_AGENT_CONNECTIONS,
            MAX_ADMIN_CONNECTIONS,
            {"agentex": 64, "sgp": 8},
        )
        assert not shares.scarce


def test_all_shrink_together() -> None:
    """With fewer descriptors, no one's share ends before the others'."""
    assert share(BOTH, per_agent=1, limit=1024, in_use=12).numbers() == {
        "limit": 1024,
        "agents": 789,
        "admin": 123,
        "requests": {"agentex": 64, "sgp": 8},
    }
    assert share(BOTH, per_agent=1, limit=64, in_use=12).numbers() == {
        "limit": 64,
        "agents": 11,
        "admin": 4,
        "requests": {"agentex": 8, "sgp": 1},
    }
    assert share(RELAY, per_agent=2, limit=256, in_use=12).numbers() == {
        "limit": 256,
        "agents": 54,
        "admin": 27,
        "requests": {"agentex": 40, "sgp": 5},
    }


def test_what_is_open_already_counts() -> None:
    """Descriptors that the process inherited are not shared out."""
    few = share(BOTH, per_agent=1, limit=256, in_use=150)
    assert few._replace(limit=106) == share(BOTH, per_agent=1, limit=106, in_use=0)


requests = st.builds(Requests, st.integers(1, 500), st.integers(1, 8))


@given(
    st.dictionaries(st.sampled_from(["agentex", "sgp", "third"]), requests, min_size=1),
    st.sampled_from([1, 2]),
    st.integers(0, 5000),
    st.integers(0, 300),
)
def test_together_they_stay_below_the_limit(
    upstreams: dict[str, Requests], per_agent: int, limit: int, in_use: int
) -> None:
    """Everyone gets something, and all together, with the reserve, no more than there is."""
    shares = share(upstreams, per_agent=per_agent, limit=limit + 1, in_use=in_use)
    assert MIN_CONNECTIONS <= shares.agents <= MAX_AGENT_CONNECTIONS
    assert MIN_CONNECTIONS <= shares.admin <= MAX_ADMIN_CONNECTIONS
    least = MIN_CONNECTIONS * (1 + per_agent) + sum(each.clients for each in upstreams.values())
    used = shares.admin + shares.agents * per_agent
    for name, each in upstreams.items():
        assert 1 <= shares.requests[name] <= each.most
        used += shares.requests[name] * each.clients
    assert used <= max(2 * least, limit + 1 - in_use - _RESERVED)


def test_an_account_has_its_own_client() -> None:
    """With `sgp.relay`, SGP's share is for eight; and pass-through needs two per connection."""
    environ = {"AGENTEX_BASE_URL": "http://127.0.0.1:9", "SIDECAR_SGP__RELAY": "true"}
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/dev/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 200, hard[1]))
    try:
        shares, within = share_descriptors(load(None, environ))
        double, _ = share_descriptors(load(None, environ | {"SIDECAR_LISTENER__PASS_THROUGH": "1"}))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, hard)
    requests = {"agentex": within.agentex.max_concurrency, "sgp": within.sgp.max_concurrency}
    assert shares.requests == requests
    assert requests["agentex"] + 8 * requests["sgp"] < 70
    assert double.agents <= shares.agents // 2


def test_nothing_is_opened_for_standard_streams_that_are_open() -> None:
    """Only closed ones are occupied; tests/faults/test_log_readers.py closes them."""
    before = sorted(Path("/dev/fd").iterdir())
    occupy_standard_descriptors()
    assert sorted(Path("/dev/fd").iterdir()) == before

"""Our server and h11 read mutated requests alike; `make fuzz` compares a million of them."""

from tests.http.second_opinion import compare


async def test_mutated_requests() -> None:
    """Nothing is taken that h11 refuses, and no method, target or body differs."""
    assert await compare(3000, seed=20261129) == []

"""Hundreds of interrupts and forks at random moments, as Ctrl-C and prefork servers make them."""

import json
import random
import sys

from tests.e2e.client_support import AGENTS, Wire, started

CLEAN = {"wrong": [], "flushed": True, "waiting": 0, "dropped": {}}


async def storm(wire: Wire, what: str, count: int) -> None:
    """Run a storm to its end; assert that it left nothing behind in the client."""
    seed = random.randrange(2**32)
    print("seed", seed)  # noqa: T201 - pytest shows it if the test fails
    arguments = (AGENTS / "storms.py", what, str(count), str(seed))
    async with started(wire, sys.executable, *arguments) as program:
        (report,) = await program.ended()
    assert json.loads(report) == CLEAN


async def test_interrupts_at_random_moments() -> None:
    """After each of 300, nothing is current; every span that began ends, below its parent."""
    count = 300
    async with Wire().running() as wire:
        await storm(wire, "interrupts", count)
        tree = wire.tree(interrupted=True)
    for name, parent in tree.items():
        assert parent == (name.replace("step", "turn") if name.startswith("step") else None)
    assert {f"after {number}" for number in range(count)} <= tree.keys()


async def test_forks_at_random_moments() -> None:
    """Each of 1,000 children sends its span, and the threads of their parent lose none."""
    count = 1000
    async with Wire().running() as wire:
        await storm(wire, "forks", count)
        tree = wire.tree()
    assert {f"child {number}" for number in range(count)} <= tree.keys()
    assert set(tree.values()) == {None}
    for thread in range(2):
        made = [name for name in tree if name.startswith(f"thread {thread}")]
        assert set(made) == {f"thread {thread} {number + 1}" for number in range(len(made))}

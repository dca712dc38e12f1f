"""The client in child processes, by every start method and on every Python that it supports."""

import asyncio

import pytest

from tests.e2e.client_support import VERSIONS, interpreter, ran
from tests.e2e.sdk_support import Pod

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS = ("fork", "spawn", "forkserver")
CHILDREN = [
    *("process", "failure", "process with a child", "process with a child's child"),
    *(f"pool({limit}) {number}" for limit in (None, 1) for number in range(4)),
    *(f"executor {number}" for number in range(4)),
]


def expected(*names: str) -> dict[str, str | None]:
    """The spans of children with these names, all of them below the parent's span."""
    spans: dict[str, str | None] = {"parent": None}
    for name in names:
        spans |= {name: "parent", f"{name}'s step": name}
    return spans


@pytest.mark.parametrize("version", VERSIONS)
async def test_children_of_multiprocessing(version: str, shared_pod: Pod) -> None:
    """A process, a pool and an executor send each span of every child, once, as they end."""
    python = interpreter(version)
    fork, *others = await asyncio.gather(
        *(ran(shared_pod, python, "children", method) for method in METHODS)
    )
    assert fork[0] == expected(*CHILDREN, "os.fork")
    for tree, _ in others:
        assert tree == expected(*CHILDREN)

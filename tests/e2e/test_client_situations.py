"""What agents do without a framework: every span arrives once, nested right; nothing is raised."""

import asyncio

import pytest

from tests.e2e.client_support import VERSIONS, interpreter, ran
from tests.e2e.sdk_support import Pod

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLUSH_ON_SIGTERM = {"TRACE_SIDECAR_FLUSH_ON_SIGTERM": "1"}
THREADS = 50
HANDLED = 50
# The spans below a situation's own one, by parent.
Children = dict[str, list[str]]
STEPS: Children = {f"task {number}": [f"task {number}'s step"] for number in range(3)}
WORKERS: Children = {f"worker {number}": [f"worker {number}'s step"] for number in range(THREADS)}
SITUATIONS: dict[str, Children] = {
    "copied": {"copied": ["by deepcopy", "by copy", "by pickle"]},
    "closed": {"closed": ["before", "after"]},
    "daemonized": {"daemonized": ["before", "daemon"]},
    # Every second one has the context of its caller.
    "threads": {"threads": list(WORKERS)[1::2], "": list(WORKERS)[::2], **WORKERS},
    "late_thread": {},
    "tasks": {
        "tasks": ["ended early", *STEPS, "generator", "after the generator"],
        "ended early": ["late child"],
        **STEPS,
    },
    "out_of_order": {"out_of_order": ["outer", "left open", "after"], "outer": ["inner"]},
    "subinterpreter": {"": ["inside"], "inside": ["inside it"]},
    "interrupted_loop": {"interrupted_loop": ["awaiting"]},
    "raising": {"raising": ["ValueError", "KeyboardInterrupt", "SystemExit", "GeneratorExit"]},
}


def expected(situation: str) -> dict[str, str | None]:
    """The name of each span's parent."""
    spans: dict[str, str | None] = {situation: None}
    for parent, children in SITUATIONS[situation].items():
        spans |= dict.fromkeys(children, parent or None)
    return spans


@pytest.mark.parametrize("version", VERSIONS)
async def test_situations(version: str, shared_pod: Pod) -> None:
    """Copies, threads, tasks, exceptions, daemons, subinterpreters: each span is sent once."""
    python = interpreter(version)

    async def run(name: str) -> None:
        try:
            tree, _ = await ran(shared_pod, python, "situations", name)
            assert tree == expected(name)
        except Exception as error:
            error.add_note(name)
            raise

    done = await asyncio.gather(*map(run, SITUATIONS), return_exceptions=True)
    failed = [error for error in done if isinstance(error, Exception)]
    if failed:
        raise ExceptionGroup(f"on Python {version}", failed)


@pytest.mark.parametrize("version", VERSIONS)
async def test_terminated_children(version: str, shared_pod: Pod) -> None:
    """With TRACE_SIDECAR_FLUSH_ON_SIGTERM, a child that is terminated flushes, and ends by it."""
    python = interpreter(version)
    tree, _ = await ran(shared_pod, python, "situations", "terminated", environ=FLUSH_ON_SIGTERM)
    methods = ("fork", "spawn", "forkserver")
    assert tree == dict.fromkeys([*methods, *(f"{method}'s pool" for method in methods)])


@pytest.mark.parametrize("version", VERSIONS)
async def test_signal_handlers(version: str, shared_pod: Pod) -> None:
    """A handler may trace at any moment, also while the client's thread starts."""
    tree, (made,) = await ran(shared_pod, interpreter(version), "situations", "signaled")
    inner = {f"inner {number + 1}" for number in range(int(made))}
    handlers = {f"handler {number + 1}" for number in range(HANDLED)}
    assert set(tree) == {"signaled"} | inner | handlers
    assert {tree[name] for name in inner} == {"signaled"}
    # What was current at that moment: a span that just begins or ends is, or is not. A handler may
    # itself be interrupted by the next.
    assert {tree[name] for name in handlers} <= {"signaled"} | inner | handlers

"""Runs the workflow of the module `agent` in Temporal's sandbox, and its activity.

Argument: how many times. Prints how many functions each time but the first left to be called at
exit and at a fork, as JSON.
"""

import asyncio
import atexit
import json
import os
import sys
from importlib import import_module
from itertools import pairwise
from typing import Any

from temporalio.client import WorkflowHistory  # type: ignore[import-not-found]
from temporalio.testing import ActivityEnvironment  # type: ignore[import-not-found]
from temporalio.worker import Replayer  # type: ignore[import-not-found]

agent: Any = import_module("agent")  # the page's, which the test has written beside this
fork_hooks: list[object] = []


def history(name: str) -> Any:  # noqa: ANN401 - Temporal's type
    """Return the history of a workflow that ran without a wait."""
    given: list[tuple[str, dict[str, Any]]] = [
        (
            "WorkflowExecutionStarted",
            {
                "workflowType": {"name": "Work"},
                "taskQueue": {"name": "q"},
                "originalExecutionRunId": f"{name}-run",
                "attempt": 1,
                "workflowTaskTimeout": "10s",
            },
        ),
        ("WorkflowTaskScheduled", {"taskQueue": {"name": "q"}, "startToCloseTimeout": "10s"}),
        ("WorkflowTaskStarted", {"scheduledEventId": "2"}),
        ("WorkflowTaskCompleted", {"scheduledEventId": "2", "startedEventId": "3"}),
        ("WorkflowExecutionCompleted", {"workflowTaskCompletedEventId": "4"}),
    ]
    events = []
    for number, (kind, attributes) in enumerate(given, 1):
        upper = "".join("_" * each.isupper() + each.upper() for each in kind)
        events.append(
            {
                "eventId": str(number),
                "eventTime": "2026-01-02T03:04:05Z",
                "eventType": f"EVENT_TYPE{upper}",
                f"{kind[0].lower()}{kind[1:]}EventAttributes": attributes,
            }
        )
    return WorkflowHistory.from_json(name, {"events": events})


def count_fork_hooks(**hooks: Any) -> None:
    """Count what is to be called in every forked child; it can't be looked up."""
    fork_hooks.append(hooks)
    register(**hooks)


register, os.register_at_fork = os.register_at_fork, count_fork_hooks


def hooks() -> int:
    """Return how many functions are to be called at exit or at a fork."""
    return len(fork_hooks) + int(atexit._ncallbacks())


async def main(times: int) -> None:
    """Replay, and run the activity as a worker would."""
    counts = []
    replayer = Replayer(workflows=[agent.Work])
    for number in range(times):
        await replayer.replay_workflow(history(f"workflow-{number}"))
        counts.append(hooks())
    await asyncio.to_thread(ActivityEnvironment().run, agent.work, "activity")
    sys.stdout.write(json.dumps([after - before for before, after in pairwise(counts)]) + "\n")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))

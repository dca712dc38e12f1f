"""An agent that knows nothing of the sidecar: it sends its spans to SGP, as SGP's SDK does (S1.4).

As pod_agent, it runs in a container of the image, which has no SDK (test_sdk_agents runs those
themselves), makes spans until SIGTERM, and prints one line of JSON per ended span. The first post
that fails ends it.
"""

import json
import os
import signal
import sys
import urllib.request
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

PACE_S = 0.05
TIMEOUT_S = 30


def main() -> None:
    """Trace until SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    number = 0
    while signal.sigtimedwait({signal.SIGTERM}, PACE_S) is None:
        number += 1
        span = {
            "id": str(uuid.uuid4()),
            "trace_id": str(uuid.uuid4()),
            "name": "turn",
            "type": "AGENT_WORKFLOW",
            "start_timestamp": _now(),
            "input": {"prompt": f"Where is parcel {number}?"},
        }
        _put(span)
        ended = {"end_timestamp": _now(), "status": "SUCCESS", "output": {"answer": "Delivered."}}
        _put(span | ended)
        sys.stdout.write(json.dumps({"id": span["id"]}) + "\n")
        sys.stdout.flush()


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _put(span: Mapping[str, object]) -> None:
    environ = os.environ
    request = urllib.request.Request(  # noqa: S310 (the sidecar's URL)
        environ["SGP_CLIENT_BASE_URL"] + "/v5/spans/batch",
        json.dumps({"items": [span]}).encode(),
        {
            "Content-Type": "application/json",
            "x-api-key": environ["SGP_API_KEY"],
            "x-selected-account-id": environ["SGP_ACCOUNT_ID"],
        },
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:  # noqa: S310
        reply.read()


if __name__ == "__main__":
    main()

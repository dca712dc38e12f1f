"""Sends the START and END of every span to the trace sidecar, without blocking the agent.

    values -> events -> buffer -> sender -> transport -> POST /v1/spans

`values` encodes any Python value as JSON, with the fastest encoder that `encoders` finds. `events`
encodes one event as a line of NDJSON. `buffer` holds events within a byte limit. `sender` batches
and retries on its own thread, over the single connection that `transport` keeps open.

Agents with the Agentex SDK call `register()`; all others use `Spans`. The package depends
only on the standard library and imports nothing else from this project, so copying the folder is
enough to use it.
"""

from .processors import AsyncSidecarProcessor, SyncSidecarProcessor, register
from .sender import Sender
from .spans import Span, Spans, current
from .transport import Credentials

__all__ = [
    "AsyncSidecarProcessor",
    "Credentials",
    "Sender",
    "Span",
    "Spans",
    "SyncSidecarProcessor",
    "current",
    "register",
]

__version__ = "0.1.0"

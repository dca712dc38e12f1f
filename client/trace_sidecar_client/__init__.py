"""The agents' side: sends the START and the END of every span to the sidecar, and never blocks.

    values -> events -> buffer -> sender (its thread) -> transport -> POST /v1/spans
    (any value  (one line  (bounded   (batches,            (one
     as JSON)    of JSON)   in bytes)   retries)             connection)

`encoders` finds the fastest encoder that the agent has.

Agents with the Agentex SDK call `register()`; others use `Spans`. Only the standard library is
needed, and nothing here imports the rest of the project: the folder works when it is copied.
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

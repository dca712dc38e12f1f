"""Sends the START and END of every span to the trace sidecar, without blocking the agent.

    Spans -> events -> buffer -> delivery -> transport -> POST /v1/spans

`Spans` makes spans: in blocks (`blocks`), for callbacks, and for functions (`traced`). `span` sends
their events, `stack` knows which one is current, and `interrupts` lets Ctrl-C through. `processors`
does the same for the Agentex SDK's spans.

`events` encodes one event as a line of NDJSON, and `values` any Python value as JSON: with the
fastest encoder that `encoders` finds, after `budget` has seen that it is not too large, with the
`forms` of objects that encoders don't know, in `parts` where it can't be encoded as a whole, and
not at all if it `repeats` the START.

A `sender` has a `buffer`, which holds events within a byte limit, and a thread that makes the
`delivery`: in batches and with retries, over the single connection that `transport` keeps open.
`responses` reads answers, `notices` counts and logs, `remote_flush` waits for the upstreams,
`exits` delivers what is left when the process ends, and `settings` reads the environment.

Agents with the Agentex SDK call `register()`; all others use `Spans`. The package depends
only on the standard library and imports nothing else from this project, so copying the folder is
enough to use it.
"""

from .processors import AsyncSidecarProcessor, SyncSidecarProcessor, register
from .sender import Sender
from .span import Span
from .spans import Spans
from .stack import current
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

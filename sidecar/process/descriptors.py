"""How many connections agents can have, so that descriptors are left for everything else."""

import resource

MAX_AGENT_CONNECTIONS = 1024
MIN_AGENT_CONNECTIONS = 16
# The spool, logs, name lookups, and connections that are accepted but not yet counted.
_RESERVED = 192


def max_agent_connections(others: int) -> int:
    """The limit when the admin port and the upstreams can have `others` connections."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_AGENT_CONNECTIONS
    left = soft - others - _RESERVED
    return max(MIN_AGENT_CONNECTIONS, min(MAX_AGENT_CONNECTIONS, left))

"""Shares out the process's file descriptors, so that no one's connections take another's.

Where the limit is high enough, everyone gets the normal number. Below that, agents' connections,
visitors of the admin port and requests to the upstreams shrink together: a connection too many is
closed by us, while a descriptor too many would fail a request, the spool or a probe.
"""

import errno
import os
import resource
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MAX_AGENT_CONNECTIONS = 1024
MAX_ADMIN_CONNECTIONS = 256
MIN_CONNECTIONS = 4  # of agents, and of the admin port
# Their shares of what is left after `_RESERVED`, where that is too little for all.
_ADMIN_SHARE, _UPSTREAMS_SHARE = 1 / 8, 3 / 8
# Opened later: the ports (4), the spool (6), name lookups (6), dead letters, key files and small
# files (4), second addresses tried at the same time (4), connections that were just accepted or are
# just being closed (4).
_RESERVED = 28
# Where the open descriptors can't be counted.
_ASSUMED_OPEN = 16


class Requests(NamedTuple):
    """What an upstream would use: `most` concurrent requests for each of `clients` clients."""

    most: int
    clients: int = 1


class Shares(NamedTuple):
    """How many connections each may have, below the process's `limit` (0: none).

    `requests` are the concurrent requests of each client, by upstream. `scarce`: some number is
    lower than normal.
    """

    limit: int
    agents: int
    admin: int
    requests: Mapping[str, int]
    scarce: bool

    def numbers(self) -> dict[str, object]:
        """As logged."""
        names = "limit", "agents", "admin", "requests"
        return {name: getattr(self, name) for name in names}


def share(
    upstreams: Mapping[str, Requests],
    *,
    per_agent: int,
    limit: int | None = None,
    in_use: int | None = None,
) -> Shares:
    """Share out the descriptors below `limit` that are not `in_use`: by default, the process's own.

    An agent's connection can need `per_agent` descriptors.
    """
    limit = _soft_limit() if limit is None else limit
    normal = {name: each.most for name, each in upstreams.items()}
    if not limit:
        return Shares(0, MAX_AGENT_CONNECTIONS, MAX_ADMIN_CONNECTIONS, normal, scarce=False)
    left = limit - (_count_open() if in_use is None else in_use) - _RESERVED
    wanted = sum(each.most * each.clients for each in upstreams.values())
    everything = wanted + MAX_ADMIN_CONNECTIONS + MAX_AGENT_CONNECTIONS * per_agent
    if left >= everything:
        return Shares(limit, MAX_AGENT_CONNECTIONS, MAX_ADMIN_CONNECTIONS, normal, scarce=False)
    ours = min(1.0, max(0.0, left * _UPSTREAMS_SHARE / max(1, wanted)))
    requests = {name: max(1, int(each.most * ours)) for name, each in upstreams.items()}
    admin = max(MIN_CONNECTIONS, min(MAX_ADMIN_CONNECTIONS, int(left * _ADMIN_SHARE)))
    left -= admin + sum(requests[name] * each.clients for name, each in upstreams.items())
    agents = max(MIN_CONNECTIONS, min(MAX_AGENT_CONNECTIONS, left // per_agent))
    return Shares(limit, agents, admin, requests, scarce=True)


def raise_limit() -> None:
    """Raise the soft limit to the hard one, as any process may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS refuses what is above its own maximum
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def is_out_of_descriptors(error: Exception) -> bool:
    """Whether `error` means that the process, or the machine, has no descriptor left."""
    if isinstance(error, socket.gaierror):
        # To the resolver, a hosts file that it can't open is one without the name.
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as failure:
            error = failure
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}


def occupy_standard_descriptors() -> None:
    """Open /dev/null for each of the descriptors 0 to 2 that is closed.

    Otherwise the next file or connection that is opened would get the number, and the log with it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def _soft_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else soft


def _count_open() -> int:
    try:
        return sum(1 for _ in Path("/dev/fd").iterdir())
    except OSError:
        return _ASSUMED_OPEN

"""Tries out the way to each upstream, so that a mistake in it shows before an agent has a span.

At the start of the process: DNS, TCP, proxy and TLS. In `sidecar check --probe`, also whether the
API is there and accepts the credential. Nothing is written.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence

from sidecar.config import Config, upstreams
from sidecar.credentials import Accounts
from sidecar.drain.lane import Lane
from sidecar.lanes import build_lanes
from sidecar.network.dialer import Step, Unreachable
from sidecar.process.terminal import complain, show
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.sinks import Misdirected, SinkError, Unauthorized
from sidecar.sinks.dead_letters import DeadLetters, LetterWriter
from sidecar.spool.spool import Spool
from sidecar.telemetry.decisions import Decisions
from sidecar.telemetry.outcomes import SinkState

_NOT_ASKED = "not checked, this server has no way to ask"
_NOT_FOUND = 404, 410


async def try_all(lanes: Sequence[Lane]) -> None:
    """Open a connection to each upstream once, and log how far it goes."""
    await asyncio.gather(*map(_try, lanes))


async def _try(lane: Lane) -> None:
    steps: list[str] = []
    try:
        await _connect(lane, steps.append)
    except Unreachable as failure:
        if lane.state is SinkState.NOT_ASKED:  # or else it is known better
            lane.metrics.unreachable(str(failure), asyncio.get_running_loop().time())
    else:
        lane.metrics.reachable(steps)


async def _connect(lane: Lane, step: Step) -> None:
    reason = await lane.dialer.listen(step)
    if reason is not None:
        raise Unreachable(reason)


async def probe(config: Config, environ: Mapping[str, str]) -> bool:
    """Print how far the way to each enabled upstream goes; whether all is well.

    Raises `ConfigError`, or `CertificateError`.
    """
    accounts = Accounts(config.sgp.account_id, by_request=config.sgp.relay)
    letters = LetterWriter(DeadLetters("", 1, accounts.id_of))
    budget = MemoryBudget(sys.maxsize)
    good = True
    for lane in build_lanes(config, environ, budget, letters, Spool(), Decisions(), accounts):
        try:
            await lane.refresh()
            await _probe(lane, f"{lane.name}.{upstreams(config)[lane.name].url_key}")
        except (Unreachable, SinkError) as error:
            good = False
            complain(f"{lane.name}: {error}")
        finally:
            await lane.close_connections()
    return good


async def _probe(lane: Lane, url_key: str) -> None:
    def step(text: str) -> None:
        show(f"{lane.name}: {text}")

    await _connect(lane, step)
    (branch,) = lane.branches.values()
    if lane.credential_file.path and not lane.credential_file.headers:
        raise Unauthorized(f"credential: there is none in {lane.credential_file.path}")
    has_key = bool(branch.credentials.headers())
    try:
        answer = "there" if await branch.sink.try_out() else _NOT_ASKED
    except Unauthorized as error:
        if has_key:
            raise Unauthorized(f"credential: refused, {error}") from None
        if not branch.credentials.relayed:
            raise Unauthorized(f"credential: none is configured, {error}") from None
        answer = f"not checked, it wants a credential first: {error}"
    except SinkError as error:
        raise Misdirected(f"API: {_why_not(url_key, error)}") from None
    if has_key:
        step(f"credential: {'accepted' if answer == 'there' else answer}")
    else:
        step(f"API: {answer}")
        relayed = ", so the agents' are used" if branch.credentials.relayed else ""
        step(f"credential: none is configured{relayed}")


def _why_not(url_key: str, error: SinkError) -> str:
    if error.status in _NOT_FOUND:
        return f"{error}: the path of {url_key} is wrong, or this server has no spans API"
    if isinstance(error, Misdirected):
        return f"what answers is not the API: {error}"
    return f"not well: {error}"

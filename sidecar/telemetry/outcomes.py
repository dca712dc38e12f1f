"""The closed sets of names that metrics, logs and `/status` use; each is a contract.

Sinks, the drain and the listener use no other names, so that the cardinality of a label is
bounded.
"""

from enum import StrEnum


class SinkState(StrEnum):
    """The state of an upstream, as operators see it, from the best to the worst."""

    NOT_ASKED = "not_asked"  # nothing has been sent to it yet
    UP = "up"
    THROTTLED = "throttled"  # it asked for a pause with Retry-After
    BRAKED = "braked"  # it refuses most of what is sent: the circuit breaker is open (D17)
    DOWN = "down"  # it does not respond, or does not respond like the API we expect
    UNAUTHORIZED = "unauthorized"  # it does not accept the credential


# How one request to an upstream ended.
OUTCOMES = (
    "ok",
    "refused",
    "too_large",
    "unavailable",
    "unauthorized",
    "misdirected",
    "timeout",
    "connection",
)
# Why a write needed more than one request: what the upstream said to the first.
REPAIR_REASONS = ("exists", "unknown_id", "unknown_task", "data_not_merged")
# Why an event, or a whole request, was refused.
REJECT_REASONS = (
    "malformed",
    "invalid",
    "too_large",
    "no_room",
    "stopping",
    "unsupported",
    "account",
    "no_upstream",
)
# How a request that was passed through to SGP ended.
PASS_THROUGH_OUTCOMES = ("answered", "unreachable", "timeout", "broken", "aborted")
# What a flush ended with: with nothing left, with something, or at once, because too many wait.
FLUSH_OUTCOMES = ("delivered", "left", "refused")
PORTS = ("listener", "admin")
# Status codes that the agents' port responds with.
STATUS_CODES = (
    "200",
    "202",
    "400",
    "403",
    "404",
    "405",
    "408",
    "409",
    "413",
    "415",
    "422",
    "429",
    "503",
)

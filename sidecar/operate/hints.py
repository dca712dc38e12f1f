"""What operators can do about each finding: the setting or the command, and where it is explained.

The one table for `/status`, the page and `sidecar top`. Runbooks are named by page and anchor.
"""

from typing import Any, NamedTuple

OK, WARN, BAD = "ok", "warn", "bad"
WORST_FIRST = (BAD, WARN, OK)
_ALERT = "docs/runbooks.md#tracesidecar"


class Finding(NamedTuple):
    """A fact worth knowing: `hint` says what to do, `runbook` where that is explained."""

    level: str
    text: str
    detail: str
    hint: str | None = None
    runbook: str | None = None


# `{sink}` is a section of the configuration, `{url}` and `{file}` its keys with the upstream's URL
# and with the path of its credentials, and `{title}` the upstream's name.
HINTS = {
    "first_span": ("{send}", "docs/troubleshooting.md#it-never-arrived"),
    "imbalance": ("report it as a bug, with the archive of: sidecar debug", f"{_ALERT}imbalance"),
    "lost_at_stop": (
        "raise shutdown.grace_s and the pod's grace period, or set spool.path",
        f"{_ALERT}lostatshutdown",
    ),
    "lost": ("check the volume of spool.path", f"{_ALERT}writeslost"),
    "partial_success": (
        "look for the reason in the log of what receives the spans",
        f"{_ALERT}writeslost",
    ),
    "not_taken": (
        "raise queue.max_bytes, or with a spool spool.max_bytes, and see Why?",
        f"{_ALERT}writesnottaken",
    ),
    "left_running": (
        "raise queue.max_bytes, or with a spool spool.max_bytes, and see Why?",
        f"{_ALERT}spansleftrunning",
    ),
    "no_room": (
        "raise queue.max_bytes, or with a spool spool.max_bytes",
        f"{_ALERT}intakerefusing",
    ),
    "rejected": (
        "fix the agent: the response says what is wrong",
        f"{_ALERT}eventsrejected",
    ),
    "no_upstream": (
        "set AGENTEX_BASE_URL, or SGP_API_KEY and SGP_ACCOUNT_ID, or otlp.endpoint",
        "docs/configuration.md#which-upstreams-are-on",
    ),
    "replay": ("fix the cause, then run: {replay}", f"{_ALERT}deadletters"),
    "keep_letters": ("set dead_letters.path", f"{_ALERT}deadletters"),
    "letters_not_kept": (
        "replay the file or copy it away, raise dead_letters.max_bytes, check its volume",
        f"{_ALERT}deadlettersnotkept",
    ),
    "refused": (
        "look for write_dead_lettered in the log: it has the id, the status and the reason",
        f"{_ALERT}deadletters",
    ),
    "disk": (
        "check the volume of spool.path: it may be full, read-only, or not respond",
        f"{_ALERT}spooldegraded",
    ),
    "late": ("", f"{_ALERT}deliverystalled"),
    "down": ("run in the pod: sidecar check --probe", f"{_ALERT}upstreamdown"),
    "throttled": (
        "if it goes on, lower {sink}.max_concurrency, or have {title}'s limit raised",
        f"{_ALERT}deliverystalled",
    ),
    "unauthorized": (
        "replace the credential: the file at {file} is read again when it changes",
        f"{_ALERT}unauthorized",
    ),
    "braked": (
        "check {url}; the log says what is refused (write_dead_lettered)",
        f"{_ALERT}brakeon",
    ),
    "credential": (
        "make the file at {file} readable, with the credential in it",
        "docs/configuration.md#credentials",
    ),
    "agents_key": (
        "set {file} or {sink}.api_key, or have the agents send their key",
        "docs/configuration.md#credentials",
    ),
    "failing": (
        "ask {title}'s team about the error; `sidecar explain` tells what became of a span",
        f"{_ALERT}deliverystalled",
    ),
    "slow": (
        "ask {title}'s team; if it can take more at once, raise {sink}.max_concurrency",
        f"{_ALERT}deliverystalled",
    ),
    "room": (
        "raise queue.max_bytes, or with a spool spool.max_bytes",
        f"{_ALERT}lanenearlyfull",
    ),
    "memory": (
        "raise the container's memory limit, or lower queue.max_bytes",
        f"{_ALERT}memorynearlimit",
    ),
    "log": (
        "check what reads the container's log, or set log.level to warning",
        "docs/runbooks.md#log-lines-were-dropped",
    ),
}


def found(level: str, text: str, detail: str, key: str = "", **words: Any) -> Finding:
    """A finding with the hint of `key`, in which `words` are filled in."""
    if not key:
        return Finding(level, text, detail)
    hint, runbook = HINTS[key]
    return Finding(level, text, detail, hint.format(**words) or None, runbook)

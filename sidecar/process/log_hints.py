"""What to do about a line of the log: each warning and error has a `hint`, from one table.

A hint names the setting or the command to use, and the page that explains it. It holds whatever the
line's other fields are, so it names no cause that only one of them would have.
"""

from collections.abc import MutableMapping
from typing import Any

_WITH_HINT = {"warning", "error", "critical"}
_RUNBOOK = "docs/runbooks.md#tracesidecar"
_PROBE = "run in the pod: sidecar check --probe"
_ROOM = "raise queue.max_bytes, or with a spool spool.max_bytes"
_DISK = "check the volume of spool.path: it may be full, read-only, or not respond"
_REPLAY = "fix the cause, then run: sidecar replay FILE, with the file at dead_letters.path"

# What to do, and where that is explained, by event. `{sink}` is the line's, and a section of the
# configuration.
HINTS = {
    "unknown_variable": (
        "run with the same variables: sidecar check",
        "docs/configuration.md#where-settings-come-from",
    ),
    "config_warning": (
        "run with the same settings: sidecar check",
        "docs/configuration.md#where-settings-come-from",
    ),
    "signal_ignored": (
        "end the process with SIGTERM, see where it is with SIGQUIT",
        "docs/configuration.md#stopping",
    ),
    "stacks": (
        "attach these lines, and what `sidecar debug` makes, to an issue",
        "docs/runbooks.md#something-hangs",
    ),
    "grace_period_over": (
        "raise shutdown.grace_s and the pod's grace period, or set spool.path",
        f"{_RUNBOOK}lostatshutdown",
    ),
    "stopped": (
        "check what `hanging` names: the disk or the name service",
        "docs/runbooks.md#something-hangs",
    ),
    "upstream_unreachable": (_PROBE, f"{_RUNBOOK}upstreamdown"),
    "upstream_down": (_PROBE, f"{_RUNBOOK}upstreamdown"),
    "upstream_throttled": (
        "if it goes on, lower {sink}.max_concurrency, or have the upstream's limit raised",
        f"{_RUNBOOK}deliverystalled",
    ),
    "upstream_unauthorized": (
        "replace the credential: a file that has it is read again when it changes",
        f"{_RUNBOOK}unauthorized",
    ),
    "upstream_braked": (
        "check the URL in section {sink}; write_dead_lettered in the log says what is refused",
        f"{_RUNBOOK}brakeon",
    ),
    "upstream_route_gone": (
        "correct the URL in section {sink}, or unset it, and restart",
        f"{_RUNBOOK}upstreamdown",
    ),
    "certificates_unusable": (
        "replace the files of {sink}.ca_file, client_cert_file and client_key_file",
        "docs/network.md#certificates",
    ),
    "write_dead_lettered": (_REPLAY, f"{_RUNBOOK}deadletters"),
    "dead_letters_kept": (
        "run: sidecar replay FILE, with the file at dead_letters.path",
        f"{_RUNBOOK}deadletters",
    ),
    "dead_letter_not_kept": (
        "check the volume of dead_letters.path",
        f"{_RUNBOOK}deadlettersnotkept",
    ),
    "writes_lost": (
        "raise shutdown.grace_s or set spool.path; if that is set, check its volume",
        f"{_RUNBOOK}writeslost",
    ),
    "writes_not_kept": (
        "look for the reason in the log of what receives the spans",
        f"{_RUNBOOK}writeslost",
    ),
    "writes_not_taken": (_ROOM, f"{_RUNBOOK}writesnottaken"),
    "intake_refusing": (_ROOM, f"{_RUNBOOK}intakerefusing"),
    "event_rejected": (
        "fix the agent: the response says what is wrong",
        f"{_RUNBOOK}eventsrejected",
    ),
    "request_refused": (
        "look up the status; the response's body says what is wrong",
        "docs/troubleshooting.md#what-a-status-means",
    ),
    "connections_full": (
        "raise the container's limit of open files (ulimit -Hn), or open fewer connections",
        "docs/runbooks.md#few-file-descriptors",
    ),
    "account_overridden": (
        "unset sgp.account_id and set sgp.relay, or correct the agent",
        "docs/troubleshooting.md#the-wrong-account",
    ),
    "descriptors_scarce": (
        "raise the container's hard limit of open files (ulimit -Hn)",
        "docs/runbooks.md#few-file-descriptors",
    ),
    "log_lines_dropped": (
        "check what reads the container's log, or set log.level to warning",
        "docs/runbooks.md#log-lines-were-dropped",
    ),
    "spool_degraded": (_DISK, f"{_RUNBOOK}spooldegraded"),
    "spool_moved_aside": (
        "keep the renamed file for an issue, and check the volume of spool.path",
        f"{_RUNBOOK}spooldegraded",
    ),
    "spool_row_unreadable": ("check the volume of spool.path", f"{_RUNBOOK}writeslost"),
    "last_words_not_kept": (
        "check the volume of spool.path, or of dead_letters.path",
        f"{_RUNBOOK}lostatshutdown",
    ),
    "replay_gave_up": (
        "run the same command again, once the upstream or the sidecar responds",
        f"{_RUNBOOK}deadletters",
    ),
}
# Of a library's line, or of a bug's.
_OTHERS = (
    "if spans are late or missing, attach what `sidecar debug` makes to an issue",
    "docs/troubleshooting.md#report-a-problem",
)


def add_hint(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor for lines that have their `level`."""
    if event["level"] in _WITH_HINT:
        text, page = HINTS.get(event["event"], _OTHERS)
        text = text.replace("{sink}", str(event.get("sink", "")))
        event["hint"] = f"{text} ({page})"
    return event

"""What an agent's environment sets: the sidecar's URL, and switches."""

import os

DEFAULT_URL = "http://127.0.0.1:8318"
URL_VARIABLE = "TRACE_SIDECAR_URL"
DISABLED_VARIABLE = "TRACE_SIDECAR_DISABLED"
SIGTERM_VARIABLE = "TRACE_SIDECAR_FLUSH_ON_SIGTERM"

_ON = frozenset({"1", "true", "yes", "on"})


def sidecar_url(url: str | None) -> str:
    """`url`, else `TRACE_SIDECAR_URL`, else the default; empty counts as unset."""
    return url or _read(URL_VARIABLE) or DEFAULT_URL


def is_on(variable: str) -> bool:
    """Whether a switch is set to `1`, `true`, `yes` or `on`, in any case."""
    return _read(variable).strip().lower() in _ON


def _read(variable: str) -> str:
    try:
        return os.environ.get(variable, "")
    except Exception:  # noqa: BLE001 - a sandbox forbids it; tracing must not stop its workflow
        return ""

"""What the sidecar's responses say (docs/api.md), however malformed: nothing here raises.

None of these texts contains span content.
"""

import json
from typing import Any, NamedTuple

from .notices import visible


class Response(NamedTuple):
    """A response from the sidecar. `retry_after_s` is 0 if it has no `Retry-After`."""

    status: int
    retry_after_s: float
    body: bytes

    @property
    def members(self) -> dict[str, Any]:
        """The body, if it is a JSON object, else nothing."""
        try:
            members: Any = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return members if isinstance(members, dict) else {}


def rejections(members: dict[str, Any]) -> list[str]:
    """The reason for each event that the sidecar rejected."""
    rejected = members.get("rejected")
    if not isinstance(rejected, list):
        return []
    return [_text(event, "error") or "no reason" for event in rejected if isinstance(event, dict)]


def not_taken_for(members: dict[str, Any]) -> dict[str, int]:
    """How many of the accepted events each upstream will not get, because its lane is full."""
    counts = members.get("not_taken_for")
    if not isinstance(counts, dict):
        return {}
    return {visible(name): count for name, count in counts.items() if type(count) is int}


def error_text(members: dict[str, Any]) -> str:
    """What is wrong with the request, and what to do about it; empty if it does not say."""
    return _text(members, "error")


def _text(members: dict[str, Any], name: str) -> str:
    text = members.get(name)
    return visible(text) if isinstance(text, str) else ""

"""A sender that keeps its events, for tests of what a span sends and when."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import compress, repeat
from typing import Any

from trace_sidecar_client import Sender


class Kept(Sender):
    """Keeps the events in memory. Like `Buffer.offer`, it takes each in one step."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1")
        self.events: list[bytes] = []

    def send(self, event: bytes, once: Iterator[bool] | None = None) -> None:
        self.events.extend(compress((event,), once or repeat(True, 1)))

    def all(self, kind: str) -> list[dict[str, Any]]:
        """The spans of all events of a kind, in order."""
        events = [json.loads(event) for event in self.events]
        return [each["span"] for each in events if each["event_type"] == kind]

    def ids(self, kind: str) -> Counter[str]:
        """How many events of a kind there are, by span."""
        return Counter(span["id"] for span in self.all(kind))

    @property
    def parents(self) -> dict[str, str | None]:
        """The name of each span's parent, by the span's name."""
        names = {span["id"]: span["name"] for span in self.all("start")}
        starts = self.all("start")
        return {span["name"]: names.get(span.get("parent_id", "")) for span in starts}

    @property
    def ends(self) -> dict[str, dict[str, Any]]:
        """The spans of all ENDs, by name."""
        return {span["name"]: span for span in self.all("end")}

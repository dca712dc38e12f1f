"""Compares what arrived at a stand-in with what the plan sent."""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from .loads import Plan, expected


class Arrived(msgspec.Struct, kw_only=True):
    """The spans of one upstream; `altered`: stored with another `input` than the agent sent."""

    spans: int = 0
    lost: int = 0
    altered: int = 0
    foreign: int = 0
    unfinished: int = 0
    late_opens: int = 0
    writes_max: int = 0
    writes_mean: float = 0.0

    def faults(self) -> list[str]:
        """Describe what is wrong; empty if nothing is."""
        counts = {
            "lost": self.lost,
            "altered": self.altered,
            "foreign": self.foreign,
            "never completed": self.unfinished,
            "written open after they were complete": self.late_opens,
        }
        return [f"{count} spans {what}" for what, count in counts.items() if count]


def arrived(report: Mapping[str, Any], plan: Plan) -> Arrived:
    """Compare the `report` of a stand-in with `plan`."""
    digests: dict[str, str] = report["digests"]
    spans: int = report["spans"]
    result = Arrived(
        spans=spans,
        unfinished=spans - report["complete"],
        late_opens=report["late_opens"],
        writes_max=report["writes_max"],
        writes_mean=report["writes"] / max(1, spans),
    )
    for id_, input_ in expected(plan):
        digest = digests.pop(id_, None)
        if digest is None:
            result.lost += 1
        elif digest != _digest(input_):
            result.altered += 1
    result.foreign = len(digests)
    return result


def _digest(raw: bytes) -> str:
    # As the stand-ins do in light mode.
    return hashlib.blake2b(raw, digest_size=8).hexdigest()

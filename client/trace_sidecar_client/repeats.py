"""Remembers the encoded values of open spans, because an END repeats what its START had.

Only values that are proven equal are reused (`Payload.fingerprint`): an agent may change its span
between START and END. Encoding the same prompt twice would be half of what a span costs.
"""

from .values import Payload

# At most 16 MiB together. Spans beyond that are encoded again.
_MAX_SPANS = 64
_MAX_BYTES = 256 * 1024
# Encoding less costs no more than a look here.
_MIN_BYTES = 1024

Payloads = dict[str, Payload]

# Dicts need no lock: each operation is atomic, also in signal handlers and destructors.
_open: dict[str, Payloads] = {}


def remember(span_id: str, payloads: Payloads) -> None:
    """Keep the payloads of a START until `recall`, or until too many others came."""
    kept = {field: payload for field, payload in payloads.items() if payload.fingerprint}
    size = 2 * sum(len(payload.raw) for payload in kept.values())  # a fingerprint is as large
    if not _MIN_BYTES <= size <= _MAX_BYTES:
        return
    for oldest in list(_open)[: max(len(_open) + 1 - _MAX_SPANS, 0)]:
        _open.pop(oldest, None)
    _open[span_id] = kept


def recall(span_id: str) -> Payloads:
    """Return, once, what was kept for a span."""
    return _open.pop(span_id, {})

"""What an upstream must not see (`hide`): taken out of each write, in front of its sink.

In: writes as the agents made them, which the lanes share. Out: copies without those payloads; the
bytes of the others are not copied. Dead letters are written from the same copies.
"""

from collections.abc import Collection, Sequence

import msgspec

from sidecar.sinks import Sink
from sidecar.spans.span import DATA, PAYLOADS, Payload, Span, payloads_in_memory

_OUTPUT = 1 << PAYLOADS.index("output")
# What an SDK may say about a span without saying anything of its content. All else counts as
# `data`, but for the output that was expected.
_EXPECTED = "expected"
_HARMLESS = {"status", "type", "group_id", _EXPECTED}

_Members = dict[str, msgspec.Raw]
_MEMBERS = msgspec.json.Decoder(_Members)


def without(span: Span, hidden: int) -> Span:
    """`span` without the payloads that have a bit in `hidden`; the same object if it has none.

    Of an SDK's item, `expected` goes with `output`, and members that we do not know with `data`.
    """
    found = payloads_in_memory(span) & hidden
    sdk = span.sdk
    if sdk is not None and sdk.extra and not span.is_supplement:
        extra = _without(sdk.extra, hidden)
        if extra != sdk.extra:
            sdk = sdk._replace(extra=extra)
    if not found and sdk is span.sdk:
        return span
    input_, output, data = (
        b"" if found >> index & 1 else getattr(span, name) for index, name in enumerate(PAYLOADS)
    )
    return msgspec.structs.replace(span, input=input_, output=output, data=data, sdk=sdk)


def taken_out(span: Span, hidden: int) -> int:
    """The bits of the payloads that `without` takes out of `span`, or out of its SDK's members."""
    found = payloads_in_memory(span) & hidden
    if span.sdk is not None and span.sdk.extra and not span.is_supplement:
        for bit in (_OUTPUT, DATA):
            if hidden & bit and _without(span.sdk.extra, bit) != span.sdk.extra:
                found |= bit
    return found


def names_of(hidden: int, others: Collection[Payload] = ()) -> list[Payload]:
    """The names of the payloads that have a bit in `hidden`, or are in `others`."""
    return [name for index, name in enumerate(PAYLOADS) if hidden >> index & 1 or name in others]


def _without(extra: bytes, hidden: int) -> bytes:
    """An SDK's other members, as JSON text without the braces."""
    members = _MEMBERS.decode(b"{%b}" % extra)
    kept = {
        name: raw
        for name, raw in members.items()
        if not (hidden & (_OUTPUT if name == _EXPECTED else 0 if name in _HARMLESS else DATA))
    }
    return extra if len(kept) == len(members) else msgspec.json.encode(kept)[1:-1]


class HidingSink:
    """Delivers through `sink` what its upstream may see: without the payloads in `hidden`."""

    def __init__(self, sink: Sink, hidden: int) -> None:
        self._sink = sink
        self._hidden = hidden
        self.name = sink.name
        self.max_batch = sink.max_batch
        self.max_batch_bytes = sink.max_batch_bytes
        self.data_follows = sink.data_follows and not hidden & DATA
        self.reasons = sink.reasons | {"hidden"}
        self.repairs = sink.repairs

    def skips(self, span: Span) -> str | None:
        """As `sink` does. A supplement that has nothing left to add is skipped, too."""
        on_disk = 0 if span.stored is None else span.stored.dropped
        if span.is_supplement and not (payloads_in_memory(span) | on_disk) & ~self._hidden:
            return "hidden"
        return self._sink.skips(span)

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> int:
        """Deliver what the upstream may see of `batch`."""
        shown = [without(span, self._hidden) for span in batch]
        return await self._sink.send(shown, suspicion=suspicion)

    async def try_out(self) -> bool:
        """As `sink` does."""
        return await self._sink.try_out()

    def stopping(self) -> None:
        """As `sink` does."""
        self._sink.stopping()

    async def close(self) -> None:
        """Close all connections."""
        await self._sink.close()

"""The payloads of spans, the same for every peer. Standard library only: agents import this.

As JSON, large spans have 25 KB of input (a chat) and 25 KB of output (retrieved texts), small ones
about 600 bytes in all. Texts have quotes, line breaks and umlauts, like prompts.
"""

import json
from typing import Any

LARGE, SMALL = 50_000, 600
PARTS = 12  # messages per large input, texts per large output
NAME = "llm"
TRACE = 40  # spans per trace
_SENTENCE = (
    'Order 48-1137 was "delayed" by the carrier in Köln; the customer asks for a refund,\n'
    "see section 4.2 {refunds, vouchers} and answer in two sentences. "
)

Payload = dict[str, Any]


def input_of(number: int, size: int) -> Payload:
    """Return the input of span `number`: half of `size`."""
    texts = [f"{number}.{at} {text}" for at, text in enumerate(_texts(size // 2))]
    roles = ("system", "user", "assistant")
    return {
        "model": "large-1",
        "messages": [
            {"role": roles[at and 1 + at % 2], "content": text} for at, text in enumerate(texts)
        ],
    }


def output_of(number: int, size: int) -> Payload:
    """Return the output of span `number`: the other half."""
    return {
        "documents": [
            {"id": f"doc-{number}-{at}", "score": at / 8, "text": text}
            for at, text in enumerate(_texts(size // 2))
        ]
    }


def encoded(payload: Payload) -> bytes:
    """Encode as JSON, as the SDKs' HTTP clients do."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


_made: dict[int, list[str]] = {}


def _texts(size: int) -> list[str]:
    """Return texts that, with keys of about 45 bytes each, are `size` bytes of JSON."""
    if size not in _made:
        parts = PARTS if size > SMALL else 1
        room = size // parts - 45
        text = _SENTENCE * (room // len(_SENTENCE) + 1)
        while len(json.dumps(text, ensure_ascii=False).encode()) > room:
            text = text[:-1]
        _made[size] = [text] * parts
    return _made[size]

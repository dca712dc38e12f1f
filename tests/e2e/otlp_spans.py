r"""Spans as agents send them, and what an OTLP receiver must have of each: written by hand.

By the rules of docs/otlp.md; hashed ids by `printf '%s' TRACE | sha256sum | cut -c1-32` and
`printf '%s\0%s' TRACE ID | sha256sum | cut -c1-16`. The sidecar computes nothing of it.
"""

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

# What a span is unless it says otherwise; its id ends with the number of its case, in hex.
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902"
START, END = "2026-01-02T03:04:05.678901+00:00", "2026-01-02T03:04:06.789012+00:00"
START_NS, END_NS = "1767323045678901000", "1767323046789012000"
INTERNAL, ERROR = 1, 2
KIND, JSON = "openinference.span.kind", "application/json"
UUID, HEX = "97008c14-e5e1-4a5f-8e1a-6c650a876779", "97008c14e5e14a5f8e1a6c650a876779"
UNICODE = "Köln-трасса-🧭"
LONG = 'Köln says "no" \\ yes,\n' * 2200


@dataclass(frozen=True)
class Case:
    """One span of an event, or with `is_item`, an item of SGP's SDK.

    `what` is its name too. Of what must arrive, `attributes` has all but the ids, as Python values;
    `fields` has what differs from the constants above, None if it is absent, `links` all links.
    """

    number: int
    what: str
    span: Json
    attributes: Json
    fields: Json = field(default_factory=dict)
    links: tuple[Json, ...] = ()
    is_item: bool = False

    @property
    def sent(self) -> Json:
        """The span as an agent sends it."""
        suffix = "timestamp" if self.is_item else "time"
        times = {f"start_{suffix}": START, f"end_{suffix}": END}
        return {"id": self._id, "trace_id": TRACE, "name": self.what, **times, **self.span}

    @property
    def arrives(self) -> Json:
        """The fields that must arrive, without attributes and links."""
        usual = {
            "traceId": TRACE,
            "spanId": self._id,
            "name": self.what,
            "kind": INTERNAL,
            "startTimeUnixNano": START_NS,
            "endTimeUnixNano": END_NS,
            "status": {},
        }
        found = usual | self.fields
        return {name: value for name, value in found.items() if value is not None}

    @property
    def all_attributes(self) -> Json:
        """The attributes that must arrive, as OTLP has them."""
        ids = {"agentex.trace_id": self.sent["trace_id"], "agentex.span_id": self.sent["id"]}
        for name in ("parent_id", "task_id"):
            if self.sent.get(name):
                ids[f"agentex.{name}"] = self.sent[name]
        return {
            key: as_otlp(value) for key, value in ({KIND: "CHAIN"} | ids | self.attributes).items()
        }

    @property
    def _id(self) -> str:
        return f"{SPAN}{self.number:02x}"


def as_otlp(value: object) -> Json:
    """Return a Python value as OTLP's JSON has it."""
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
    return {"stringValue": value}


def _failed(message: str) -> Json:
    return {"status": {"code": ERROR, **({"message": message} if message else {})}}


CASES = (
    # Ids.
    Case(
        1,
        "a trace that is a UUID with dashes, a span that is one",
        {"trace_id": UUID, "id": "5dc4a912-9ed8-4058-aaab-f2ec08bee7b4"},
        {},
        {"traceId": HEX, "spanId": "9452d30b337939c1"},
    ),
    Case(
        2,
        "a UUID without dashes, and the same span's id",
        {"trace_id": HEX, "id": "5dc4a912-9ed8-4058-aaab-f2ec08bee7b4"},
        {},
        {"traceId": HEX, "spanId": "b7e1046c8de20094"},
    ),
    Case(
        3,
        "a child of the first span, in the same trace",
        {
            "trace_id": UUID,
            "id": "24539883439045bfb6c3d203d1726606",
            "parent_id": "5dc4a912-9ed8-4058-aaab-f2ec08bee7b4",
            "task_id": "task 7",
        },
        {},
        {"traceId": HEX, "spanId": "de7cf050a14d983f", "parentSpanId": "9452d30b337939c1"},
    ),
    Case(
        4,
        "hex digits in upper case",
        {"trace_id": TRACE.upper(), "id": "B7AD6B7169203331", "parent_id": "00F067AA0BA902B7"},
        {},
        {"traceId": TRACE, "spanId": "b7ad6b7169203331", "parentSpanId": "00f067aa0ba902b7"},
    ),
    Case(
        5,
        "other texts",
        {"trace_id": "trace-1", "id": "span-1", "parent_id": "root"},
        {},
        {
            "traceId": "17fe6f303311c0b164b937e419518c1f",
            "spanId": "3f2bfd0c24376bfd",
            "parentSpanId": "1616491058112262",
        },
    ),
    Case(
        6,
        "ids of zeros only",
        {"trace_id": "00000000000000000000000000000000", "id": "0000000000000000"},
        {},
        {"traceId": "84e0c0eafaa95a34c293f278ac52e45c", "spanId": "708c75d726b676a6"},
    ),
    Case(
        7,
        "a UUID of zeros only",
        {"trace_id": "00000000-0000-0000-0000-000000000000", "id": "a"},
        {},
        {"traceId": "12b9377cbe7e5c94e8a70d9d23929523", "spanId": "7337788c2ed8aba3"},
    ),
    Case(
        8,
        "ids in other scripts",
        {"trace_id": UNICODE, "id": "späñ-一", "parent_id": "родитель"},
        {},
        {
            "traceId": "263bfa2049d77c9fac4382b9891a0f09",
            "spanId": "99661bf59e329ddd",
            "parentSpanId": "eaa04f81b0d64a92",
        },
    ),
    Case(
        9,
        "one hex digit too few",
        {"trace_id": "97008c14e5e14a5f8e1a6c650a87677", "id": "b7ad6b716920333"},
        {},
        {"traceId": "9be28c9d753ea9ebf1ec367f26276662", "spanId": "dcba209e31a1ff30"},
    ),
    Case(
        10,
        "dashes that are not where a UUID has them",
        {"trace_id": "9700-8c14e5e1-4a5f-8e1a-6c650a876779", "id": "00f067aa0ba9020a"},
        {},
        {"traceId": "3aff01ecb5749f8c5abb4593a44ee9d5"},
    ),
    Case(
        11,
        "a digit that only looks like one",
        {
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e473\uff16",
            "parent_id": "0000000000000000",
            "id": "00f067aa0ba9020b",
        },
        {},
        {"traceId": "6fef5f168ec65543874232d1c8c85fe5", "parentSpanId": "452ff5bdd3660e9b"},
    ),
    # Times.
    Case(
        12,
        "an offset, and nanoseconds",
        {
            "start_time": "2026-01-02T05:04:05.123456789+02:00",
            "end_time": "2026-01-01T23:34:06-03:30",
        },
        {},
        {"startTimeUnixNano": "1767323045123456789", "endTimeUnixNano": "1767323046000000000"},
    ),
    Case(
        13,
        "no offset, and a leap day",
        {"start_time": "2024-02-29T23:59:59", "end_time": "2024-02-29T23:59:59.5Z"},
        {},
        {"startTimeUnixNano": "1709251199000000000", "endTimeUnixNano": "1709251199500000000"},
    ),
    Case(
        14,
        "before 1970, and after what a signed number of nanoseconds can hold",
        {"start_time": "1969-12-31T23:59:59Z", "end_time": "9999-12-31T23:59:59Z"},
        {"agentex.start_time": "1969-12-31T23:59:59Z", "agentex.end_time": "9999-12-31T23:59:59Z"},
        # 0 is as good as absent in protobuf.
        {"startTimeUnixNano": None, "endTimeUnixNano": "9223372036854775807"},
    ),
    # Errors.
    Case(
        15,
        "an error as the SDK tells it",
        {"data": {"__error__": {"type": "ValueError", "message": "boom", "category": "platform"}}},
        {
            "error.type": "ValueError",
            "__error__": '{"type": "ValueError", "message": "boom", "category": "platform"}',
        },
        _failed("boom"),
    ),
    Case(
        16,
        "an error with a type only",
        {"data": {"__error__": {"type": "TimeoutError"}}},
        {"error.type": "TimeoutError", "__error__": '{"type": "TimeoutError"}'},
        _failed("TimeoutError"),
    ),
    Case(
        17,
        "an error that tells nothing",
        {"data": {"__error__": {}}},
        {"__error__": "{}"},
        _failed(""),
    ),
    Case(18, "no error", {"data": {"__error__": None, "error": "none"}}, {"error": "none"}),
    # Types, usage, model, link.
    Case(
        19,
        "a completion with its model and its usage",
        {
            "data": {
                "__span_type__": "COMPLETION",
                "model": "large-1",
                "usage": {
                    "input_tokens": 120,
                    "output_tokens": 30,
                    "total_tokens": 150,
                    "cached_input_tokens": 20,
                    "reasoning_tokens": 7,
                },
            }
        },
        {
            KIND: "LLM",
            "__span_type__": "COMPLETION",
            "model": "large-1",
            "usage": '{"input_tokens": 120, "output_tokens": 30, "total_tokens": 150,'
            ' "cached_input_tokens": 20, "reasoning_tokens": 7}',
            "llm.model_name": "large-1",
            "gen_ai.request.model": "large-1",
            "llm.token_count.prompt": 120,
            "gen_ai.usage.input_tokens": 120,
            "llm.token_count.completion": 30,
            "gen_ai.usage.output_tokens": 30,
            "llm.token_count.total": 150,
            "llm.token_count.prompt_details.cache_read": 20,
            "llm.token_count.completion_details.reasoning": 7,
        },
    ),
    Case(
        20,
        "usage by its other names",
        {"data": {"usage": {"prompt_tokens": 0, "completion_tokens": 5}, "cost_usd": 0.25}},
        {
            "usage": '{"prompt_tokens": 0, "completion_tokens": 5}',
            "cost_usd": 0.25,
            "llm.token_count.prompt": 0,
            "gen_ai.usage.input_tokens": 0,
            "llm.token_count.completion": 5,
            "gen_ai.usage.output_tokens": 5,
        },
    ),
    Case(
        21,
        "the turn of an agent",
        {"data": {"__span_type__": "AGENT_WORKFLOW"}},
        {KIND: "AGENT", "__span_type__": "AGENT_WORKFLOW"},
    ),
    Case(
        22,
        "a retrieval that an observability tool has a span of",
        {
            "data": {
                "__span_type__": "KB_RETRIEVAL",
                "obs_span_id": "bbbbbbbbbbbbbbbb",
                "obs_trace_id": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            }
        },
        {
            KIND: "RETRIEVER",
            "__span_type__": "KB_RETRIEVAL",
            "obs_span_id": "bbbbbbbbbbbbbbbb",
            "obs_trace_id": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        },
        links=({"traceId": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "spanId": "bbbbbbbbbbbbbbbb"},),
    ),
    Case(
        23,
        "a type that nobody knows, and half of a link",
        {"data": {"__span_type__": "whatever", "obs_trace_id": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}},
        {"__span_type__": "whatever", "obs_trace_id": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},
    ),
    # Other data.
    Case(
        24,
        "scalars",
        {
            "data": {
                "text": "Köln",
                "empty": "",
                "yes": True,
                "no": False,
                "zero": 0,
                "ratio": 0.5,
                "min": -9223372036854775808,
                "beyond": 9223372036854775808,
                "null": None,
            }
        },
        {
            "text": "Köln",
            "empty": "",
            "yes": True,
            "no": False,
            "zero": 0,
            "ratio": 0.5,
            "min": -9223372036854775808,
            "beyond": "9223372036854775808",
        },
    ),
    Case(
        25,
        "nested members",
        {"data": {"object": {"a": [1, {"b": None}]}, "list": ["x", 2], "none": {}, "nothing": []}},
        {"object": '{"a": [1, {"b": null}]}', "list": '["x", 2]', "none": "{}", "nothing": "[]"},
    ),
    Case(
        26, "data that is a list", {"data": [{"a": 1}, {"b": 2}]}, {"data": '[{"a": 1}, {"b": 2}]'}
    ),
    Case(
        27,
        "members with the names of our own attributes",
        {"input": {"q": 1}, "data": {"input.value": "theirs", "agentex.span_id": "theirs"}},
        {
            "input.value": '{"q": 1}',
            "input.mime_type": JSON,
            "data.input.value": "theirs",
            "data.agentex.span_id": "theirs",
        },
    ),
    # Payloads.
    Case(
        28,
        "payloads",
        {
            "input": {"messages": [{"role": "user", "content": "Wo ist „Köln“?"}]},
            "output": [{"text": "here"}],
        },
        {
            "input.value": '{"messages": [{"role": "user", "content": "Wo ist „Köln“?"}]}',
            "input.mime_type": JSON,
            "output.value": '[{"text": "here"}]',
            "output.mime_type": JSON,
        },
    ),
    Case(29, "no payloads", {"input": None, "output": None, "data": None}, {}),
    Case(
        30,
        "empty payloads",
        {"input": {}, "output": [], "data": {}},
        {
            "input.value": "{}",
            "input.mime_type": JSON,
            "output.value": "[]",
            "output.mime_type": JSON,
        },
    ),
    Case(
        31,
        "a payload of 50 KB",
        {"output": {"text": LONG}},
        {
            "output.value": '{"text": "%s"}' % (r"Köln says \"no\" \\ yes,\n" * 2200),
            "output.mime_type": JSON,
        },
    ),
    # What an agent sends with SGP's own SDK.
    Case(
        32,
        "an item of SGP's SDK",
        {
            "parent_id": "00f067aa0ba902b7",
            "input": {"q": 1},
            "output": {},
            "status": "SUCCESS",
            "type": "GUARDRAIL",
            "metadata": {"__source__": "agentex", "k": 1},
        },
        {
            KIND: "GUARDRAIL",
            "sgp.type": "GUARDRAIL",
            "sgp.status": "SUCCESS",
            "input.value": '{"q": 1}',
            "input.mime_type": JSON,
            "output.value": "{}",
            "output.mime_type": JSON,
            "__source__": "agentex",
            "k": 1,
        },
        {"parentSpanId": "00f067aa0ba902b7"},
        is_item=True,
    ),
    Case(
        33,
        "a failed item of SGP's SDK",
        {
            "status": "ERROR",
            "type": "COMPLETION",
            "metadata": {"error": True, "error_type": "ValueError", "error_message": "boom"},
        },
        {
            KIND: "LLM",
            "sgp.type": "COMPLETION",
            "sgp.status": "ERROR",
            "error.type": "ValueError",
            "error": True,
            "error_type": "ValueError",
            "error_message": "boom",
        },
        _failed("boom"),
        is_item=True,
    ),
)

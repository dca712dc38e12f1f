"""What a real OpenTelemetry Collector has of each span, beside a table written by hand."""

from pathlib import Path

from tests.e2e.collector_support import attributes, collector
from tests.e2e.otlp_spans import CASES, Json, as_otlp
from tests.e2e.otlp_support import IDENTITY, lane, otlp_sidecar, post, send


async def test_each_span_arrives_as_the_table_has_it(tmp_path: Path) -> None:
    """The Collector writes exactly the fields, attributes and links of the table, once each."""
    async with (
        collector(tmp_path) as upstream,
        otlp_sidecar(tmp_path, upstream.url, **IDENTITY, SIDECAR_POD__NAME="pod-1") as life,
    ):
        await post(life, [case.sent for case in CASES if not case.is_item])
        items = [case.sent for case in CASES if case.is_item]
        await send(life, "PUT", "/v5/spans/batch", {"items": items}, 200)
        spans = await upstream.received(len(CASES))
        assert (await lane(life))["forwarded"] == len(CASES)
    assert {span["name"]: _seen(span) for span in spans} == {
        case.what: (case.arrives, case.all_attributes, list(case.links)) for case in CASES
    }
    assert len(spans) == len(CASES)
    for request in upstream.requests():
        (resource,) = request["resourceSpans"]
        assert attributes(resource["resource"]) == {
            key: as_otlp(value)
            for key, value in {
                "service.name": "demo-agent",
                "service.version": "1.2.3",
                "agentex.agent.id": "agent-1",
                "agentex.acp_type": "async",
                "k8s.pod.name": "pod-1",
            }.items()
        }
        (scope,) = resource["scopeSpans"]
        assert scope["scope"]["name"] == "trace-sidecar"


def _seen(span: Json) -> tuple[Json, Json, list[Json]]:
    """The fields of a span, its attributes and its links."""
    fields = {name: value for name, value in span.items() if name not in {"attributes", "links"}}
    return fields, attributes(span), span.get("links", [])

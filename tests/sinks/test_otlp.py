"""The OTLP sink against a receiver that reads with OpenTelemetry's own package."""

import gzip
import subprocess
import sys

import pytest

from sidecar.demo.stand_in import Answer, Raw, Scripted
from sidecar.sinks import Refused, SinkError, Unavailable
from sidecar.sinks.otlp import otlp_resource
from sidecar.spans.span import SUPPLEMENT, SdkFields
from tests.support.otlp import PROTOBUF, OtlpStandIn, answer, sink_for, spans_in, text_of
from tests.support.otlp import decoded as decoded_request
from tests.support.spans import make_span

CONTENT = "a customer's own words"
SPANS = [make_span(f"s{n}", input=b'{"q":"%b"}' % CONTENT.encode()) for n in range(4)]
BOTH = pytest.mark.parametrize("compress", [False, True])
HTML = {"Content-Type": "text/html; charset=utf-8"}
TEXT = {"Content-Type": "text/plain"}


def in_json(body: bytes) -> Answer:
    """A success in JSON."""
    return Answer(200, body, {"Content-Type": "application/json"})


async def outcome_of(scripted: Scripted, spans: int = 4) -> tuple[int | SinkError, list[str]]:
    """What a send ends with if the receiver answers so, and the outcomes that are counted."""
    outcomes: list[str] = []
    async with OtlpStandIn() as receiver, sink_for(receiver.url, outcomes) as sink:
        receiver.script = [scripted]
        try:
            return await sink.send(SPANS[:spans]), outcomes
        except SinkError as error:
            return error, outcomes


@BOTH
async def test_spans_arrive_with_their_resource(compress: bool) -> None:
    """A batch is one request to `/v1/traces` below the endpoint, with the configured headers."""
    outcomes: list[str] = []
    receiver = OtlpStandIn(prefix="/otel", headers={"Authorization": "Basic x"})
    async with (
        receiver,
        sink_for(
            f"{receiver.url}/otel/", outcomes, compress=compress, Authorization="Basic x"
        ) as sink,
    ):
        assert await sink.send(SPANS) == 0
        assert await sink.try_out()
    assert (outcomes, receiver.resources) == (["ok", "ok"], [{"service.name": "agent"}])
    assert list(receiver.spans) == ["s0", "s1", "s2", "s3"]
    sent, nothing = receiver.requests
    assert (sent.method, sent.headers["Content-Type"]) == ("POST", PROTOBUF)
    assert ("Content-Encoding" in sent.headers) == compress
    assert len(spans_in(decoded_request(sent))) == 4
    body = gzip.decompress(nothing.body) if compress else nothing.body
    assert body == b""


async def test_compression_saves_bytes_and_changes_nothing() -> None:
    """The receiver reads the same message, from fewer bytes."""
    receiver = OtlpStandIn()
    long = [make_span(input=b'{"q":"%b"}' % (b"words " * 10_000))]
    async with receiver:
        for compress in (False, True):
            async with sink_for(receiver.url, [], compress=compress) as sink:
                await sink.send(long)
    plain, zipped = receiver.requests
    assert gzip.decompress(zipped.body) == plain.body
    assert len(zipped.body) < len(plain.body) / 10


async def test_a_span_has_its_account() -> None:
    """Spans of all accounts share the lane: each says which one it came with."""
    other = make_span("other", account=1)
    async with OtlpStandIn() as receiver, sink_for(receiver.url, []) as sink:
        await sink.send([SPANS[0], other])
        accounts = {i: text_of(each, "agentex.account_id") for i, each in receiver.spans.items()}
        assert accounts == {"s0": "", "other": "one"}


@pytest.mark.parametrize(
    ("scripted", "rejected"),
    [
        (answer(3), 3),
        (answer(0, "a warning"), 0),
        (answer(-1), 0),
        (in_json(b'{"partialSuccess":{"rejectedSpans":"3","errorMessage":"x"}}'), 3),
        (in_json(b' {"partialSuccess":{"rejectedSpans":3}}'), 3),
        (in_json(b'{"partialSuccess":{"rejectedSpans":"many"}}'), 0),
        (in_json(b'{"partialSuccess":null}'), 0),
        (in_json(b'{"partialSuccess":{}}'), 0),
        (in_json(b"{}"), 0),
        (in_json(b"{"), 0),
        (in_json(b'{"x":' * 30_000), 0),
        (in_json(b'{"partialSuccess":{"rejectedSpans":"%b"}}' % (b"9" * 5000)), 0),
        (in_json(b'{"status":"ok"}'), 0),
        (Answer(200, answer(3).body, {"Content-Type": "application/json"}), 3),
        (Answer(200, gzip.compress(answer(3).body), {"Content-Type": PROTOBUF,
                                                      "Content-Encoding": "gzip"}), 3),
        (Answer(202, b"", TEXT), 0),
        (Answer(200, b"\xff\xff", {"Content-Type": PROTOBUF}), 0),
        (Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), 0),
        (204, 0),
    ],
)  # fmt: skip
async def test_a_success_may_be_partial(scripted: Scripted, rejected: int) -> None:
    """How many spans were not kept is read in every form; what says nothing is a success."""
    assert await outcome_of(scripted) == (rejected, ["ok"])


@pytest.mark.parametrize(("rejected", "spans"), [(4, 4), (5, 4), (1, 1)])
async def test_a_success_for_no_span_is_a_refusal(rejected: int, spans: int) -> None:
    """Nothing was kept, so the batch can be sent again in halves until the bad span is alone."""
    error, _ = await outcome_of(answer(rejected, CONTENT), spans)
    assert isinstance(error, Refused)
    assert str(error) == "HTTP 200 that rejects all spans"


@pytest.mark.parametrize(
    ("scripted", "decision", "retry_after"),
    [
        (Answer(400, CONTENT.encode(), TEXT), "Refused", 0.0),
        (Answer(400, CONTENT.encode(), {"Content-Type": PROTOBUF}), "Refused", 0.0),
        (Answer(413, b"", HTML), "TooLarge", 0.0),
        (422, "Refused", 0.0),
        (Answer(400, CONTENT.encode(), HTML), "Misdirected", 0.0),
        (Answer(200, CONTENT.encode(), HTML), "Misdirected", 0.0),
        (Answer(202, b"accepted", TEXT), "Misdirected", 0.0),
        (404, "Misdirected", 0.0),
        (405, "Misdirected", 0.0),
        (415, "Misdirected", 0.0),
        (302, "Misdirected", 0.0),
        (401, "Unauthorized", 0.0),
        (403, "Unauthorized", 0.0),
        (Answer(429, b"", {"Retry-After": "7"}), "Unavailable", 7.0),
        (Answer(503, b"", {"Retry-After": "7"}), "Unavailable", 7.0),
        (502, "Unavailable", 0.0),
        (504, "Unavailable", 0.0),
        (500, "Unavailable", 0.0),
    ],
)
async def test_what_a_status_means(scripted: Scripted, decision: str, retry_after: float) -> None:
    """OTLP's statuses are decisions like any upstream's, and texts never quote the receiver."""
    error, outcomes = await outcome_of(scripted)
    assert isinstance(error, SinkError)
    assert (type(error).__name__, error.retry_after) == (decision, retry_after)
    assert outcomes == [error.outcome]
    assert CONTENT not in repr(error)


async def test_a_page_says_what_it_is_not() -> None:
    """The operator reads that the answer is not OTLP, as it would read JSON elsewhere."""
    error, _ = await outcome_of(Answer(200, b"<html>", HTML))
    assert str(error) == "HTTP 200 that is not OTLP"


async def test_a_success_that_breaks_off_is_sent_again() -> None:
    """What it says of rejected spans has not arrived, and a span that arrives twice is harmless."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 9\r\n\r\n\n"
    error, outcomes = await outcome_of(Raw(head))
    assert isinstance(error, Unavailable)
    assert outcomes == ["connection"]


@pytest.mark.parametrize("status", [400, 401, 404, 503])
async def test_trying_out(status: int) -> None:
    """A refusal of no spans says that the credential was accepted; any other error raises."""
    async with OtlpStandIn() as receiver, sink_for(receiver.url, []) as sink:
        receiver.script = [status]
        if status == 400:
            assert await sink.try_out()
            return
        with pytest.raises(SinkError) as raised:
            await sink.try_out()
        assert raised.value.status == status


async def test_only_whole_spans_are_sent() -> None:
    """OTLP has no running spans, and nothing can be added to a span later."""
    supplement = make_span(sdk=SdkFields(1, SUPPLEMENT))
    async with sink_for("http://127.0.0.1:9", []) as sink:
        spans = [make_span(), make_span(complete=False), supplement]
        assert [sink.skips(span) for span in spans] == [None, "open_writes_off", "open_writes_off"]
        assert sink.reasons == {"open_writes_off"}


async def test_a_thread_that_cannot_start_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The container's limit for threads is used up: the batch waits, and the lane goes on later."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async with OtlpStandIn() as receiver, sink_for(receiver.url, [], compress=True) as sink:
        with monkeypatch.context() as limited:
            limited.setattr("threading.Thread.start", refuse)
            with pytest.raises(Unavailable) as raised:
                await sink.send(SPANS)
        assert not raised.value.reached
        assert await sink.send(SPANS) == 0


def test_the_resource_names_the_agent() -> None:
    """What the pod's variables say is told; a variable that is not UTF-8, as far as it is."""
    environ = {"AGENT_NAME": "a\udcff", "AGENT_ID": "7", "ACP_TYPE": "async", "AGENT_VERSION": ""}
    assert otlp_resource(environ, {"k8s.pod.name": "pod-1"}) == {
        "service.name": "a?",
        "agentex.agent.id": "7",
        "agentex.acp_type": "async",
        "k8s.pod.name": "pod-1",
    }
    assert otlp_resource({}, {}) == {"service.name": "unknown_service"}


@pytest.mark.process
def test_protobuf_is_not_imported_without_the_lane() -> None:
    """Pods without an OTLP upstream do not pay for its memory."""
    code = (
        "import sys, sidecar.app, sidecar.cli; print([n for n in sys.modules if 'protobuf' in n])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"

"""Forwards span events from the agents of a pod to Agentex and SGP, and loses none.

One span's journey, file by file:

    agent --HTTP--> connection -> events -> intake -> open_spans -+-> span_queue -> drain -> Agentex
                    (take it)   (decode)  (all or   (START + END  |
                                           nothing)  join here)   +-> span_queue -> drain -> SGP
                                            `- spool (optional): on disk before the 202

A request that is anything but plain (compressed, in chunks, of other paths) is read by aiohttp
(`other_requests`, loaded when needed); `ingest` is where both ways meet: from a body to an
answer.

An accepted event ends in exactly one of: forwarded, superseded by its own END, skipped on purpose,
a dead letter with a reason, lost with a counted reason. `accounting` adds this up all the time, and
the difference is a metric that must read 0.

When an upstream fails: its lane keeps what it has and tries again (drain, throttle); the other lane
does not notice. A batch that is refused is halved until the one bad write is alone (drain). What is
bad, the write or the upstream, is judged by what became of its neighbours (verdicts). What no
longer fits into memory is not taken (intake), or stays on disk (spool, tail).

When the process is told to stop: `App.run` in app.py, read top to bottom.

Words we use:
    event      START or END of a span, as an agent posts it
    write      what leaves `open_spans` for the lanes: *open* (START only) or *complete*
    lane       queue, drain and sink of one upstream (lane.py)
    upstream   the remote system; a *sink* is our part that talks to it
    depth      writes of a lane that are not settled: waiting, in flight, on disk
    linger     how long a batch may wait to fill
    settle     to be done with a write: forwarded, superseded, skipped or dead letter

Beside the journey: what the SDKs send (routes), SGP's other calls (pass_through), the agents' keys
(credentials), what operators see (admin, visitors, status, exposition, explain, top), dead letters
again (replay), and the agents' own side (client).

For readers who know the OpenTelemetry Collector: listener = receiver, queue = sending queue,
drain = its consumers and retry sender, sink = exporter.
"""

__version__ = "0.1.0"

"""Forwards span events from the agents in a pod to Agentex, SGP and OTLP without losing any.

One span's journey, folder by folder:

    agent --HTTP--> listener   read the request, respond (every way in goes through ingest.py)
                       |
                     spans     decode and validate; payloads stay raw JSON bytes
                       |
                     queue     admission: accept the whole request or none of it
                       |       open_spans: join START and END into one write
                       |       span_queue: one FIFO per lane
                     drain     form batches, send them concurrently, retry, settle
                       |
                     sinks     one HTTP API each --> Agentex, SGP, OTLP

Outside this path: `spool` (optional) puts events on disk before their 202, `telemetry` counts,
`operate` is the admin port and the operators' commands, `process` deals with memory, addresses and
output, `network` opens connections to upstreams (DNS, proxies, TLS), `http` is HTTP code that knows
nothing about spans, and `demo` has stand-ins for upstreams. `app` builds and runs the parts, and
`lanes` builds one lane per upstream.

An accepted event becomes a write, or part of one. In each lane, a write ends up as exactly one of:
forwarded, superseded by a newer write of its span, skipped on purpose, a dead letter with a reason,
or lost with a counted reason. The accounting adds them up; its imbalance is a metric that reads 0.

When an upstream fails, its lane keeps its writes and retries; the other lane is not affected. A
refused batch is halved until the bad write is alone; that write becomes a dead letter. Each lane
has its own room, in memory or on disk. What does not fit is not taken for that upstream, and
counted; if no lane has room, the request is refused with 429.

On shutdown, the process stays open while agents are still sending, refuses new events, releases
held STARTs, drains within the grace period, and leaves the rest in the spool or counts it as lost.

Words we use (OpenTelemetry Collector: listener = receiver, queue = sending queue, sink = exporter):

    event            the START or the END of a span, as an agent posts it
    write            what a lane delivers: open (a START alone), complete (with the END), or a
                     supplement (payloads that a stored span lacks)
    lane             the queues, drains and sinks of one upstream
    account, branch  a tenant of SGP; the parts of a lane that serve one account
    room             the bytes, in memory or on disk, that a lane may hold
    upstream, sink   the remote system; our code that talks to it
    depth            writes of a lane that are not settled: waiting, in flight or on disk
    linger           how long a batch can wait to fill
    settle           finish a write: forwarded, superseded or a dead letter
    hold             delay a START for a while, so that its END can join it; also keep a
                     lane's writes while its upstream refuses everything
    spool            the SQLite file of accepted events and unsettled writes
    dead letter      a write that is not delivered, kept in a file for `replay`
    accounting       the counts of events and writes, which must balance (D15)

References: `D7` is a decision in docs/architecture.md; `A7` (Agentex) and `S1.4` (SGP) are sections
of docs/upstreams.md. Later decisions are numbered in DECISIONS.md.

Where to look:

    how a setting is read               config_load.py; config_values.py converts a value, config.py
                                        and config_upstreams.py have the rules, operate/problems.py
                                        what can't work after all
    how a request is read               http/server_connection.py; listener/listener.py says by whom
    what an upstream's status means     sinks/http.py (sinks/agentex.py and sinks/sgp.py handle
                                        their special cases first), then drain/failures.py,
                                        which drain/settlement.py applies
    what a span is in OTLP              sinks/otlp_mapping.py; sinks/otlp_message.py encodes it
    what an upstream must not see       sinks/hiding.py, before its sink and its dead letters
    how an upstream is reached          network/dialer.py; network/proxies.py says through which
                                        proxy, network/reasons.py why not, in words
    where an END is joined              queue/open_spans.py; the merge itself is queue/join.py
    what SIGTERM does                   process/watchdog.py takes it and calls `App.stop`; the order
                                        is `App._work`, then shutdown.py
    what an agent is refused, and why   listener/refusals.py and listener/routes/ (a request),
                                        spans/validation.py (an event)
    what a flush waits for              listener/flush.py; queue/mark.py, in each queue
    what is on disk before a response   spool/disk_spool.py; spool/sqlite_file.py writes the bytes
    how a command prints                process/terminal.py, which makes others' text harmless
    how many requests at once           drain/concurrency.py, below `max_concurrency`
    how to add a sink                   implement `Sink` (sinks/__init__.py) in a file in sinks/;
                                        the table at the end of lanes.py lists what else it needs
"""

__version__ = "0.1.0"

-- A spool that commit f6560a4 left on disk: format version 1, to show that later code delivers it.
-- That code ran as a whole, with the upstreams down for some of the spans, and was then stopped. This
-- is spool.db as SQL, and all of it is made up. Never change it: a spool in the field does not change
-- either. test_previous_version.py loads it.
--
-- writes: seq, kind (0 open, 1 complete, 2 base), lanes that have not settled it (1 Agentex, 2 SGP),
--   base, payloads that are in the base only (1 input, 2 output, 4 data).
-- bodies: seq, born (Unix time), body (JSON).

PRAGMA page_size = 16384;
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE writes (seq INTEGER PRIMARY KEY, kind INTEGER, lanes INTEGER, base INTEGER, shared INTEGER);
CREATE TABLE bodies (seq INTEGER PRIMARY KEY, born REAL, body BLOB);
PRAGMA user_version = 1;

-- Retired open rows, whose END was no longer expected. SGP has settled the first.
INSERT INTO writes VALUES (1, 1, 1, 0, 0);
INSERT INTO bodies VALUES (1, 1795985529.994977, CAST('{"id":"open-retired-sgp-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of open-retired-sgp-has-it"},"output":null,"data":{"text":"data of open-retired-sgp-has-it"}}' AS BLOB));
INSERT INTO writes VALUES (2, 1, 3, 0, 0);
INSERT INTO bodies VALUES (2, 1795985530.1012685, CAST('{"id":"open-retired","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of open-retired"},"output":null,"data":{"text":"data of open-retired"}}' AS BLOB));

-- Open rows that every lane has settled: kept, because their END has not arrived. The first is
-- an event, the others came from the SDKs: each SDK posts a span to its own upstream.
INSERT INTO writes VALUES (4, 0, 0, 0, 0);
INSERT INTO bodies VALUES (4, 1795985532.9950168, CAST('{"id":"kept","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":"root","task_id":"task-1","input":{"text":"input of kept"},"output":null,"data":{"text":"data of kept"}}' AS BLOB));
INSERT INTO writes VALUES (5, 0, 0, 0, 0);
INSERT INTO bodies VALUES (5, 1795985532.9988866, CAST('{"id":"sdk-kept","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of sdk-kept"},"output":null,"data":{"from":"start","kept":1},"route":1,"extra":{}}' AS BLOB));
INSERT INTO writes VALUES (6, 0, 0, 0, 0);
INSERT INTO bodies VALUES (6, 1795985533.002034, CAST('{"id":"sdk-kept","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text": "input of sdk-kept"},"output":null,"data":{"from": "start"},"route":2,"extra":{"type":"AGENT_WORKFLOW"}}' AS BLOB));

-- SGP has settled these, Agentex has not: an open row, a complete one, and one whose END
-- omitted the payloads that are in its base.
INSERT INTO writes VALUES (7, 0, 1, 0, 0);
INSERT INTO bodies VALUES (7, 1795985533.005225, CAST('{"id":"open-sgp-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of open-sgp-has-it"},"output":null,"data":{"text":"data of open-sgp-has-it"}}' AS BLOB));
INSERT INTO writes VALUES (8, 1, 1, 0, 0);
INSERT INTO bodies VALUES (8, 1795985533.005225, CAST('{"id":"complete-sgp-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":{"text":"input of complete-sgp-has-it"},"output":{"text":"output of complete-sgp-has-it"},"data":{"text":"data of complete-sgp-has-it"}}' AS BLOB));
INSERT INTO writes VALUES (9, 2, 3, 0, 0);
INSERT INTO bodies VALUES (9, 1795985533.005225, CAST('{"id":"joined-sgp-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of joined-sgp-has-it"},"output":null,"data":{"text":"data of joined-sgp-has-it"}}' AS BLOB));
INSERT INTO writes VALUES (10, 1, 1, 9, 5);
INSERT INTO bodies VALUES (10, 1795985533.0081866, CAST('{"id":"joined-sgp-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":{"text":"output of joined-sgp-has-it"},"data":null}' AS BLOB));

-- Agentex has settled these, SGP has not. Of the last span (14, 16) Agentex has only the START.
INSERT INTO writes VALUES (11, 0, 2, 0, 0);
INSERT INTO bodies VALUES (11, 1795985533.099124, CAST('{"id":"open-agentex-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of open-agentex-has-it"},"output":null,"data":{"text":"data of open-agentex-has-it"}}' AS BLOB));
INSERT INTO writes VALUES (12, 1, 2, 0, 0);
INSERT INTO bodies VALUES (12, 1795985533.0991237, CAST('{"id":"complete-agentex-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":{"text":"input of complete-agentex-has-it"},"output":{"text":"output of complete-agentex-has-it"},"data":{"text":"data of complete-agentex-has-it"}}' AS BLOB));
INSERT INTO writes VALUES (13, 2, 3, 0, 0);
INSERT INTO bodies VALUES (13, 1795985533.099124, CAST('{"id":"joined-agentex-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of joined-agentex-has-it"},"output":null,"data":{"text":"data of joined-agentex-has-it"}}' AS BLOB));
INSERT INTO writes VALUES (14, 2, 2, 0, 0);
INSERT INTO bodies VALUES (14, 1795985533.099124, CAST('{"id":"joined-open-at-agentex","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of joined-open-at-agentex"},"output":null,"data":{"text":"data of joined-open-at-agentex"}}' AS BLOB));
INSERT INTO writes VALUES (15, 1, 2, 13, 5);
INSERT INTO bodies VALUES (15, 1795985533.1082385, CAST('{"id":"joined-agentex-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":{"text":"output of joined-agentex-has-it"},"data":null}' AS BLOB));
INSERT INTO writes VALUES (16, 1, 3, 14, 5);
INSERT INTO bodies VALUES (16, 1795985533.155676, CAST('{"id":"joined-open-at-agentex","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":{"text":"output of joined-open-at-agentex"},"data":null}' AS BLOB));

-- No upstream has any of the rest.
INSERT INTO writes VALUES (17, 0, 3, 0, 0);
INSERT INTO bodies VALUES (17, 1795985533.1590285, CAST('{"id":"open","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":"root","task_id":"task-1","input":{"text":"input of open"},"output":null,"data":{"text":"data of open"}}' AS BLOB));
INSERT INTO writes VALUES (18, 1, 3, 0, 0);
INSERT INTO bodies VALUES (18, 1795985533.1590288, CAST('{"id":"complete","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05Z","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":"root","task_id":"task-1","input":{"text":"input of complete"},"output":{"text":"output of complete"},"data":{"__span_type__":"COMPLETION","__error__":{"type":"ValueError","message":"no \"such\" key","category":"tool"}}}' AS BLOB));
INSERT INTO writes VALUES (19, 1, 3, 0, 0);
INSERT INTO bodies VALUES (19, 1795985533.1590285, CAST('{"id":"complete-list","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":[{"role":"user"},{"role":"system"}],"output":{"text":"output of complete-list"},"data":null}' AS BLOB));
INSERT INTO writes VALUES (20, 1, 3, 0, 0);
INSERT INTO bodies VALUES (20, 1795985533.1590285, CAST('{"id":"complete-bare","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":null,"data":null}' AS BLOB));
INSERT INTO writes VALUES (21, 1, 3, 0, 0);
INSERT INTO bodies VALUES (21, 1795985533.1590288, CAST('{"id":"spän-日本語-😀","trace_id":"träce \"1\" \\ ","name":"naïve \t\"tool\" \\ \u0001 step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":"élternteil","task_id":null,"input":{ "raw" : "Grüße, 世界 😀", "escaped":"\u00fc \ud83d\ude00 \n\t\"\\\/",  "e":1.10e+02, "big":123456789012345678901234567890, "zero":-0.0 },"output":{"it''s":"a quote''s '''' end; -- DROP"},"data":{"text":"data of spän-日本語-😀"}}' AS BLOB));

-- Bases, then their ENDs, each of which omitted or repeated other payloads.
INSERT INTO writes VALUES (22, 2, 3, 0, 0);
INSERT INTO bodies VALUES (22, 1795985533.1590285, CAST('{"id":"joined-spän-日本語-😀","trace_id":"träce \"1\" \\ ","name":"naïve \t\"tool\" \\ \u0001 step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":"élternteil","task_id":null,"input":{"frage":"wo? \u00fc ü  😀"},"output":null,"data":{"text":"data of joined-spän-日本語-😀"}}' AS BLOB));
INSERT INTO writes VALUES (23, 2, 3, 0, 0);
INSERT INTO bodies VALUES (23, 1795985533.1590288, CAST('{"id":"joined","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":"root","task_id":"task-1","input":{"text":"input of joined"},"output":null,"data":{"text":"data of joined"}}' AS BLOB));
INSERT INTO writes VALUES (24, 2, 3, 0, 0);
INSERT INTO bodies VALUES (24, 1795985533.1590288, CAST('{"id":"joined-same-input","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of joined-same-input"},"output":null,"data":{"text":"data of joined-same-input"}}' AS BLOB));
INSERT INTO writes VALUES (25, 2, 3, 0, 0);
INSERT INTO bodies VALUES (25, 1795985533.1590285, CAST('{"id":"joined-all","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of joined-all"},"output":{"text":"output so far"},"data":{"text":"data of joined-all"}}' AS BLOB));
INSERT INTO writes VALUES (26, 1, 3, 22, 5);
INSERT INTO bodies VALUES (26, 1795985533.1631262, CAST('{"id":"joined-spän-日本語-😀","trace_id":"träce \"1\" \\ ","name":"naïve \t\"tool\" \\ \u0001 step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":"élternteil","task_id":null,"input":null,"output":{"antwort":"dort \ud83d\ude00 😀"},"data":null}' AS BLOB));
INSERT INTO writes VALUES (27, 1, 3, 23, 5);
INSERT INTO bodies VALUES (27, 1795985533.1631265, CAST('{"id":"joined","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":"root","task_id":"task-1","input":null,"output":{"text":"output of joined"},"data":null}' AS BLOB));
INSERT INTO writes VALUES (28, 1, 3, 24, 1);
INSERT INTO bodies VALUES (28, 1795985533.1631265, CAST('{"id":"joined-same-input","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":{"text":"output of joined-same-input"},"data":{"text":"data of the END"}}' AS BLOB));
INSERT INTO writes VALUES (29, 1, 3, 25, 7);
INSERT INTO bodies VALUES (29, 1795985533.1631265, CAST('{"id":"joined-all","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":null,"data":null}' AS BLOB));

-- From the SDKs' routes, with what each adds to a row. The END of the last Agentex span was
-- merged with its START's data.
INSERT INTO writes VALUES (30, 0, 1, 0, 0);
INSERT INTO bodies VALUES (30, 1795985533.1670663, CAST('{"id":"sdk-open","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":"task-1","input":{"text":"input of sdk-open"},"output":null,"data":{"text":"data of sdk-open"},"route":1,"extra":{}}' AS BLOB));
INSERT INTO writes VALUES (31, 0, 2, 0, 0);
INSERT INTO bodies VALUES (31, 1795985533.1698172, CAST('{"id":"sdk-open","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text": "input of sdk-open"},"output":null,"data":{"m": "ü"},"route":2,"extra":{"group_id":"group-ü","type":"TRACER"}}' AS BLOB));
INSERT INTO writes VALUES (32, 1, 1, 0, 0);
INSERT INTO bodies VALUES (32, 1795985533.174954, CAST('{"id":"sdk-complete","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":{"text":"input of sdk-complete"},"output":{"text":"output of sdk-complete"},"data":null,"route":1,"extra":{}}' AS BLOB));
INSERT INTO writes VALUES (33, 1, 2, 0, 0);
INSERT INTO bodies VALUES (33, 1795985533.177746, CAST('{"id":"sdk-complete","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":"root","task_id":null,"input":{"text": "input of sdk-complete"},"output":{"items": [1, 2]},"data":{"m": 1},"route":2,"extra":{"expected":{"answer": "ja 😀"},"status":"ERROR","x_vendor":{"unknown": ["member", null, "\"\\"]},"group_id":"group-ü","type":"AGENT_WORKFLOW"}}' AS BLOB));
INSERT INTO writes VALUES (34, 2, 1, 0, 0);
INSERT INTO bodies VALUES (34, 1795985533.180531, CAST('{"id":"sdk-joined","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of sdk-joined"},"output":null,"data":{"from":"start","both":1},"route":1,"extra":{}}' AS BLOB));
INSERT INTO writes VALUES (35, 1, 1, 34, 1);
INSERT INTO bodies VALUES (35, 1795985533.1832628, CAST('{"id":"sdk-joined","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":{"text":"output of sdk-joined"},"data":{"from":"start","both":2,"end":"é"},"route":1,"extra":{}}' AS BLOB));
INSERT INTO writes VALUES (36, 2, 2, 0, 0);
INSERT INTO bodies VALUES (36, 1795985533.1861446, CAST('{"id":"sdk-joined","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text": "input of sdk-joined"},"output":null,"data":{"m": 1},"route":2,"extra":{"type":"TRACER"}}' AS BLOB));
INSERT INTO writes VALUES (37, 1, 2, 36, 5);
INSERT INTO bodies VALUES (37, 1795985533.1899436, CAST('{"id":"sdk-joined","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":{"text": "output of sdk-joined"},"data":null,"route":2,"extra":{"status":"SUCCESS","type":"CUSTOM"}}' AS BLOB));

COMMIT;

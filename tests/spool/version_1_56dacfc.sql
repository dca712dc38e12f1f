-- A spool that commit 56dacfc left on disk: format version 1, as of an earlier release than that of
-- version_1.sql. That code ran as a whole and got the events and SDK requests that version_1.sql came
-- from. The upstreams did not respond for some of the spans, and then it was stopped. This is spool.db
-- as SQL, and all of it is made up. Never change it. test_previous_version.py loads it; version_1.sql
-- says what the columns mean.

PRAGMA page_size = 16384;
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE writes (seq INTEGER PRIMARY KEY, kind INTEGER, lanes INTEGER, base INTEGER, shared INTEGER);
CREATE TABLE bodies (seq INTEGER PRIMARY KEY, born REAL, body BLOB);
PRAGMA user_version = 1;

INSERT INTO writes VALUES (1, 1, 1, 0, 0);
INSERT INTO bodies VALUES (1, 1796010874.9320853, CAST('{"id":"open-retired-sgp-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of open-retired-sgp-has-it"},"output":null,"data":{"text":"data of open-retired-sgp-has-it"}}' AS BLOB));
INSERT INTO writes VALUES (2, 1, 3, 0, 0);
INSERT INTO bodies VALUES (2, 1796010874.9862752, CAST('{"id":"open-retired","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of open-retired"},"output":null,"data":{"text":"data of open-retired"}}' AS BLOB));
INSERT INTO writes VALUES (3, 0, 0, 0, 0);
INSERT INTO bodies VALUES (3, 1796010875.9482353, CAST('{"id":"kept","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":"root","task_id":"task-1","input":{"text":"input of kept"},"output":null,"data":{"text":"data of kept"}}' AS BLOB));
INSERT INTO writes VALUES (4, 0, 0, 0, 0);
INSERT INTO bodies VALUES (4, 1796010875.956546, CAST('{"id":"sdk-kept","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of sdk-kept"},"output":null,"data":{"from":"start","kept":1},"route":1,"extra":{}}' AS BLOB));
INSERT INTO writes VALUES (5, 0, 0, 0, 0);
INSERT INTO bodies VALUES (5, 1796010875.9597764, CAST('{"id":"sdk-kept","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text": "input of sdk-kept"},"output":null,"data":{"from": "start"},"route":2,"extra":{"type":"AGENT_WORKFLOW"}}' AS BLOB));
INSERT INTO writes VALUES (6, 0, 1, 0, 0);
INSERT INTO bodies VALUES (6, 1796010876.367175, CAST('{"id":"open-sgp-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of open-sgp-has-it"},"output":null,"data":{"text":"data of open-sgp-has-it"}}' AS BLOB));
INSERT INTO writes VALUES (7, 1, 1, 0, 0);
INSERT INTO bodies VALUES (7, 1796010876.367175, CAST('{"id":"complete-sgp-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":{"text":"input of complete-sgp-has-it"},"output":{"text":"output of complete-sgp-has-it"},"data":{"text":"data of complete-sgp-has-it"}}' AS BLOB));
INSERT INTO writes VALUES (8, 2, 3, 0, 0);
INSERT INTO bodies VALUES (8, 1796010876.367175, CAST('{"id":"joined-sgp-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of joined-sgp-has-it"},"output":null,"data":{"text":"data of joined-sgp-has-it"}}' AS BLOB));
INSERT INTO writes VALUES (9, 1, 1, 8, 5);
INSERT INTO bodies VALUES (9, 1796010876.3712392, CAST('{"id":"joined-sgp-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":{"text":"output of joined-sgp-has-it"},"data":null}' AS BLOB));
INSERT INTO writes VALUES (10, 0, 2, 0, 0);
INSERT INTO bodies VALUES (10, 1796010876.7739804, CAST('{"id":"open-agentex-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of open-agentex-has-it"},"output":null,"data":{"text":"data of open-agentex-has-it"}}' AS BLOB));
INSERT INTO writes VALUES (11, 1, 2, 0, 0);
INSERT INTO bodies VALUES (11, 1796010876.7739806, CAST('{"id":"complete-agentex-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":{"text":"input of complete-agentex-has-it"},"output":{"text":"output of complete-agentex-has-it"},"data":{"text":"data of complete-agentex-has-it"}}' AS BLOB));
INSERT INTO writes VALUES (12, 2, 3, 0, 0);
INSERT INTO bodies VALUES (12, 1796010876.7739809, CAST('{"id":"joined-agentex-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of joined-agentex-has-it"},"output":null,"data":{"text":"data of joined-agentex-has-it"}}' AS BLOB));
INSERT INTO writes VALUES (13, 2, 2, 0, 0);
INSERT INTO bodies VALUES (13, 1796010876.7739809, CAST('{"id":"joined-open-at-agentex","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of joined-open-at-agentex"},"output":null,"data":{"text":"data of joined-open-at-agentex"}}' AS BLOB));
INSERT INTO writes VALUES (14, 1, 2, 12, 5);
INSERT INTO bodies VALUES (14, 1796010876.7781625, CAST('{"id":"joined-agentex-has-it","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":{"text":"output of joined-agentex-has-it"},"data":null}' AS BLOB));
INSERT INTO writes VALUES (15, 1, 3, 13, 5);
INSERT INTO bodies VALUES (15, 1796010877.4793708, CAST('{"id":"joined-open-at-agentex","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":{"text":"output of joined-open-at-agentex"},"data":null}' AS BLOB));
INSERT INTO writes VALUES (16, 0, 3, 0, 0);
INSERT INTO bodies VALUES (16, 1796010877.4831839, CAST('{"id":"open","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":"root","task_id":"task-1","input":{"text":"input of open"},"output":null,"data":{"text":"data of open"}}' AS BLOB));
INSERT INTO writes VALUES (17, 1, 3, 0, 0);
INSERT INTO bodies VALUES (17, 1796010877.4831839, CAST('{"id":"complete","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05Z","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":"root","task_id":"task-1","input":{"text":"input of complete"},"output":{"text":"output of complete"},"data":{"__span_type__":"COMPLETION","__error__":{"type":"ValueError","message":"no \"such\" key","category":"tool"}}}' AS BLOB));
INSERT INTO writes VALUES (18, 1, 3, 0, 0);
INSERT INTO bodies VALUES (18, 1796010877.4831839, CAST('{"id":"complete-list","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":[{"role":"user"},{"role":"system"}],"output":{"text":"output of complete-list"},"data":null}' AS BLOB));
INSERT INTO writes VALUES (19, 1, 3, 0, 0);
INSERT INTO bodies VALUES (19, 1796010877.4831836, CAST('{"id":"complete-bare","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":null,"data":null}' AS BLOB));
INSERT INTO writes VALUES (20, 1, 3, 0, 0);
INSERT INTO bodies VALUES (20, 1796010877.4831836, CAST('{"id":"spän-日本語-😀","trace_id":"träce \"1\" \\ ","name":"naïve \t\"tool\" \\ \u0001 step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":"élternteil","task_id":null,"input":{ "raw" : "Grüße, 世界 😀", "escaped":"\u00fc \ud83d\ude00 \n\t\"\\\/",  "e":1.10e+02, "big":123456789012345678901234567890, "zero":-0.0 },"output":{"it''s":"a quote''s '''' end; -- DROP"},"data":{"text":"data of spän-日本語-😀"}}' AS BLOB));
INSERT INTO writes VALUES (21, 2, 3, 0, 0);
INSERT INTO bodies VALUES (21, 1796010877.4831839, CAST('{"id":"joined-spän-日本語-😀","trace_id":"träce \"1\" \\ ","name":"naïve \t\"tool\" \\ \u0001 step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":"élternteil","task_id":null,"input":{"frage":"wo? \u00fc ü  😀"},"output":null,"data":{"text":"data of joined-spän-日本語-😀"}}' AS BLOB));
INSERT INTO writes VALUES (22, 2, 3, 0, 0);
INSERT INTO bodies VALUES (22, 1796010877.4831839, CAST('{"id":"joined","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":"root","task_id":"task-1","input":{"text":"input of joined"},"output":null,"data":{"text":"data of joined"}}' AS BLOB));
INSERT INTO writes VALUES (23, 2, 3, 0, 0);
INSERT INTO bodies VALUES (23, 1796010877.4831839, CAST('{"id":"joined-same-input","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of joined-same-input"},"output":null,"data":{"text":"data of joined-same-input"}}' AS BLOB));
INSERT INTO writes VALUES (24, 2, 3, 0, 0);
INSERT INTO bodies VALUES (24, 1796010877.4831839, CAST('{"id":"joined-all","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of joined-all"},"output":{"text":"output so far"},"data":{"text":"data of joined-all"}}' AS BLOB));
INSERT INTO writes VALUES (25, 1, 3, 21, 5);
INSERT INTO bodies VALUES (25, 1796010877.48872, CAST('{"id":"joined-spän-日本語-😀","trace_id":"träce \"1\" \\ ","name":"naïve \t\"tool\" \\ \u0001 step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":"élternteil","task_id":null,"input":null,"output":{"antwort":"dort \ud83d\ude00 😀"},"data":null}' AS BLOB));
INSERT INTO writes VALUES (26, 1, 3, 22, 5);
INSERT INTO bodies VALUES (26, 1796010877.4887202, CAST('{"id":"joined","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":"root","task_id":"task-1","input":null,"output":{"text":"output of joined"},"data":null}' AS BLOB));
INSERT INTO writes VALUES (27, 1, 3, 23, 1);
INSERT INTO bodies VALUES (27, 1796010877.48872, CAST('{"id":"joined-same-input","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":{"text":"output of joined-same-input"},"data":{"text":"data of the END"}}' AS BLOB));
INSERT INTO writes VALUES (28, 1, 3, 24, 7);
INSERT INTO bodies VALUES (28, 1796010877.48872, CAST('{"id":"joined-all","trace_id":"trace","name":"step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":null,"data":null}' AS BLOB));
INSERT INTO writes VALUES (29, 0, 1, 0, 0);
INSERT INTO bodies VALUES (29, 1796010877.4960895, CAST('{"id":"sdk-open","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":"task-1","input":{"text":"input of sdk-open"},"output":null,"data":{"text":"data of sdk-open"},"route":1,"extra":{}}' AS BLOB));
INSERT INTO writes VALUES (30, 0, 2, 0, 0);
INSERT INTO bodies VALUES (30, 1796010877.499086, CAST('{"id":"sdk-open","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text": "input of sdk-open"},"output":null,"data":{"m": "ü"},"route":2,"extra":{"group_id":"group-ü","type":"TRACER"}}' AS BLOB));
INSERT INTO writes VALUES (31, 1, 1, 0, 0);
INSERT INTO bodies VALUES (31, 1796010877.5017424, CAST('{"id":"sdk-complete","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":{"text":"input of sdk-complete"},"output":{"text":"output of sdk-complete"},"data":null,"route":1,"extra":{}}' AS BLOB));
INSERT INTO writes VALUES (32, 1, 2, 0, 0);
INSERT INTO bodies VALUES (32, 1796010877.5071764, CAST('{"id":"sdk-complete","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":"root","task_id":null,"input":{"text": "input of sdk-complete"},"output":{"items": [1, 2]},"data":{"m": 1},"route":2,"extra":{"expected":{"answer": "ja 😀"},"status":"ERROR","x_vendor":{"unknown": ["member", null, "\"\\"]},"group_id":"group-ü","type":"AGENT_WORKFLOW"}}' AS BLOB));
INSERT INTO writes VALUES (33, 2, 1, 0, 0);
INSERT INTO bodies VALUES (33, 1796010877.510137, CAST('{"id":"sdk-joined","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text":"input of sdk-joined"},"output":null,"data":{"from":"start","both":1},"route":1,"extra":{}}' AS BLOB));
INSERT INTO writes VALUES (34, 1, 1, 33, 1);
INSERT INTO bodies VALUES (34, 1796010877.5287962, CAST('{"id":"sdk-joined","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":{"text":"output of sdk-joined"},"data":{"from":"start","both":2,"end":"é"},"route":1,"extra":{}}' AS BLOB));
INSERT INTO writes VALUES (35, 2, 2, 0, 0);
INSERT INTO bodies VALUES (35, 1796010877.5323935, CAST('{"id":"sdk-joined","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":null,"parent_id":null,"task_id":null,"input":{"text": "input of sdk-joined"},"output":null,"data":{"m": 1},"route":2,"extra":{"type":"TRACER"}}' AS BLOB));
INSERT INTO writes VALUES (36, 1, 2, 35, 5);
INSERT INTO bodies VALUES (36, 1796010877.5351849, CAST('{"id":"sdk-joined","trace_id":"trace","name":"sdk step","start_time":"2026-01-02T03:04:05.678901+00:00","end_time":"2026-01-02T03:04:06.5+00:00","parent_id":null,"task_id":null,"input":null,"output":{"text": "output of sdk-joined"},"data":null,"route":2,"extra":{"status":"SUCCESS","type":"CUSTOM"}}' AS BLOB));

COMMIT;

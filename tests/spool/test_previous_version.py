"""The whole sidecar delivers what earlier versions left in their spools.

The .sql files are these spools. The constants and the reader below repeat what format version 1
means: taken from the sidecar, they would change with it.
"""

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from tests.support.faults import Json, end
from tests.support.spans import END_TIME
from tests.support.spool import SpoolWorld, files_size, spool_world

LEFT_BEHIND = ("version_1.sql", "version_1_56dacfc.sql")
OPEN, COMPLETE, BASE = 0, 1, 2
AGENTEX, SGP = 1, 2  # bits of `lanes`, and values of `route`
PAYLOADS = ("input", "output", "data")  # in the order of the bits in `shared`
COLUMNS = ("id", "trace_id", "name", "start_time", "end_time", "parent_id", "task_id", *PAYLOADS)
OUTPUT = {"text": "output of the END"}

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Row(NamedTuple):
    """A row of the file. `text` has the JSON text of each member, with the base's payloads."""

    kind: int
    lanes: int
    shared: int
    text: dict[str, bytes]

    @property
    def span(self) -> Json:
        """The members as values."""
        return {name: json.loads(raw) for name, raw in self.text.items()}

    @property
    def id(self) -> str:
        return str(self.span["id"])

    @property
    def route(self) -> int:
        """The bit of the only lane it is for; 0 for an event."""
        return int(self.text.get("route", b"0"))

    @property
    def is_open(self) -> bool:
        """Whether it has no END: it waits for one, or it is retired."""
        return self.text["end_time"] == b"null"

    @property
    def sort(self) -> str:
        if self.kind == BASE:
            return "base"
        if self.is_open:
            return "open" if self.kind == OPEN else "retired"
        return "joined" if self.shared else "complete"


def rows_in(directory: Path) -> list[Row]:
    """All rows of the spool in `directory`, oldest first."""
    query = "SELECT kind, lanes, base, shared, seq, body FROM writes JOIN bodies USING (seq)"
    with closing(sqlite3.connect(directory / "spool.db")) as file:
        found = file.execute(f"{query} ORDER BY seq").fetchall()
    texts = {
        seq: {name: bytes(raw) for name, raw in _members(body).items()} for *_, seq, body in found
    }
    rows = []
    for kind, lanes, base, shared, seq, _ in found:
        text = texts[seq]
        for bit, name in enumerate(PAYLOADS):
            if shared >> bit & 1:
                assert text[name] == b"null"
                text[name] = texts[base][name]
        rows.append(Row(kind, lanes, shared, text))
    return rows


@pytest.fixture(params=LEFT_BEHIND)
def left(tmp_path: Path, request: pytest.FixtureRequest) -> list[Row]:
    """Put the spool of an earlier version into `tmp_path`; returns its rows."""
    statements = Path(__file__).with_name(request.param).read_text(encoding="utf-8")
    with closing(sqlite3.connect(tmp_path / "spool.db")) as file:
        file.executescript(statements)
    return rows_in(tmp_path)


def due(rows: Iterable[Row], lane: int) -> dict[str, Row]:
    """The writes that `lane` has not settled, by span id."""
    return {row.id: row for row in rows if row.kind != BASE and row.lanes & lane}


def as_object(payload: Any) -> Any:  # noqa: ANN401 (JSON)
    """A payload in the form that SGP takes."""
    return {"items": payload} if isinstance(payload, list) else payload or {}


def check_agentex(row: Row, agentex: AgentexStandIn) -> None:
    """Check what Agentex stored for `row`, and that the payloads kept their bytes."""
    # Whether an open write carries `data` is up to the version that sends it (D26).
    columns = [name for name in COLUMNS if not (row.is_open and name == "data")]
    stored = agentex.spans[row.id]
    assert {name: stored[name] for name in columns} == {name: row.span[name] for name in columns}
    for name in set(PAYLOADS) & set(columns):
        assert row.text[name] == b"null" or row.text[name] in agentex.raw[row.id]


def check_sgp(row: Row, sgp: SgpStandIn) -> None:
    """Check what SGP stored for `row`, and that the payloads kept their bytes."""
    span = row.span
    stored = sgp.spans[span["trace_id"], row.id].copy()
    sent = b"\n".join(request.body for request in sgp.requests)
    expected = {name: span[name] for name in ("id", "trace_id", "name", "parent_id")}
    expected |= {"start_timestamp": span["start_time"], "end_timestamp": span["end_time"]}
    if row.route:
        expected |= {"input": span["input"], "output": span["output"], "metadata": span["data"]}
        expected |= span["extra"]
        expected.pop("x_vendor", None)  # the stand-in stores only members that it knows
        for name, raw in _members(row.text["extra"]).items():
            assert b'"%b":%b' % (name.encode(), bytes(raw)) in sent
    else:
        expected |= {"input": as_object(span["input"]), "output": as_object(span["output"])}
        data = as_object(span["data"])
        expected["status"] = "ERROR" if "__error__" in data else "SUCCESS"
        expected["type"] = data.get("__span_type__", "STANDALONE")
        # The sidecar adds what it knows about the agent.
        assert stored.pop("metadata").items() >= data.items()
    assert stored == {name: value for name, value in expected.items() if value is not None}
    for name in ("input", "output"):
        assert row.text[name] == b"null" or row.text[name] in sent


def test_the_file_has_every_kind_of_row(left: list[Row], tmp_path: Path) -> None:
    """Trimmed or regenerated, the file would no longer show that every kind is delivered."""
    lanes: dict[tuple[str, int], set[int]] = {}
    for row in left:
        lanes.setdefault((row.sort, row.route), set()).add(row.lanes)
    assert lanes == {
        ("open", 0): {0, AGENTEX, SGP, AGENTEX | SGP},
        ("retired", 0): {AGENTEX, AGENTEX | SGP},
        ("complete", 0): {AGENTEX, SGP, AGENTEX | SGP},
        ("base", 0): {SGP, AGENTEX | SGP},
        ("joined", 0): {AGENTEX, SGP, AGENTEX | SGP},
        ("open", AGENTEX): {0, AGENTEX},
        ("complete", AGENTEX): {AGENTEX},
        ("base", AGENTEX): {AGENTEX},
        ("joined", AGENTEX): {AGENTEX},
        ("open", SGP): {0, SGP},
        ("complete", SGP): {SGP},
        ("base", SGP): {SGP},
        ("joined", SGP): {SGP},
    }
    assert {row.shared for row in left} == {0, 0b001, 0b101, 0b111}
    extra = {name for row in left if row.route == SGP for name in row.span["extra"]}
    assert extra == {"expected", "group_id", "status", "type", "x_vendor"}
    (merged,) = [row for row in left if (row.sort, row.route) == ("joined", AGENTEX)]
    assert merged.span["data"] == {"from": "start", "both": 2, "end": "é"}
    assert {row.span["task_id"] for row in left} == {None, "task-1"}
    assert {type(row.span["input"]) for row in left} == {dict, list, type(None)}
    odd = [row for row in left if "😀" in row.id]
    assert {row.sort for row in odd} == {"base", "complete", "joined"}
    for row in odd:
        assert b"\\u00fc" in row.text["input"]
        assert "😀".encode() in row.text["input"]
        assert {"\t", '"', "\\", "\x01", "ï"} <= set(row.span["name"])
    with closing(sqlite3.connect(tmp_path / "spool.db")) as file:
        pragmas = ("user_version", "page_size", "journal_mode")
        values = [file.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    assert values == [1, 16384, "wal"]


async def test_each_upstream_gets_what_it_lacks(left: list[Row], tmp_path: Path) -> None:
    """Only what a lane had not settled is sent, and only STARTs stay, in case their END comes."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    starts = [row for row in left if row.kind == OPEN]
    async with spool_world(tmp_path, agentex, sgp) as w:
        await w.finish()
        assert set(agentex.spans) == set(due(left, AGENTEX))
        assert {id_ for _, id_ in sgp.spans} == set(due(left, SGP))
        for row in due(left, AGENTEX).values():
            check_agentex(row, agentex)
        for row in due(left, SGP).values():
            check_sgp(row, sgp)
        for upstream, lane in ((agentex, AGENTEX), (sgp, SGP)):
            for id_, row in due(left, lane).items():
                if row.is_open:
                    assert set(upstream.history[id_]) == {"open"}
                else:
                    assert upstream.history[id_] == ["complete"]
        writes = [row for row in left if row.kind != BASE and row.lanes]
        assert w.app.status()["events"]["replayed"] == len(writes)
        await w.until(lambda: w.spool.file.rows == len(starts))
    assert rows_in(tmp_path) == [row._replace(lanes=0) for row in starts]


@pytest.mark.parametrize("hold_s", [0.02, 1800])
async def test_an_end_without_payloads_gets_those_of_its_start(
    left: list[Row], tmp_path: Path, hold_s: float
) -> None:
    """Whichever lanes had the START before, and whether this process has sent it or holds it."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    starts = [row for row in left if row.kind == OPEN]
    async with spool_world(tmp_path, agentex, sgp, queue__start_hold_s=hold_s) as w:
        if hold_s < 1:
            await w.drained()
        for row in starts:
            await end_without_payloads(w, row)
        await w.finish()
        assert agentex.spans["kept"]["input"] == {"text": "input of kept"}
        assert sgp.spans["trace", "kept"]["input"] == {"text": "input of kept"}
        for row in starts:
            if row.route != SGP:
                check_agentex(ended(row), agentex)
            if row.route != AGENTEX:
                check_sgp(ended(row), sgp)
        sent_open = ["open", "complete"] if hold_s < 1 else ["complete"]
        for upstream in (agentex, sgp):
            assert [upstream.history[id_] for id_ in ("open", "sdk-open")] == [sent_open] * 2
            assert [upstream.history[id_] for id_ in ("kept", "sdk-kept")] == [["complete"]] * 2
        await w.until(lambda: w.spool.file.rows == 0)
    assert files_size(tmp_path) == 0


def ended(start: Row) -> Row:
    """The write of a span with this START once its END has arrived."""
    new = {"end_time": END_TIME, "output": OUTPUT}
    return start._replace(text=start.text | {k: json.dumps(v).encode() for k, v in new.items()})


async def end_without_payloads(w: SpoolWorld, start: Row) -> None:
    """Post the END, with an output only, by the route that the START took."""
    span = start.span
    thin = {name: span[name] for name in ("id", "trace_id", "name", "start_time")}
    thin |= {"end_time": END_TIME, "output": OUTPUT}
    if not start.route:
        await w.post(end(thin))
        w.accepted[start.id] = ended(start).span
        return
    method, path, body = "PATCH", f"/spans/{start.id}", thin
    if start.route == SGP:
        thin |= {"start_timestamp": thin.pop("start_time"), "end_timestamp": thin.pop("end_time")}
        method, path, body = "PUT", "/v5/spans/batch", {"items": [thin | span["extra"]]}
    assert (await w.running.request(method, path, json=body)).status == 200

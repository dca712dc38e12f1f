"""What others wrote reaches a terminal as visible text, whichever command shows it."""

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.operate import explain
from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from tests.support.spans import make_span
from tests.support.world import running_app

pytestmark = pytest.mark.process

Json = dict[str, Any]
Environment = dict[str, str]
TWO = {
    "AGENTEX_BASE_URL": "http://127.0.0.1:1",
    "SGP_API_KEY": "k",
    "SGP_ACCOUNT_ID": "a",
    "SIDECAR_LISTENER__PORT": "0",
    "SIDECAR_ADMIN__PORT": "0",
}
# A title, colors, line ends, DEL, C1, right-to-left, an invisible space, a surrogate.
EVIL = "\x1b]0;x\x07\x1b[31m\r\n\x7f\x9b2J\u202e\u200b\u2028\ud800"
IN_A_LINE = EVIL.replace("\r\n", "")
DEADLINE_S = 60
# A sidecar whose locale can't show more than ASCII must not fail either.
LOCALES = [{"PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]


async def command(
    *arguments: str | bytes | Path, environ: Environment | None = None
) -> tuple[int | None, str, str]:
    """Run `sidecar`; return its exit code, standard output and standard error, checked."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar", *arguments,
        env={"PATH": os.environ["PATH"], **LOCALES[0], **(environ or {})},
        cwd=Path(__file__).parents[2], stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    for text in (out.decode(), err.decode()):
        assert text.replace("\n", "").isprintable(), text
        assert "Traceback" not in text
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def upstream(body: bytes, head: bytes = b"200 OK") -> AsyncIterator[str]:
    """Run a server that gives every request the same response; yield its URL."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        length = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        writer.write(b"HTTP/1.1 %b\r\n%b%b" % (head, length, body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def poisoned(value: object, key: str = "") -> object:
    """Add `EVIL` to every text of a report, except to levels, which choose a style."""
    if isinstance(value, dict):
        return {name: poisoned(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner) for inner in value]
    return value + EVIL if isinstance(value, str) and key != "level" else value


def encoded(value: object) -> bytes:
    """Encode as JSON, with the characters themselves where JSON allows it."""
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


@pytest.mark.parametrize("locale", LOCALES, ids=["utf-8", "ascii"])
async def test_top(locale: Environment) -> None:
    """`top` escapes every text of the report it fetched, and `--json` is printable ASCII."""
    async with running_app(TWO, shutdown__grace_s=0) as app:
        status = app.app.status()
    status["pod"] = {"name": "p", "namespace": "s", "node": "n"}
    status["sinks"]["sgp"]["last_error"] = {"kind": "k", "text": "t", "age_s": 1}
    async with upstream(encoded(poisoned(status))) as url:
        code, out, _ = await command("top", "--once", "--url", url, environ=locale)
        assert (code, r"\x1b]0;x\x07\x1b[31m" in out) == (0, True)
        code, out, _ = await command("top", "--once", "--json", "--url", url, environ=locale)
    assert (code, out.isascii(), out.count("\n")) == (0, True, 1)


def known(text: str) -> Json:
    """An answer of `/explain` with `text` wherever a text can be."""
    wait = {"waits_for": text, "next_attempt_s": 1, "failures": 1}
    entry = {
        "at": text, "ago_s": 1.0, "sink": text, "what": text, "detail": text, "text": text,
    }  # fmt: skip
    letter = {
        "time": text, "sink": text, "reason": text, "status": 422, "kind": text,
        "replayed": True,
    }  # fmt: skip
    span = {
        "id": text, "trace_id": text, "account": text, "timeline": [entry], "left_off": 0,
        "start": text, "lanes": {text: wait}, "on_disk": [text], "dead_letters": [letter],
        "summary": text,
    }  # fmt: skip
    searched = {"memory": True, "spool": None, "dead_letters": None}
    return {
        "id": "é", "found_by": "span", "text": text, "remembered": {}, "searched": searched,
        "spans": [span], "left_off": 0,
    }  # fmt: skip


@pytest.mark.parametrize("locale", LOCALES, ids=["utf-8", "ascii"])
async def test_explain(locale: Environment, tmp_path: Path) -> None:
    """`explain` escapes what the sidecar and the dead letters say, also as JSON."""
    file = tmp_path / "letters.jsonl"
    DeadLetters(str(file), 10_000).add("sgp", make_span("é"), "refused", Refused("", 422))
    letters = {"SIDECAR_DEAD_LETTERS__PATH": str(file)}
    async with upstream(encoded(known(EVIL))) as url:
        at = ("explain", "é".encode(), "--url", url)
        code, out, _ = await command(*at, environ=locale | letters)
        assert (code, "dead letter: " in out) == (explain.KNOWN, True), "an id is UTF-8"
        code, out, _ = await command(*at, "--json", environ=locale | letters)
    assert (code, out.isascii()) == (explain.KNOWN, True)
    assert [len(span["dead_letters"]) for span in json.loads(out)["spans"]] == [1, 1]


@pytest.mark.parametrize("answer", [b"[]", b"{}", b'"x"', b"[" * 100_000, b"\xff", b'{"id":1}'])
async def test_explain_at_another_server(answer: bytes) -> None:
    """An answer that is not a sidecar's is an error with its URL, without a traceback."""
    async with upstream(answer) as url:
        code, out, err = await command("explain", "s", "--url", url)
    assert (code, out, f"{url}: " in err) == (explain.NO_SIDECAR, "", True)
    assert (err.startswith("sidecar: "), err.count("\n")) == (True, 1)


@pytest.mark.parametrize("sub", ["explain s --url", "replay FILE --to", "top --once --url"])
async def test_an_error_of_the_server(tmp_path: Path, sub: str) -> None:
    """The reason in a status line, and a body in place of JSON, are escaped or not shown."""
    file = tmp_path / "letters.jsonl"
    DeadLetters(str(file), 10_000).add("sgp", make_span("s"), "refused", Refused("", 422))
    words = [str(file) if word == "FILE" else word for word in sub.split()]
    reason = re.sub(r"[\ud800\r\n]", "", EVIL).encode()
    async with upstream(IN_A_LINE.encode(errors="replace"), b"500 " + reason) as url:
        code, _, err = await command(*words, url)
    assert (code in {1, 3}, url in err) == (True, True)


async def test_dead_letters(tmp_path: Path) -> None:
    """`replay --dry-run` lists a letter on one line, and names a bad file visibly."""
    file = tmp_path / "letters \x1b[31m\u202e.jsonl"
    id_ = EVIL.replace("\ud800", "")
    DeadLetters(str(file), 10_000).add("sgp", make_span(id_), "refused", Refused("", 422))
    with file.open("ab") as torn:
        torn.write(b'{"time":"x')
    code, out, err = await command("replay", file, "--dry-run")
    assert (code, out.count("\n"), err.count("\n")) == (1, 1, 2)
    assert r"\x1b]0;x\x07" in out
    assert r"letters \x1b[31m\u202e.jsonl:2: not a dead letter" in err
    code, _, err = await command("replay", str(file) + "\x07", "--dry-run")
    assert (code, r"\x07: No such file" in err) == (2, True)


async def test_configuration(tmp_path: Path) -> None:
    """`check` escapes values, and errors about values, names, files and arguments."""
    evil = IN_A_LINE.replace("\ud800", "")
    path = f"{tmp_path}/{evil}"
    code, out, _ = await command("check", environ=TWO | {"SIDECAR_SPOOL__PATH": path})
    assert (code, r"\u001b]0;x\u0007" in out) == (0, True)
    assert r"\x1b]0;x\x07" in out
    code, _, err = await command("check", environ={"SIDECAR_LOG__LEVEL": evil})
    assert (code, r"\u001b]0;x\u0007" in err) == (2, True)
    code, _, err = await command("check", environ=TWO | {f"SIDECAR_{evil}": "x"})
    assert (code, r"SIDECAR_\x1b]0;x\x07" in err) == (2, True)
    code, _, err = await command("check", "--config", evil)
    assert (code, r"\x1b]0;x\x07" in err) == (2, True)
    code, _, err = await command("check", evil)
    assert (code, r"\x1b]0;x\x07" in err) == (2, True)
    file = tmp_path / "sidecar.toml"
    file.write_text('[log]\nlevel = "\\u001b[31m"\n', encoding="utf-8")
    code, _, err = await command("check", "--config", file)
    assert (code, "level" in err) == (2, True)


async def test_bytes_that_are_not_text() -> None:
    """Bytes that are no UTF-8 in arguments and variables are shown, and stop nothing."""
    async with upstream(encoded(known("s"))) as url:
        code, out, _ = await command("explain", b"\xff\x1b", "--url", url)
    assert (code, out.startswith("span s")) == (explain.KNOWN, True)
    code, out, _ = await command("check", environ=TWO | {"SIDECAR_SPOOL__PATH": "/a/\udcff"})
    assert (code, "/a/\ufffd" in out) == (0, True)


BUG = r"""
from sidecar import cli

def fail(*_: object) -> None:
    raise ValueError("\x1b[31m\n\u202e\ud800")

cli.read = fail
cli.main(["check"])
"""


async def test_a_bug() -> None:
    """A bug's traceback has its lines, each of them visible."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BUG, cwd=Path(__file__).parents[2], stderr=PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 1
    assert err.startswith(b"Traceback (most recent call last):\n")
    assert err.endswith(b"\nValueError: \\x1b[31m\n\\u202e\\ud800\n")

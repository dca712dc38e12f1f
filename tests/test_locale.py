"""All text is UTF-8, whatever the locale says."""

import ast
import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from sidecar.config_load import load
from sidecar.demo.sgp import SgpStandIn
from sidecar.sinks.sgp import enrichment
from tests.support.spans import make_event

ROOT = Path(__file__).parent.parent
PORTS = {"SIDECAR_LISTENER__PORT": "0", "SIDECAR_ADMIN__PORT": "0"}
FOLDERS = ("sidecar", "client", "tools", "tests/support")
# Python decodes files, arguments and variables as ASCII here.
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
DEADLINE_S = 60


def files() -> list[Path]:
    """Every file that the sidecar, its client and our tools consist of."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def undecided(tree: ast.AST) -> Iterator[ast.Call]:
    """The calls that read or write text in the encoding of the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        given = {keyword.arg for keyword in node.keywords}
        words = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
        modes = [word for word in words if re.fullmatch("[rwxabt+]{1,3}", word)]
        is_open = name == "open" and (isinstance(node.func, ast.Name) or bool(modes))
        reads_text = name in {"read_text", "write_text", "fdopen", "TextIOWrapper"} or is_open
        if reads_text and not any("b" in mode for mode in modes) and "encoding" not in given:
            yield node
        decodes = any(ast.unparse(keyword) == "text=True" for keyword in node.keywords)
        if decodes and "encoding" not in given:
            yield node


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("p.read_text()", 1),
        ("p.write_text(t)", 1),
        ("open(p)", 1),
        ("p.open('r')", 1),
        ("run(c, text=True)", 1),
        ("p.read_text(encoding='utf-8')", 0),
        ("p.open('rb')", 0),
        ("spool.open()", 0),
    ],
)
def test_what_is_looked_for(source: str, count: int) -> None:
    """The check finds text in the locale's encoding, and no bytes."""
    assert len(list(undecided(ast.parse(source)))) == count


def test_every_text_file_has_an_encoding() -> None:
    """No file is read or written in the encoding of the locale."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files()}
    found = [f"{path}:{call.lineno}" for path, tree in trees.items() for call in undecided(tree)]
    assert found == []


def configuration(folder: Path) -> bytes:
    """Write a configuration with a byte order mark that uses a folder; return its path."""
    file = folder / "größe.toml"
    text = f"""\
# Überall ist UTF-8. 日本語
[spool]
path = "{folder}/spool"
[dead_letters]
path = "{folder}/letters.jsonl"
[sgp]
api_key_file = "{folder}/key"
account_id = "account"
[listener]
port = 0
[admin]
host = "127.0.0.1"
port = 0
[shutdown]
quiet_s = 0
"""
    file.write_text(text, encoding="utf-8-sig")
    (folder / "key").write_text("key\n", encoding="utf-8-sig")
    return os.fsencode(file)


def names(folder: Path) -> set[str]:
    """Return the names in a folder."""
    return {path.name for path in folder.iterdir()}


async def sidecar(*arguments: str | bytes, **environ: str) -> asyncio.subprocess.Process:
    """Start `sidecar` in a locale that has only ASCII, on ports that are free."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar", *arguments, cwd=ROOT, stdout=PIPE, stderr=PIPE,
        env={"PATH": os.environ["PATH"], **ASCII, **PORTS, **environ},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose name is not ASCII."""
    made = tmp_path / "Überall 日本"
    made.mkdir()
    return made


@pytest.mark.process
async def test_run_in_an_ascii_locale(folder: Path) -> None:
    """It starts, shows its page, takes spans, and uses the paths and names that it was given."""
    file = configuration(folder)
    async with SgpStandIn(api_key="key", account_id="account") as sgp, asyncio.timeout(DEADLINE_S):
        environ = {"SGP_CLIENT_BASE_URL": sgp.url, "AGENT_NAME": "Größe"}
        process = await sidecar("run", "--config", file, **environ)
        assert process.stderr is not None
        started = {"event": ""}
        while started["event"] != "started":
            started = json.loads(await process.stderr.readline())
        admin = f"http://127.0.0.1:{started['admin_port']}"
        async with aiohttp.ClientSession() as client:
            async with client.get(f"{admin}/") as response:
                assert response.status == 200
                assert "✓" in await response.text()
            url = started["listener"][0] + "/v1/spans"
            async with client.post(url, json=make_event(kind="end")) as response:
                assert response.status == 202
            async with client.get(f"{admin}/status") as response:
                status = await response.json()
        assert status["durability"] == "disk"
        assert status["config"]["spool"]["path"] == f"{folder}/spool"
        process.terminate()
        _, err = await process.communicate()
    assert (process.returncode, b"Traceback" in err) == (0, False)
    (span,) = sgp.spans.values()
    assert span["metadata"]["__agent_name__"] == "Größe"
    assert names(folder) == {"größe.toml", "key", "spool"}


@pytest.mark.process
async def test_check_in_an_ascii_locale(folder: Path) -> None:
    """It prints the configuration, with what the terminal can't show as escapes."""
    process = await sidecar("check", "--config", configuration(folder))
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert rb"\xdcberall \u65e5\u672c/spool; dead letters" in out
    assert rb"\u00dcberall \u65e5\u672c/spool" in out
    assert out.isascii()


@pytest.mark.process
async def test_paths_by_variable_in_an_ascii_locale(folder: Path) -> None:
    """A path in a variable is the same as in a file."""
    process = await sidecar("check", SIDECAR_SPOOL__PATH=f"{folder}/s", AGENTEX_BASE_URL="http://ü")
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert rb"\xdcberall \u65e5\u672c/s" in out
    assert rb'= "http://\u00fc"' in out


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    """It is an error that names the file, also in a locale in which it would be text."""
    file = tmp_path / "c.toml"
    file.write_bytes("# größe\n".encode("latin-1"))
    with pytest.raises(ValueError, match=f"{file}: 'utf-8'"):
        load(str(file), {})


def test_a_name_that_is_not_utf_8() -> None:
    """A variable of the pod that is no UTF-8 reaches SGP as far as it is."""
    assert b'"__agent_name__":"a?"' in enrichment({"AGENT_NAME": "a\udcff"}, {}).overrides

"""README.md and docs/: links, commands, and the tables of docs/network.md, against the code.

tests/e2e/test_docs.py runs the commands.
"""

import ast
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest

from sidecar import cli
from sidecar.network.proxies import AUTO, find_proxy
from sidecar.process.addresses import parse_base_url
from tests.support.docs import ROOT, Command, blocks, commands, prose, section
from tests.support.spans import make_event
from tests.support.world import running_app

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE = ROOT / "docs/network.md"
LINK = re.compile(r"(?<!!)\[[^]\n]*\n?[^]\n]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
# Where the texts are made that docs/network.md explains.
SOURCES = ["network/reasons", "network/dialer", "network/tunnel", "sinks/http"]
# Parts of a request to a proxy, and what stands for a reason that OpenSSL does not give.
NOT_SHOWN = ("CONNECT ", "Host: ", "User-Agent: ", "Proxy-Authorization: ", "not verified")
# What a command that is only mentioned may lack.
MISSING: tuple[tuple[str, ...], ...] = ((), ("FILE",), ("http://127.0.0.1:8318", "FILE"))


def anchors(page: Path) -> set[str]:
    """What links to a page may have after their #, as GitHub makes it of the headings."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    made = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="(\w+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link leads to a file of the repository, and to one of its headings."""
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = (page.parent / target) if target else page
        assert path.exists(), link
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_valid(page: Path) -> None:
    """Every `sidecar ...` in a page is a command line that the sidecar accepts."""
    assert [command for command in commands(page) if not is_accepted(command)] == []


def is_accepted(command: Command) -> bool:
    """Whether the command line is complete; in text, its last arguments may be missing."""
    for missing in MISSING[: 1 if command.in_block else None]:
        with suppress(SystemExit):
            cli._parser().parse_args([*command.arguments, *missing])
            return True
    return False


def test_there_are_commands() -> None:
    """The test above finds them: in blocks, in text, and behind `kubectl exec`."""
    found = {" ".join(command.arguments) for page in PAGES for command in commands(page)}
    assert {"check --probe", "run", "top --once", "explain SPAN_ID", "replay FILE"} <= found


def rows(page: Path, heading: str) -> Iterator[list[str]]:
    """The rows of the table below a heading, as cells."""
    table = re.findall(r"^\|(.+)\|$", section(page, heading), re.MULTILINE)
    for row in table[2:]:
        yield [cell.strip() for cell in row.split("|")]


def urls(cell: str) -> list[str]:
    """The URLs in a cell; those of a host without a scheme."""
    found = []
    for text in CODE.findall(cell):
        schemes = [""] if "://" in text else ["http://", "https://"]
        found += [scheme + text for scheme in schemes]
    return found


def test_no_proxy() -> None:
    """The table says which URLs each entry of NO_PROXY exempts from the proxy."""
    table = list(rows(PAGE, "Without a proxy: NO_PROXY"))
    assert len(table) > 8
    for (entries, direct, not_direct), source in product(table, ("variable", "setting")):
        listed = ",".join(CODE.findall(entries))
        environ = {"ALL_PROXY": "http://p"} | ({"NO_PROXY": listed} if source == "variable" else {})
        setting = listed if source == "setting" else ""
        for cell, expected in ((direct, None), (not_direct.partition(":")[0], "http://p:80")):
            for url in urls(cell):
                found = find_proxy(parse_base_url(url), AUTO, setting, environ)
                assert (listed, url, found and str(found)) == (listed, url, expected)


def test_the_agents_variable() -> None:
    """What docs/network.md has an agent set is what docs/client.md has, which httpx is asked."""
    client = (ROOT / "docs/client.md").read_text(encoding="utf-8")
    for page in (PAGE, ROOT / "README.md"):
        (value,) = set(re.findall(r"127\.0\.0\.1,[\w.,:]+", page.read_text(encoding="utf-8")))
        assert f"\nNO_PROXY={value}\n" in client


def texts(path: Path) -> Iterator[str]:
    """Regular expressions for the strings with a space in a module that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            skipped.update(ast.walk(node))
        if isinstance(node, ast.JoinedStr):
            skipped.update(node.values)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        made = ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            made = re.escape(node.value.strip()).replace(r"\{\}", ".*")
        elif isinstance(node, ast.JoinedStr):
            made = "".join(
                re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".*"
                for part in node.values
            )
        if r"\ " in made and not made.startswith(tuple(map(re.escape, NOT_SHOWN))):
            yield made


@pytest.mark.parametrize("source", SOURCES)
def test_every_text_is_explained(source: str) -> None:
    """docs/network.md has each text that these modules have for operators."""
    page = PAGE.read_text(encoding="utf-8")
    shown = CODE.findall(page) + [line for block in blocks(page) for line in block.splitlines()]
    found = list(texts(ROOT / "sidecar" / f"{source}.py"))
    assert len(found) > 2
    assert [text for text in found if not any(re.search(text, each) for each in shown)] == []


def modes(folder: Path) -> dict[str, int]:
    """What others may do with each file below a folder."""
    return {path.name: path.stat().st_mode & 0o77 for path in folder.rglob("*") if path.is_file()}


async def test_files(tmp_path: Path) -> None:
    """docs/security.md has every file that a sidecar makes, and which others can read."""
    known = set()
    for name, *_ in rows(ROOT / "docs/security.md", "What is on disk"):
        texts = [text.replace("dead_letters.path", "letters") for text in CODE.findall(name)]
        known.update(texts)
    paths = {"spool__path": tmp_path / "spool", "dead_letters__path": tmp_path / "letters"}
    found: dict[str, int] = {}
    for name, path in paths.items():
        async with running_app(None, **{name: str(path)}) as app:
            await app.post(make_event("a"))
            await app.post(make_event("b", kind="end"))
            found |= modes(tmp_path)
        found |= modes(tmp_path)
    made = {"spool.db", "spool.db-wal", "spool.lock", "letters", "last_shutdown_lost"}
    assert (set(found), made - known) == (made, set())
    assert {name for name, mode in found.items() if mode} <= {"last_shutdown_lost"}

"""The pages: links, commands, figures, and what their tables list, against the code.

tests/e2e/test_docs.py runs the commands.
"""

import ast
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from sidecar import cli, config_load
from sidecar.network.proxies import AUTO, find_proxy
from sidecar.process.addresses import parse_base_url
from sidecar.telemetry.outcomes import STATUS_CODES
from tests.support.docs import ROOT, Command, anchors, blocks, commands, prose, section
from tests.support.spans import make_event
from tests.support.world import running_app

README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = [README, CONTRIBUTING, CHANGELOG, ROOT / "SECURITY.md"]
PAGES += [
    path for name in ("docs", "examples", ".github") for path in sorted((ROOT / name).rglob("*.md"))
]
RELEASE = ROOT / ".github/workflows/release.yml"
MAX_README_LINES = 149
PAGE = ROOT / "docs/network.md"
LINK = re.compile(r"(?<!!)\[[^]\n]*\n?[^]\n]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
# Where the texts are made that docs/network.md explains.
SOURCES = ["network/reasons", "network/dialer", "network/tunnel", "sinks/http"]
# Parts of a request to a proxy, and what stands for a reason that OpenSSL does not give.
NOT_SHOWN = ("CONNECT ", "Host: ", "User-Agent: ", "Proxy-Authorization: ", "not verified")
# What a command that is only mentioned may lack.
MISSING: tuple[tuple[str, ...], ...] = ((), ("FILE",), ("http://127.0.0.1:8318", "FILE"))


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_valid(page: Path) -> None:
    """Every `sidecar ...` in a page is a command line that the sidecar accepts."""
    assert [command for command in commands(page) if not is_accepted(command)] == []


def is_accepted(command: Command) -> bool:
    """Whether the command line is complete; in text, its last arguments may be missing."""
    for missing in MISSING[: 1 if command.in_block else None]:
        try:
            cli._parser().parse_args([*command.arguments, *missing])
        except SystemExit as ended:  # with 0, it has printed what was asked for: --version
            if ended.code:
                continue
        return True
    return False


def test_there_are_commands() -> None:
    """The test above finds them: in blocks, in text, and behind `kubectl exec`."""
    found = {" ".join(command.arguments) for page in PAGES for command in commands(page)}
    assert {"check --probe", "run", "top --once", "explain SPAN_ID", "replay FILE"} <= found


def rows(page: Path, heading: str) -> Iterator[list[str]]:
    """The rows of the tables below a heading, as cells, without the first table's head."""
    table = re.findall(r"^\|(.+)\|$", section(page, heading), re.MULTILINE)
    for row in table[2:]:
        yield [cell.strip() for cell in row.split("|")]


def test_the_readme_is_short() -> None:
    """Whoever is new reads all of it: what is longer belongs to a page in docs/."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_placeholders() -> None:
    """README.md says what each word in capitals in its commands stands for, and has no other."""
    named = {name for name, _ in rows(README, "Deploy it") if name.isupper()}
    text = README.read_text(encoding="utf-8")
    shown = [line for block in blocks(text) for line in block.splitlines()]
    shown += CODE.findall(prose(text))
    found = [line for line in shown if line.startswith(("docker", "helm", "kubectl", "sidecar"))]
    assert {word for line in found for word in re.findall(r"\b[A-Z_]{3,}\b", line)} == named


def test_the_steps_of_a_deployment_are_written_once() -> None:
    """No other page repeats a step of README.md's, which tests/e2e/test_deployment.py runs.

    An upgrade has steps of its own.
    """
    (deployed,) = blocks(section(README, "Deploy it"))
    steps = {" ".join(line.split()[:2]) for line in deployed.splitlines()}
    assert {"docker push", "helm upgrade", "kubectl label", "kubectl rollout"} <= steps
    pages = {*PAGES[1:], *(ROOT / "helm").glob("*/README.md")} - {ROOT / "docs/upgrade.md"}
    for page in pages:
        lines = "\n".join(blocks(page.read_text(encoding="utf-8"))).splitlines()
        found = [line for line in lines if line.startswith(tuple(steps - {"docker build"}))]
        assert not found, page
    link = "../README.md#deploy-it"
    assert link in section(ROOT / "docs/deploy.md", "Inject")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_helm_commands_name_the_namespace(page: Path) -> None:
    """A command that names a release also names its namespace: it is not in the current one."""
    text = page.read_text(encoding="utf-8")
    shown = [line for block in blocks(text) for line in block.splitlines()]
    shown += CODE.findall(prose(text))
    pattern = re.compile(r"helm (install|upgrade|uninstall|rollback|status|test) .*\w")
    found = [line for line in shown if pattern.match(line)]
    assert [line for line in found if "--namespace" not in line] == []


def test_the_tag_of_the_image() -> None:
    """README.md builds and pushes the image under the tag that the chart has pods pull."""
    chart = (ROOT / "helm/trace-sidecar/Chart.yaml").read_text(encoding="utf-8")
    (version,) = re.findall(r"^appVersion: (\S+)$", chart, re.MULTILINE)
    (deployed,) = (each for each in blocks(section(README, "Deploy it")) if "helm" in each)
    (repository,) = re.findall(r"image\.repository=(\S+)", deployed)
    tags = re.findall(rf"^docker (build|push) .*{repository}:(\S+)", deployed, re.MULTILINE)
    assert tags == [("build", version), ("push", version)]


def test_figures() -> None:
    """README.md's figures are those of docs/benchmarks.md, made by the command that it names."""
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    measured = re.findall(r"^\|(.+)\|$", page.partition("Made by")[2], re.MULTILINE)
    heading = "Why not the OpenTelemetry Collector?"
    shown = list(rows(README, heading))
    assert len(shown) > 3
    for name, *cells in shown:
        peer = name.replace("an agent with the ", "").replace("an agent with ", "")
        figures = [cell for cell in cells if cell]
        assert any(
            row.strip().startswith(f"{peer} |") and all(figure in row for figure in figures)
            for row in measured
        ), name
    (command,) = re.findall(r"`(make bench-peers [^`]+)`", section(README, heading))
    assert f"Made by `{command}`" in page


def test_every_status_is_explained() -> None:
    """docs/troubleshooting.md has each status with which the agents' port can refuse."""
    listed = rows(ROOT / "docs/troubleshooting.md", "What a status means")
    explained = {code for cell, *_ in listed for code in re.findall(r"\b\d{3}\b", cell)}
    assert set(STATUS_CODES) - {"200"} <= explained


def test_variables_of_a_pod() -> None:
    """docs/configuration.md has the variables of an agent's pod, and the keys that they set."""
    listed = {
        name: CODE.findall(meaning)
        for names, meaning in rows(ROOT / "docs/configuration.md", "Where settings come from")
        for name in CODE.findall(names)
    }
    for name, (section_, key) in config_load._POD_VARIABLES.items():
        assert f"{section_}.{key}" in listed[name]


def test_the_first_release_changes_nothing() -> None:
    """The oldest section of the changelog only says what there is: nobody had anything before."""
    *_, oldest = CHANGELOG.read_text(encoding="utf-8").split("\n## ")
    headings = re.findall(r"^### (.+)$", oldest, re.MULTILINE)
    assert len(headings) > 5
    assert {"Changed", "Fixed", "Removed", "Deprecated"} & set(headings) == set()


def test_releasing() -> None:
    """CONTRIBUTING.md has the jobs of the release workflow, in their order, and what they push.

    docs/image.md has the repository's variables that they read.
    """
    workflow = RELEASE.read_text(encoding="utf-8")
    jobs = re.findall(r"^  (\w+):$", workflow.partition("\njobs:\n")[2], re.MULTILINE)
    assert [name.strip("`") for name, _ in rows(CONTRIBUTING, "Releasing")] == jobs
    assert re.findall(r"^    needs: (\w+)$", workflow, re.MULTILINE) == jobs[:-1]
    text = section(CONTRIBUTING, "Releasing")
    assert set(re.findall(r"^    environment: (\w+)$", workflow, re.MULTILINE)) == {"release"}
    assert "environment `release`" in text
    (platforms,) = re.findall(r"platforms: (.+)", workflow)
    assert all(platform in text for platform in platforms.split(","))
    for pushed in ("trace-sidecar", "charts"):
        assert f"${{{{ github.repository_owner }}}}/{pushed}" in workflow
        assert f"REGISTRY/OWNER/{pushed}" in text
    read = set(re.findall(r"vars\.(\w+)", workflow))
    listed = list(rows(ROOT / "docs/image.md", "Releases"))
    assert {name for names, _ in listed for name in CODE.findall(names)} == read
    defaults = set(re.findall(r"\|\| '([^']+)'", workflow))
    assert {each for each in defaults if "kindest" in each} <= set(CODE.findall(str(listed)))


def test_the_workflows_run_what_is_said() -> None:
    """CONTRIBUTING.md names each make target, and those that CI runs."""
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = CONTRIBUTING.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    assert named - {"help"} <= targets
    assert targets - {"demo", "clean", "help"} <= named
    ci = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    listed = section(CONTRIBUTING, "How tests run")
    for target in re.findall(r"run: make ([a-z-]+)", ci):
        assert f"`make {target}`" in listed


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
    for page in (PAGE, README):
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

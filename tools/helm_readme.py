"""Generates the tables in the charts' README files from the files that they document.

    python tools/helm_readme.py          # write them
    python tools/helm_readme.py --check  # exit with 1 when one is out of date

`<!-- values: FILE PREFIX -->` to `<!-- end -->` encloses a table of a values file: each key with
its default and the comment above it. `<!-- settings: PREFIX -->` to `<!-- end -->` encloses one of
config.example.toml: the keys that the library chart's schema allows. Uses the standard library
only, and parses no more YAML than these two values files contain.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
READMES = (ROOT / "helm/trace-sidecar/README.md", ROOT / "helm/trace-sidecar-lib/README.md")
LIBRARY = ROOT / "helm/trace-sidecar-lib"

_KEY = re.compile(r"( *)([\w.-]+):(?: +(.*))?")
_ITEM = re.compile(r" *- (.*)")
_SETTING = re.compile(r"(\w+) = (.*?) +# (.*)")
_BLOCK = re.compile(r"(<!-- (values|settings): (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


class Value(NamedTuple):
    """A key of a values file; `default` is None for a section."""

    path: str
    default: str | None
    text: str


def values(source: str) -> Iterator[Value]:
    """Yield the keys of a values file in order, with the comments directly above them."""
    lines = source.splitlines()
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    for number, line in enumerate(lines):
        if line.lstrip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
        elif not line.strip():
            comment = []
        elif match := _KEY.fullmatch(line):
            depth, key, default = len(match[1]), match[2], match[3]
            while parents and parents[-1][0] >= depth:
                parents.pop()
            parents.append((depth, key))
            if default is None:
                default = _items(lines[number + 1 :])
            yield Value(".".join(name for _, name in parents), default, " ".join(comment))
            comment = []


def _items(lines: list[str]) -> str | None:
    """Return the list that begins here on one line; None if none begins."""
    found = []
    for line in lines:
        match = _ITEM.fullmatch(line)
        if match is None:
            break
        found.append(match[1])
    return f"[{', '.join(found)}]" if found else None


def settings() -> Iterator[Value]:
    """Yield the settings of config.example.toml that the library chart allows."""
    schema = json.loads((LIBRARY / "values.schema.json").read_text(encoding="utf-8"))
    sections = schema["properties"]["config"]["properties"]
    section = ""
    for line in (ROOT / "config.example.toml").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line[1 : line.index("]")]
        elif (match := _SETTING.fullmatch(line)) and match[1] in sections.get(section, {}).get(
            "properties", {}
        ):
            yield Value(f"{section}.{match[1]}", match[2], match[3])


def table(rows: Iterator[Value], prefix: str) -> str:
    """Return a Markdown table of `rows`; sections appear only if they have a text."""
    lines = ["| value | default | what it is |", "|---|---|---|"]
    for row in rows:
        if row.default is None and not row.text:
            continue
        default = "" if row.default is None else f"`{row.default}`"
        cells = (f"`{prefix}{row.path}`", default, row.text)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def filled(readme: Path) -> str:
    """Return the text of a README with its tables regenerated."""

    def fill(match: re.Match[str]) -> str:
        if match[2] == "settings":
            rows, prefix = settings(), match[3]
        else:
            name, _, prefix = match[3].partition(" ")
            rows = values((readme.parent / name).read_text(encoding="utf-8"))
        return match[1] + table(rows, prefix) + match[4]

    return _BLOCK.sub(fill, readme.read_text(encoding="utf-8"))


def main(arguments: list[str]) -> int:
    """Write the tables, or with --check report those out of date."""
    stale = [readme for readme in READMES if filled(readme) != readme.read_text(encoding="utf-8")]
    for readme in stale:
        if "--check" not in arguments:
            readme.write_text(filled(readme), encoding="utf-8")
        sys.stdout.write(f"{readme.relative_to(ROOT)}\n")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

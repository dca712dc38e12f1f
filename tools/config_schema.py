"""Generates docs/config.schema.json: the configuration file, for editors.

    python -m tools.config_schema > docs/config.schema.json

Keys, types, limits and defaults come from `sidecar.config.Config`, units and words from
config_values.py, descriptions from the comments in config.example.toml. A size can be a string or
bytes, a time a number or a string, a switch a word, and words are in any case. What the sidecar
reads besides, such as a number in quotes, an editor reports. The schema knows one key at a time:
`sidecar check` knows the rest.

Sections are written out where they are, without references, because editors differ in the drafts
that they know. tests/tools/test_config_schema.py fails if the file is out of date.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from sidecar.config import Config
from sidecar.config_values import _BOOLEANS, _SIZE_UNITS, _TIME_UNITS, AUTO, Size
from sidecar.credentials import Secret

Json: TypeAlias = dict[str, Any]

_EXAMPLE = Path(__file__).parents[1] / "config.example.toml"
_SECTION = re.compile(r"\[(\w+)\]")
_KEY = re.compile(r"(\w+) = ")


def _any_case(*words: str) -> str:
    """Return a pattern for one of several words: editors know no flags."""
    letters = [
        "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in word) for word in words if word
    ]
    return f"({'|'.join(letters)})"


def _quantity(units: Iterable[str]) -> Json:
    number = r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
    return {"type": "string", "pattern": rf"^\s*{number}\s*{_any_case(*units)}?\s*$"}


def _word(*words: str) -> Json:
    return {"type": "string", "pattern": rf"^\s*{_any_case(*words)}\s*$"}


def schema() -> Json:
    """Return the schema."""
    texts = _comments()
    sections = {
        section.name: _section(section.type, texts, section.name)
        for section in msgspec.structs.fields(Config)
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Trace sidecar",
        "description": "The configuration file of the trace sidecar. Every key is optional.",
        "type": "object",
        "additionalProperties": False,
        "properties": sections,
    }


def _section(struct: type[msgspec.Struct], texts: dict[tuple[str, str], str], section: str) -> Json:
    fields = msgspec.structs.fields(struct)
    # Without their defaults: msgspec can't write those of our own types.
    copy = msgspec.defstruct(struct.__name__, [(each.name, each.type) for each in fields])
    made = msgspec.json.schema(copy, schema_hook=_own)["$defs"][struct.__name__]
    return {
        "description": texts[section, ""],
        "type": "object",
        "additionalProperties": False,
        "properties": {
            field.name: _key(made["properties"][field.name], _default(field))
            | {"description": texts[section, field.name], "default": _plain(_default(field))}
            for field in fields
        },
    }


def _default(field: msgspec.structs.FieldInfo) -> object:
    """Return a key's default; that of a table has a factory."""
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _own(kind: type) -> Json:
    """Return the schema of a type that msgspec does not know."""
    if issubclass(kind, Size):
        return {"anyOf": [_quantity(_SIZE_UNITS), {"type": "integer", "minimum": 0}]}
    if issubclass(kind, Secret):
        return {"type": "string"}
    if issubclass(kind, float):
        return {"type": "number"}
    raise NotImplementedError(kind)


def _plain(value: object) -> object:
    """Return a default as a file has it."""
    if isinstance(value, Size):
        return str(value)
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, tuple):
        return list(value)
    return float(value) if isinstance(value, float) else value


def _key(schema: Json, default: object) -> Json:
    """Return the schema of a key with every form in which its value may be written."""
    forms: list[Json] = []
    for form in schema.get("anyOf", [schema]):
        forms.append(form)
        if form.get("type") == "number":
            forms.append(_quantity(_TIME_UNITS))
        elif form.get("type") == "boolean":
            forms.append(_word(*_BOOLEANS))
        elif "enum" in form:
            forms.append(_word(*form["enum"]))
    if default == AUTO and isinstance(default, Size):
        forms.insert(0, {"const": "auto"})
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


def _comments() -> dict[tuple[str, str], str]:
    """Return the comments of config.example.toml by section and key; "" for the section itself.

    A comment is behind its key, or in the lines above it.
    """
    found = {}
    section, above = "", ""
    for line in _EXAMPLE.read_text(encoding="utf-8").splitlines():
        before, _, behind = line.partition("# ")
        name = _SECTION.match(before) or _KEY.match(before)
        if name is None:
            above = f"{above} {behind}".strip() if behind and not before else ""
            continue
        is_section = before.startswith("[")
        section = name[1] if is_section else section
        found[section, "" if is_section else name[1]] = behind or above
        above = ""
    return found


def text() -> str:
    """Return the schema as the committed file has it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())

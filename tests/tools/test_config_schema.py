"""docs/config.schema.json has every key of the configuration, as the code has it.

tests/e2e/test_config_schema.py validates files by it.
"""

import tomllib

import msgspec

from sidecar.config import Config
from tests.support.telemetry import ROOT
from tools import config_schema

SECTIONS = config_schema.schema()["properties"]


def test_the_schema_is_up_to_date() -> None:
    """docs/config.schema.json is the output of `python -m tools.config_schema`."""
    assert (ROOT / "docs/config.schema.json").read_text() == config_schema.text()


def test_it_has_every_key() -> None:
    """It has the sections and keys of `Config` and no others, and allows no others."""
    known = {
        section.name: [key.name for key in msgspec.structs.fields(section.type)]
        for section in msgspec.structs.fields(Config)
    }
    assert {name: list(section["properties"]) for name, section in SECTIONS.items()} == known
    assert not any(section["additionalProperties"] for section in SECTIONS.values())


def test_it_has_the_defaults_and_the_texts_of_the_example() -> None:
    """Every key has the example's value as its default, and its comment as the description."""
    example = (ROOT / "config.example.toml").read_text()
    values = tomllib.loads(example)
    for name, section in SECTIONS.items():
        for key, schema in section["properties"].items():
            assert schema["default"] == values[name][key], f"{name}.{key}"
            assert schema["description"] in example, f"{name}.{key}"
            assert len(schema["description"]) > 3, f"{name}.{key}"


def test_every_default_has_a_form() -> None:
    """A size can be a string or bytes, a duration a number or a string, a switch a word."""

    def kinds(name: str, key: str) -> set[str]:
        schema = SECTIONS[name]["properties"][key]
        return {
            str(form.get("type") or form.get("const") or form["enum"][0])
            for form in schema.get("anyOf", [schema])
        }

    assert kinds("queue", "max_bytes") == {"auto", "string", "integer"}
    assert kinds("spool", "max_bytes") == {"string", "integer"}
    assert kinds("retry", "max_s") == {"number", "string"}
    assert kinds("sgp", "relay") == {"boolean", "string"}
    assert kinds("sgp", "open_writes") == {"auto", "boolean", "string"}
    assert kinds("sgp", "api_key") == {"string"}
    assert kinds("log", "level") == {"debug", "string"}

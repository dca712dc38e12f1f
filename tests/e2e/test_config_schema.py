"""docs/config.schema.json, as an editor uses it: what it says of files, and what the sidecar says.

A validator is among the packages of schemathesis, so its environment is used.
"""

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from sidecar.config import ConfigError
from sidecar.config_load import load
from tests.e2e import parts
from tests.e2e.sdk_support import ROOT

VALIDATE = """
import json, sys
from jsonschema_rs import Draft202012Validator, meta
schema, files = json.load(sys.stdin)
meta.validate(schema)
print(json.dumps([[str(e) for e in Draft202012Validator(schema).iter_errors(f)] for f in files]))
"""
WRONG = {
    "a section that is not there": "[lister]\n",
    "a key that is not there": "[listener]\nprot = 1\n",
    "a key outside its section": "port = 8318\n",
    "a size that is none": '[queue]\nmax_bytes = "many"\n',
    "a unit that is none": '[queue]\nmax_bytes = "64 apples"\n',
    "auto where it is not allowed": '[spool]\nmax_bytes = "auto"\n',
    "a time that is none": '[retry]\ninitial_s = "soon"\n',
    "a negative time": "[retry]\nmax_s = -1\n",
    "a port that is too high": "[listener]\nport = 99999\n",
    "too many spans": "[sgp]\nmax_batch = 1001\n",
    "a level that is none": '[log]\nlevel = "loud"\n',
    "a switch that is none": '[sgp]\nrelay = "perhaps"\n',
    "a list that is none": "[listener]\nhosts = 1\n",
    "a unit with two meanings": '[queue]\nmax_bytes = "64M"\n',
}
FORMS = {
    "nothing": "",
    "one key": '[agentex]\nbase_url = "http://127.0.0.1:5003"\n',
    "bytes": "[queue]\nmax_bytes = 67108864\n",
    "a short unit": '[queue]\nmax_bytes = "64Mi"\n',
    "a unit in small letters": '[queue]\nmax_bytes = "64mib"\n',
    "a decimal unit": '[queue]\nmax_bytes = "64MB"\n',
    "auto": '[queue]\nmax_bytes = "auto"\n',
    "whole seconds": "[retry]\nmax_s = 30\n",
    "seconds": '[retry]\nmax_s = "30s"\n',
    "milliseconds": '[retry]\ninitial_s = "500ms"\n',
    "hours": '[retry]\nmax_age_s = "24h"\n',
    "minutes": '[retry]\nmax_age_s = "5min"\n',
    "capitals": '[log]\nlevel = "INFO"\n',
    "a word for a switch": '[sgp]\nrelay = "yes"\n',
    "a switch": "[sgp]\nopen_writes = false\n",
}


def problems(*files: str) -> list[list[str]]:
    """Return what a validator says of files by the schema; it says nothing of valid ones."""
    schema = json.loads((ROOT / "docs/config.schema.json").read_text())
    done = subprocess.run(
        [parts.locked_venv(parts.SCHEMATHESIS), "-c", VALIDATE],
        input=json.dumps([schema, [tomllib.loads(file) for file in files]]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    return found


def refusal(file: str, folder: Path) -> str:
    """Return why the sidecar refuses a file, "" if it reads it."""
    path = folder / "config.toml"
    path.write_text(file)
    try:
        load(str(path), {})
    except ConfigError as error:
        return str(error)
    return ""


def test_the_example_is_valid() -> None:
    """An editor finds nothing wrong with config.example.toml."""
    assert problems((ROOT / "config.example.toml").read_text()) == [[]]


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_seen(tmp_path: Path, name: str) -> None:
    """What is wrong by the schema is so for the sidecar, too."""
    (found,) = problems(WRONG[name])
    assert len(found) == 1
    assert refusal(WRONG[name], tmp_path)


def test_what_the_sidecar_reads_is_valid(tmp_path: Path) -> None:
    """An editor finds nothing wrong with the forms that the sidecar reads."""
    assert {name: refusal(file, tmp_path) for name, file in FORMS.items()} == dict.fromkeys(
        FORMS, ""
    )
    assert problems(*FORMS.values()) == [[] for _ in FORMS]

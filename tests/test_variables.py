"""Variables that look like settings: which are, which may stop the start, which are not ours."""

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config import Config, ConfigError
from sidecar.config_load import VARIABLES, load, unknown_variables

ROOT = Path(__file__).parent.parent
NAMES = sorted(VARIABLES)
KEYS = sorted(VARIABLES - {"SIDECAR_CONFIG"})
SECTIONS = sorted({name.partition("__")[0] for name in KEYS})
DEADLINE_S = 60
BASE = {
    "PATH": os.environ["PATH"],
    "SIDECAR_LISTENER__PORT": "0",
    "SIDECAR_ADMIN__PORT": "0",
    "SIDECAR_ADMIN__HOST": "127.0.0.1",
    "SIDECAR_SHUTDOWN__QUIET_S": "0",
    "SIDECAR_SHUTDOWN__GRACE_S": "0",
    "AGENTEX_BASE_URL": "http://127.0.0.1:9",
}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("SIDECAR_QUEUE_MAX_BYTES", "SIDECAR_QUEUE__MAX_BYTES"),
        ("SIDECAR_LISTENER_PORT", "SIDECAR_LISTENER__PORT"),
        ("SIDECAR_QEUE__MAX_BYTES", "SIDECAR_QUEUE__MAX_BYTES"),
        ("SIDECAR_DEADLETTERS__PATH", "SIDECAR_DEAD_LETTERS__PATH"),
        ("SIDECAR_SGP_API_KEY", "SIDECAR_SGP__API_KEY"),
        ("SIDECAR_queue__max_bytes", "SIDECAR_QUEUE__MAX_BYTES"),
        ("sidecar_queue__max_bytes", "SIDECAR_QUEUE__MAX_BYTES"),
        ("SIDECAR_CONFIGS", "SIDECAR_CONFIG"),
        ("SIDECAR_IMAGE", ""),
        ("SIDECAR_X", ""),
        ("SIDECAR_", ""),
        ("SIDECAR___", ""),
        ("SIDECAR_\x1b[31m", ""),
    ],
)
def test_a_variable_that_sets_nothing(name: str, nearest: str) -> None:
    """It does not stop the start, and the nearest real name is suggested if one is similar."""
    assert unknown_variables({name: "x"}) == {name: nearest}
    assert load(None, {name: "x"}) == Config()


@pytest.mark.parametrize(
    "environ",
    [
        dict.fromkeys(NAMES, "x"),
        {"SIDECAR_QUEUE_MAX_BYTES": ""},
        {"SIDECARS": "x", "TRACE_SIDECAR_URL": "x", "sidecar_x": "x", "MY_SIDECAR_X": "x"},
    ],
)
def test_what_is_not_unknown(environ: dict[str, str]) -> None:
    """Real names, an empty value (which is unset), and names that are not like ours."""
    assert unknown_variables(environ) == {}


def service_links(service: str, ports: list[tuple[str, str, int]]) -> dict[str, str]:
    """The variables that the kubelet makes for a Service (envvars.FromServices)."""
    name = service.upper().replace("-", "_")
    _, protocol, first = ports[0]
    found = {f"{name}_SERVICE_HOST": "10.0.0.1", f"{name}_SERVICE_PORT": str(first)}
    found[f"{name}_PORT"] = f"{protocol.lower()}://10.0.0.1:{first}"
    for port_name, protocol, number in ports:
        if port_name:
            found[f"{name}_SERVICE_PORT_{port_name.upper().replace('-', '_')}"] = str(number)
        prefix = f"{name}_PORT_{number}_{protocol}"
        found[prefix] = f"{protocol.lower()}://10.0.0.1:{number}"
        found[f"{prefix}_PROTO"] = protocol.lower()
        found[f"{prefix}_PORT"] = str(number)
        found[f"{prefix}_ADDR"] = "10.0.0.1"
    return found


LABEL = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
PORT = st.tuples(
    st.just("") | LABEL, st.sampled_from(["TCP", "UDP", "SCTP"]), st.integers(1, 65535)
)


@given(st.just("sidecar") | LABEL.map("sidecar-{}".format), st.lists(PORT, min_size=1))
def test_services_are_not_settings(service: str, ports: list[tuple[str, str, int]]) -> None:
    """What Kubernetes says about a Service whose name begins with `sidecar` changes nothing."""
    links = service_links(service, ports)
    assert unknown_variables(links) == {}
    assert load(None, links) == Config()


def test_a_setting_that_looks_like_a_service() -> None:
    """A port number is a mistake; the address that Kubernetes would set there is not."""
    assert list(unknown_variables({"SIDECAR_LISTENER_PORT": "8319"})) == ["SIDECAR_LISTENER_PORT"]
    assert unknown_variables({"SIDECAR_LISTENER_PORT": "tcp://10.0.0.1:8319"}) == {}


@given(st.sampled_from(KEYS), st.data())
def test_one_mistake_is_recognized(name: str, data: st.DataObject) -> None:
    """A real name with one character missing, doubled or swapped gets a suggestion."""
    at = data.draw(st.integers(len("SIDECAR_"), len(name) - 2))
    before, one, two, after = name[:at], name[at], name[at + 1], name[at + 2 :]
    mistakes = [before + two + after, before + one + one + two + after, before + two + one + after]
    mistake = data.draw(st.sampled_from(mistakes))
    assert mistake in VARIABLES or unknown_variables({mistake: "x"})[mistake] in VARIABLES


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.text(min_size=1, max_size=40))
def test_what_can_stop_the_start(name: str, value: str) -> None:
    """Only a name with a real section can, and nothing else sets a key."""
    name = f"SIDECAR_{name}"
    if name in VARIABLES:
        return
    in_section = name.startswith(tuple(f"{section}__" for section in SECTIONS))
    if in_section and unknown_variables({name: value}):
        with pytest.raises(ConfigError, match=f"^{re.escape(name)}: "):
            load(None, {name: value})
    else:
        assert load(None, {name: value}) == Config()


@given(st.sampled_from(SECTIONS), st.from_regex(r"[A-Z_]{0,20}", fullmatch=True))
def test_an_unknown_key_of_a_real_section(section: str, key: str) -> None:
    """It stops the start; the error names the variable, not its value."""
    name = f"{section}__{key}"
    if name not in VARIABLES and unknown_variables({name: "hidden"}):
        with pytest.raises(ConfigError, match=f"^{name}: (?!.*hidden)"):
            load(None, {name: "hidden"})


def test_the_nearest_key_of_a_section() -> None:
    """The error about an unknown key suggests the nearest one."""
    with pytest.raises(
        ConfigError, match=r"queue has no such key; did you mean SIDECAR_QUEUE__MAX_BYTES\?"
    ):
        load(None, {"SIDECAR_QUEUE__MAX_BYTE": "1MiB"})


def test_a_name_is_in_capitals() -> None:
    """A name in another case sets nothing, so that one key can't have two values."""
    environ = {"SIDECAR_QUEUE__START_HOLD_S": "1", "SIDECAR_Queue__Start_Hold_S": "9"}
    assert load(None, environ).queue.start_hold_s == 1


async def start(command: str, **environ: str) -> asyncio.subprocess.Process:
    """Start a command with these variables and what a sidecar needs."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar", command,
        env={**BASE, **environ}, cwd=ROOT, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip


UNKNOWN = {
    "SIDECAR_QUEUE_MAX_BYTES": "hidden",
    "SIDECAR_IMAGE": "hidden",
    "SIDECAR_SERVICE_PORT": "80",
    "SIDECAR_QUEUE__START_HOLD_S": "1",
}


@pytest.mark.process
async def test_run_warns() -> None:
    """`run` starts, with one warning for each: its name and the nearest, but not its value."""
    async with asyncio.timeout(DEADLINE_S):
        process = await start("run", **UNKNOWN)
        assert process.stderr is not None
        lines = [await process.stderr.readline()]
        while b'"started"' not in lines[-1]:
            lines.append(await process.stderr.readline())
        process.terminate()
        await process.communicate()
    warned = [json.loads(line) for line in lines if b"unknown_variable" in line]
    assert [(each["level"], each["variable"], each["nearest"]) for each in warned] == [
        ("warning", "SIDECAR_IMAGE", ""),
        ("warning", "SIDECAR_QUEUE_MAX_BYTES", "SIDECAR_QUEUE__MAX_BYTES"),
    ]
    assert warned[1]["text"].endswith("no such setting; did you mean SIDECAR_QUEUE__MAX_BYTES?")
    assert b"hidden" not in b"".join(lines)


@pytest.mark.process
async def test_check_fails() -> None:
    """`check` prints the configuration, names each variable, and exits with 2."""
    process = await start("check", **UNKNOWN)
    out, err = await process.communicate()
    assert (process.returncode, b"start_hold_s = 1.0" in out) == (2, True)
    assert err.decode().splitlines() == [
        "sidecar: SIDECAR_IMAGE: no such setting",
        "sidecar: SIDECAR_QUEUE_MAX_BYTES: no such setting; did you mean SIDECAR_QUEUE__MAX_BYTES?",
    ]
    process = await start("check")
    assert await process.communicate() != (b"", b"")
    assert process.returncode == 0

"""The command line, run as a process."""

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Answer
from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from tests.support.otlp import OtlpStandIn
from tests.support.spans import make_span

pytestmark = pytest.mark.process

BASE = {
    "PATH": os.environ["PATH"],
    "SIDECAR_LISTENER__PORT": "0",
    "SIDECAR_ADMIN__PORT": "0",
    "SIDECAR_ADMIN__HOST": "127.0.0.1",
    "SIDECAR_SHUTDOWN__QUIET_S": "0",
}


async def start(*arguments: str, **environ: str) -> asyncio.subprocess.Process:
    """Start `sidecar ARGUMENTS` with a clean environment."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sidecar",
        *arguments,
        env={**BASE, **environ},
        cwd=Path(__file__).parent.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def outcome(*arguments: str, **environ: str) -> tuple[int | None, str, str]:
    """Run a command; return its exit code, standard output and standard error."""
    process = await start(*arguments, **environ)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_run_and_sigterm() -> None:
    """SIGTERM ends `run` with exit code 0 and the accounting in the last log line."""
    process = await start("run", AGENTEX_BASE_URL="http://127.0.0.1:9")
    assert process.stderr is not None
    started = json.loads(await process.stderr.readline())
    assert started["event"] == "started"
    process.send_signal(signal.SIGTERM)
    lines = (await process.stderr.read()).splitlines()
    last = json.loads(lines[-1])
    assert (last["event"], last["lost"], last["events"]["imbalance"]) == ("stopped", 0, 0)
    assert await process.wait() == 0


# As in the charts' pods.
WRONG_IS_OFF = {"SIDECAR_POD__WRONG_VARIABLES": "ignore"}


@pytest.mark.parametrize(
    ("environ", "texts"),
    [
        ({}, ["no upstream is enabled: set "]),
        (
            {**WRONG_IS_OFF, "SGP_CLIENT_BASE_URL": "x", "SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"},
            ["sgp.base_url: must be a URL ", "no upstream is enabled: "],
        ),
        (
            {
                **WRONG_IS_OFF,
                "AGENTEX_BASE_URL": "https://a.test",
                "HTTPS_PROXY": "socks5://me:hidden@proxy:1",
                "SIDECAR_LISTENER__PASS_THROUGH": "true",
            },
            ["agentex: HTTPS_PROXY: socks5:// ", "sgp: HTTPS_PROXY: ", "no upstream is enabled: "],
        ),
    ],
    ids=["nothing is set", "a wrong variable of the pod", "a proxy that can't be used"],
)
async def test_run_without_an_upstream(environ: dict[str, str], texts: list[str]) -> None:
    """It runs, with one warning about each thing to set, and stops with 0."""
    process = await start("run", **environ)
    assert process.stderr is not None
    for text in texts:
        line = json.loads(await process.stderr.readline())
        assert (line["event"], line["level"]) == ("config_warning", "warning")
        assert line["text"].startswith(text)
        assert "hidden" not in line["text"]
    started = json.loads(await process.stderr.readline())
    assert (started["event"], started["sinks"]) == ("started", [])
    process.send_signal(signal.SIGTERM)
    lines = [json.loads(line) for line in (await process.stderr.read()).splitlines()]
    assert [line["event"] for line in lines] == ["stopping", "stopped"]
    assert lines[-1]["text"] == "stopped: nothing was lost; 0 events received"
    assert await process.wait() == 0


async def test_a_wrong_setting_stops_the_start() -> None:
    """Exit code 2 for a setting of the sidecar's own, and every mistake is named."""
    code, _, err = await outcome(
        "run", **WRONG_IS_OFF, SIDECAR_AGENTEX__BASE_URL="agentex", SGP_CLIENT_BASE_URL="sgp"
    )
    assert code == 2
    assert "SIDECAR_AGENTEX__BASE_URL" in err
    assert "SGP_CLIENT_BASE_URL" in err


async def test_a_wrong_variable_of_the_pod_stops_the_start() -> None:
    """Unless the charts say otherwise: whoever runs it by hand learns at once."""
    code, _, err = await outcome("run", AGENTEX_BASE_URL="agentex:5003")
    assert code == 2
    assert "(set by AGENTEX_BASE_URL)" in err


async def test_a_bad_value_is_reported_with_its_source() -> None:
    """The message names the key and the variable that set it."""
    code, _, err = await outcome("check", SIDECAR_QUEUE__MAX_BYTES="many")
    assert code == 2
    assert "queue.max_bytes" in err
    assert "SIDECAR_QUEUE__MAX_BYTES" in err


async def test_a_port_in_use() -> None:
    """Exit code 2, and a message with the address, without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, err = await outcome(
            "run", AGENTEX_BASE_URL="http://127.0.0.1:9", SIDECAR_LISTENER__PORT=port
        )
    assert code == 2
    assert port in err
    assert "Traceback" not in err


async def test_check_shows_everything_but_secrets() -> None:
    """`check` prints every key with its effective value, and secrets as `***`."""
    code, out, _ = await outcome("check", SGP_API_KEY="hidden", SGP_ACCOUNT_ID="a")
    assert code == 0
    assert "sgp: on" in out
    assert "agentex: off" in out
    assert "hidden" not in out


@pytest.mark.parametrize("arguments", [[], ["walk"], ["replay"]])
async def test_usage(arguments: list[str]) -> None:
    """A wrong command line prints the usage and exits with 2."""
    code, _, err = await outcome(*arguments)
    assert code == 2
    assert "usage: sidecar" in err


async def test_replay_of_a_damaged_file(tmp_path: Path) -> None:
    """Exit code 1 for a bad line, which is located on standard error; 2 for no file at all."""
    file = tmp_path / "letters.jsonl"
    DeadLetters(str(file), 10_000).add("sgp", make_span("a"), "refused", Refused("", 422))
    listed = await outcome("replay", str(file), "--dry-run")
    assert (listed[0], listed[1].split()[-1], listed[2]) == (0, "a", "")
    with file.open("ab") as torn:
        torn.write(b'{"time":"secret')
    bad = f"sidecar: {file}:2: not a dead letter\n"
    again = await outcome("replay", str(file), "--dry-run")
    assert again == (1, listed[1], f"{bad}unreadable 1\n")
    off = "sidecar: 1 not sent: that upstream is not enabled"
    code, out, err = await outcome("replay", str(file), AGENTEX_BASE_URL="http://127.0.0.1:9")
    assert (code, out) == (1, "off 1, unreadable 1\n")
    assert err.startswith(bad + off)
    code, _, err = await outcome("replay", str(tmp_path / "none"))
    assert (code, "No such file" in err) == (2, True)


@pytest.mark.parametrize("gone", ["stdout", "stderr"])
@pytest.mark.parametrize("command", ["check", "replay FILE --dry-run", "--help"])
async def test_output_that_nobody_reads(command: str, gone: str, tmp_path: Path) -> None:
    """A command whose output is cut off (`| head`) ends without a traceback."""
    file = tmp_path / "letters.jsonl"
    file.write_text("bad\n" * 10_000)
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, gone: writer}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sidecar",
        *command.replace("FILE", str(file)).split(),
        env={**BASE, "AGENTEX_BASE_URL": "http://127.0.0.1:9"},
        cwd=Path(__file__).parent.parent,
        stdout=streams["stdout"],
        stderr=streams["stderr"],
    )
    os.close(writer)
    out, err = await process.communicate()
    assert b"Traceback" not in (err or b"")
    assert b"Exception" not in (err or b"")
    assert process.returncode == int(command.startswith("replay"))  # its letters are bad
    assert bool(out) is (gone == "stderr" and not command.startswith("replay"))


@pytest.mark.parametrize(
    ("command", "code"), [("check", 0), ("replay FILE --dry-run", 1), ("run --config FILE", 2)]
)
async def test_closed_streams(command: str, code: int, tmp_path: Path) -> None:
    """A command runs to its end although its output was closed before it started."""
    file = tmp_path / "letters.jsonl"
    file.write_text("bad\n")
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        f'exec "$0" -m sidecar {command.replace("FILE", str(file))} 1>&- 2>&-',
        sys.executable,
        env={**BASE, "AGENTEX_BASE_URL": "http://127.0.0.1:9"},
        cwd=Path(__file__).parent.parent,
    )
    assert await process.wait() == code


async def test_replay_of_what_is_not_sent_again(tmp_path: Path) -> None:
    """An open write to SGP is skipped, which is said, with exit code 0."""
    file = tmp_path / "letters.jsonl"
    open_write = make_span("a", complete=False)
    DeadLetters(str(file), 10_000).add("sgp", open_write, "shutdown", Refused("", 0))
    code, out, err = await outcome("replay", str(file), "--to", "http://127.0.0.1:9")
    assert (code, out) == (0, "skipped 1\n")
    assert err.startswith("sidecar: 1 not sent: open writes")


async def test_replay_under_another_account(tmp_path: Path) -> None:
    """Exit code 1: the letter belongs to another account than `sgp.account_id`."""
    file = tmp_path / "letters.jsonl"
    dead = DeadLetters(str(file), 10_000, lambda _: "acme")
    dead.add("sgp", make_span("a"), "refused", Refused("", 422))
    environ = {"SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "other"}
    code, out, err = await outcome("replay", str(file), **environ)
    assert (code, out) == (1, "other_account 1\n")
    assert err.startswith("sidecar: 1 not sent: they belong to another account")


OPEN = {"AGENTEX_BASE_URL": "http://127.0.0.1:9", "SIDECAR_LISTENER__HOSTS": "0.0.0.0"}
WARNING = "listener.hosts: 0.0.0.0 is not a loopback address"


async def test_check_warns_of_what_is_valid_but_surprising() -> None:
    """On standard error, and the exit code stays 0."""
    code, out, err = await outcome("check", **OPEN)
    assert (code, "agentex: on" in out) == (0, True)
    assert err.startswith(f"sidecar: warning: {WARNING}")
    assert err.count("\n") == 1


async def test_run_warns_of_what_is_valid_but_surprising() -> None:
    """The log says the same before `started`."""
    process = await start("run", **OPEN)
    assert process.stderr is not None
    warning, started = [json.loads(await process.stderr.readline()) for _ in range(2)]
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert (warning["event"], warning["level"]) == ("config_warning", "warning")
    assert warning["text"].startswith(WARNING)
    assert started["event"] == "started"
    assert process.returncode == 0


async def test_run_warns_of_what_can_not_work(tmp_path: Path) -> None:
    """One warning a problem, in the words of `check`, and it starts all the same."""
    environ = {
        "AGENTEX_BASE_URL": "http://127.0.0.1:9",
        "SGP_API_KEY": "k",
        "SIDECAR_AGENTEX__API_KEY_FILE": str(tmp_path / "none"),
        "SIDECAR_DEAD_LETTERS__PATH": str(tmp_path),
    }
    _, _, err = await outcome("check", **environ)
    process = await start("run", **environ)
    assert process.stderr is not None
    lines = [json.loads(await process.stderr.readline()) for _ in range(4)]
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert [f"sidecar: {line['text']}" for line in lines[:3]] == err.splitlines()
    assert lines[3]["event"] == "started"


async def test_a_port_that_run_can_not_use() -> None:
    """The message has the key, the address, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environ = {"AGENTEX_BASE_URL": "http://127.0.0.1:9", "SIDECAR_ADMIN__PORT": port}
        code, _, err = await outcome("run", **environ)
    assert (code, err.count("Address already in use")) == (2, 1)
    assert f"sidecar: admin.port: 127.0.0.1:{port}: " in err
    assert "set another port, for example with SIDECAR_ADMIN__PORT" in err


@pytest.mark.parametrize(
    ("environ", "events"),
    [({}, None), ({"SIDECAR_LOG__FORMAT": "json"}, ["started", "stopping", "stopped"])],
)
async def test_the_log_on_a_terminal(environ: dict[str, str], events: list[str] | None) -> None:
    """It is for people, and its last line is a sentence, unless it is to be JSON."""
    ours, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "run"),
        env={**BASE, "AGENTEX_BASE_URL": "http://127.0.0.1:9", "TERM": "xterm", **environ},
        cwd=Path(__file__).parent.parent,
        stderr=theirs,
    )
    os.close(theirs)
    reader = asyncio.StreamReader()
    terminal = os.fdopen(ours, "rb", 0)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), terminal
    )
    lines: list[bytes] = []
    while not lines or b"started" not in lines[-1]:
        lines.append(await reader.readline())
    process.send_signal(signal.SIGTERM)
    with suppress(OSError):  # Linux has no other end of file for a terminal
        while line := await reader.readline():
            lines.append(line)
    assert await process.wait() == 0
    if events is None:
        last = lines[-1].decode()
        assert "stopped: nothing was lost; 0 events received; agentex: 0 writes forwarded" in last
        assert "{" not in last
    else:
        found = [json.loads(line)["event"] for line in lines]
        assert [event for event in found if event in events] == events


URL_ERRORS = [
    ("top", "--once", "--url"),
    ("explain", "s1", "--url"),
    ("replay", "letters.jsonl", "--to"),
]


@pytest.mark.parametrize("command", URL_ERRORS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    "url", ["http://u:hidden@h", "http://u:hidden@h:99999", "hidden", "http://h?hidden"]
)
async def test_a_url_that_a_command_can_not_use(command: tuple[str, ...], url: str) -> None:
    """It is a usage error that does not repeat the URL: there may be a password in it."""
    code, out, err = await outcome(*command, url)
    assert (code, out) == (2, "")
    assert f"argument {command[-1]}: expected http://HOST:PORT, without a user name" in err
    assert "hidden" not in err


@pytest.mark.parametrize(
    "url", ["http://u:hidden@h/x?", "http://u:1/hidden@h", "http://u:hidden@h:x"]
)
async def test_check_of_a_url_with_a_password(url: str) -> None:
    """Neither the error nor the configuration that it prints has the password in it."""
    code, out, err = await outcome("check", AGENTEX_BASE_URL=url)
    assert (code, "hidden" in out + err) == (2, False)
    assert "agentex.base_url: " in err
    good = url.replace("/hidden", "%2Fhidden").replace(":x", "").rstrip("?")
    environ = {"AGENTEX_BASE_URL": good, "SIDECAR_NETWORK__PROXY": good}
    code, out, err = await outcome("check", **environ)
    assert (code, out.count('= "http://***@h')) == (0, 2)
    assert out.count("http://***@h") == 3
    assert "hidden" not in out + err


async def test_check_tries_out_the_upstreams() -> None:
    """`--probe` says step by step how far it goes; nothing is written."""
    async with AgentexStandIn(api_key="good") as agentex, SgpStandIn(api_key="good") as sgp:
        environ = {
            "AGENTEX_BASE_URL": agentex.url,
            "SIDECAR_AGENTEX__API_KEY": "good",
            "SGP_CLIENT_BASE_URL": sgp.url,
            "SGP_API_KEY": "good",
            "SGP_ACCOUNT_ID": "a",
        }
        code, out, err = await outcome("check", "--probe", **environ)
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[:3] == [
            "verdict: ready",
            f"agentex: on: {agentex.url}, with the key in SIDECAR_AGENTEX__API_KEY",
            f"sgp: on: {sgp.url}, with the key in SGP_API_KEY",
        ]
        assert lines[-5:] == [
            "",
            f"agentex: TCP: connected to {agentex.url.removeprefix('http://')}",
            "agentex: credential: accepted",
            f"sgp: TCP: connected to {sgp.url.removeprefix('http://')}",
            "sgp: credential: accepted",
        ]
        assert (agentex.spans, sgp.spans) == ({}, {})


async def test_check_tries_out_a_receiver_of_otlp() -> None:
    """It gets a request without spans, with the configured headers; a wrong path is named."""
    async with OtlpStandIn(prefix="/otlp", headers={"authorization": "Bearer good"}) as otlp:
        environ = {"SIDECAR_OTLP__ENDPOINT": f"{otlp.url}/otlp/"}
        for headers, expected, said in (
            ("authorization=Bearer%20good", 0, "otlp: credential: accepted\n"),
            ("authorization=Bearer%20bad", 1, "otlp: credential: refused, HTTP 401\n"),
            ("", 1, "otlp: credential: none is configured, HTTP 401\n"),
        ):
            found = await outcome("check", "--probe", **environ, SIDECAR_OTLP__HEADERS=headers)
            assert (found[0], said in found[1] + found[2]) == (expected, True)
        otlp.headers = {}
        code, out, _ = await outcome("check", "--probe", **environ)
        assert (code, out.splitlines()[-1]) == (0, "otlp: credential: none is configured")
        code, _, err = await outcome("check", "--probe", SIDECAR_OTLP__ENDPOINT=otlp.url)
        assert (code, "HTTP 404: the path of otlp.endpoint is wrong" in err) == (1, True)
        assert otlp.spans == {}


NOT_FOUND = "HTTP 404: the path of"
WRONG_PATH = " is wrong, or this server has no spans API\n"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"AGENTEX_BASE_URL": "http://127.0.0.1:1"}, "agentex: 127.0.0.1:1 refuses connections\n"),
        ({"SIDECAR_AGENTEX__API_KEY": "bad"}, "agentex: credential: refused, HTTP 401\n"),
        ({"SGP_API_KEY": "bad"}, "sgp: credential: refused, HTTP 401\n"),
        (
            {"SGP_CLIENT_BASE_URL": "/wrong"},
            f"sgp: API: {NOT_FOUND} sgp.base_url{WRONG_PATH}",
        ),
        (
            {"AGENTEX_BASE_URL": "/wrong"},
            f"agentex: API: {NOT_FOUND} agentex.base_url{WRONG_PATH}",
        ),
    ],
)
async def test_check_tries_out_bad_upstreams(environ: dict[str, str], said: str) -> None:
    """One that can't be used makes the exit code 1; the other one is tried out all the same."""
    async with AgentexStandIn(api_key="good") as agentex, SgpStandIn(api_key="good") as sgp:
        good = {
            "AGENTEX_BASE_URL": agentex.url,
            "SIDECAR_AGENTEX__API_KEY": "good",
            "SGP_CLIENT_BASE_URL": sgp.url,
            "SGP_API_KEY": "good",
            "SGP_ACCOUNT_ID": "a",
        }
        bad = {
            name: good[name] + text if text.startswith("/") else text
            for name, text in environ.items()
        }
        code, out, err = await outcome("check", "--probe", **good | bad)
        assert (code, err) == (1, f"sidecar: {said}")
        other = "sgp" if said.startswith("agentex") else "agentex"
        assert f"{other}: credential: accepted\n" in out


async def test_check_with_a_key_file_that_is_missing(tmp_path: Path) -> None:
    """There is no key to try out, so nothing is tried out."""
    async with AgentexStandIn(api_key="good") as agentex:
        path = tmp_path / "key"
        environ = {"AGENTEX_BASE_URL": agentex.url, "SIDECAR_AGENTEX__API_KEY_FILE": str(path)}
        code, _, err = await outcome("check", "--probe", **environ)
        assert (code, err.startswith(f"sidecar: agentex.api_key_file: {path} ")) == (2, True)
        assert agentex.requests_total == 0
        path.write_text("good", encoding="utf-8")
        code, out, _ = await outcome("check", "--probe", **environ)
        assert (code, out.splitlines()[-1]) == (0, "agentex: credential: accepted")


async def test_check_of_a_server_that_can_not_be_asked() -> None:
    """Another server than the real one may have no such route: that is no failure."""
    async with AgentexStandIn() as agentex:
        agentex.rule = lambda _: Answer(405, b"{}")
        environ = {"AGENTEX_BASE_URL": agentex.url, "SIDECAR_AGENTEX__API_KEY": "k"}
        code, out, _ = await outcome("check", "--probe", **environ)
        assert (code, "credential: not checked" in out) == (0, True)


async def test_check_of_what_only_the_pass_through_uses(tmp_path: Path) -> None:
    """Its settings are checked as `run` checks them."""
    path = str(tmp_path / "ca.pem")
    environ = {"AGENTEX_BASE_URL": "http://127.0.0.1:9", "SIDECAR_LISTENER__PASS_THROUGH": "true"}
    for command in ("check", "run"):
        code, _, err = await outcome(command, SIDECAR_SGP__CA_FILE=path, **environ)
        assert (code, f"sgp.ca_file: {path}: No such file" in err) == (2, True)


async def test_check_with_an_agents_key() -> None:
    """Where no key is configured, the agents' are used: the API is asked without one."""
    agents = "credential: none is configured, so the agents' are used"
    wants = "API: not checked, it wants a credential first: HTTP 401"
    async with AgentexStandIn(api_key="good") as agentex, SgpStandIn(api_key="good") as sgp:
        environ = {"AGENTEX_BASE_URL": agentex.url, "SIDECAR_SGP__RELAY": "true"}
        code, out, err = await outcome("check", "--probe", SGP_CLIENT_BASE_URL=sgp.url, **environ)
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[-5:-3] == [f"agentex: {wants}", f"agentex: {agents}"]
        assert lines[-2:] == [f"sgp: {wants}", f"sgp: {agents}"]
        assert (agentex.spans, sgp.spans) == ({}, {})
    async with AgentexStandIn() as agentex:
        code, out, _ = await outcome("check", "--probe", AGENTEX_BASE_URL=agentex.url)
        assert (code, out.splitlines()[-2:]) == (0, ["agentex: API: there", f"agentex: {agents}"])


async def test_check_of_a_wrong_path_without_a_key() -> None:
    """A server that has nothing at this path can't be used, whoever has the key."""
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        environ = {"AGENTEX_BASE_URL": f"{agentex.url}/wrong", "SIDECAR_SGP__RELAY": "true"}
        url = f"{sgp.url}/wrong"
        code, _, err = await outcome("check", "--probe", SGP_CLIENT_BASE_URL=url, **environ)
        assert (code, err.splitlines()) == (
            1,
            [
                f"sidecar: {name}: API: HTTP 404: the path of {name}.base_url{WRONG_PATH}".rstrip()
                for name in ("agentex", "sgp")
            ],
        )


@pytest.mark.parametrize(
    ("status", "said"), [(503, "not well: HTTP 503"), (302, "what answers is not the API: HTTP")]
)
async def test_check_of_an_api_that_answers_otherwise(status: int, said: str) -> None:
    """A server that fails is not well, and a sign-in page is not the API."""
    async with AgentexStandIn() as agentex:
        agentex.rule = lambda _: Answer(status, b"{}")
        code, _, err = await outcome("check", "--probe", AGENTEX_BASE_URL=agentex.url)
        assert (code, err.startswith(f"sidecar: agentex: API: {said}")) == (1, True)


@pytest.mark.parametrize("command", ["check", "run"])
async def test_a_certificate_that_is_missing(command: str, tmp_path: Path) -> None:
    """It is an invalid configuration, with the setting and the path."""
    path = tmp_path / "ca.pem"
    environ = {"AGENTEX_BASE_URL": "https://a.test", "SIDECAR_AGENTEX__CA_FILE": str(path)}
    code, _, err = await outcome(command, **environ)
    text = f"sidecar: agentex.ca_file: {path}: No such file or directory"
    assert (code, err.splitlines()[-1].startswith(text)) == (2, True)


@pytest.mark.parametrize("command", ["check", "check --probe", "run"])
async def test_a_proxy_that_can_not_be_used(command: str) -> None:
    """It is an invalid configuration; its credential is not shown."""
    proxy = "https://me:hidden@proxy:1"
    environ = {"AGENTEX_BASE_URL": "https://a.test", "HTTPS_PROXY": proxy}
    code, out, err = await outcome(*command.split(), **environ)
    assert (code, "hidden" in out + err) == (2, False)
    assert "sidecar: HTTPS_PROXY: https:// proxies can't be used, only http:// proxies" in err


async def test_check_shows_the_proxy() -> None:
    """Which one, and by what; without its credential."""
    environ = {"AGENTEX_BASE_URL": "https://a.test", "HTTPS_PROXY": "me:hidden@proxy:3128"}
    code, out, err = await outcome("check", **environ)
    assert (code, err, "hidden" in out) == (0, "", False)
    through = "through the proxy http://proxy:3128 (HTTPS_PROXY)"
    assert f"agentex: on: https://a.test, {through}, with the keys that agents send\n" in out

"""`sidecar check`: the verdict, the settings, and what can't work although its value is valid."""

import asyncio
import shutil
import socket
import tomllib
from pathlib import Path

import pytest

from sidecar.config import Config, redacted
from sidecar.config_load import read
from sidecar.operate import ports, problems
from sidecar.operate.check import check
from tests.support.world import running_app

BASE = {
    "AGENTEX_BASE_URL": "http://127.0.0.1:9",
    "SIDECAR_LISTENER__PORT": "0",
    "SIDECAR_ADMIN__PORT": "0",
}
Capture = pytest.CaptureFixture[str]


def checked(
    capsys: Capture, path: str | None = None, **environ: str
) -> tuple[bool | None, str, str]:
    """The result of `check`, standard output and standard error."""
    environ = {name: text for name, text in (BASE | environ).items() if text}
    result = check(read(path, environ), environ, probe=False)
    out, err = capsys.readouterr()
    return result, out, err


VERDICTS = [
    ({}, "agentex: on: http://127.0.0.1:9, with the keys that agents send"),
    (
        {"SIDECAR_AGENTEX__API_KEY": "k"},
        "agentex: on: http://127.0.0.1:9, with the key in SIDECAR_AGENTEX__API_KEY",
    ),
    ({"AGENTEX_BASE_URL": ""}, "agentex: off: the base URL is missing, set AGENTEX_BASE_URL"),
    (
        {},
        "sgp: off: the API key and the account id are missing, set SGP_API_KEY and SGP_ACCOUNT_ID",
    ),
    ({"SGP_API_KEY": "k"}, "sgp: off: the account id is missing, set SGP_ACCOUNT_ID"),
    ({"SGP_ACCOUNT_ID": "a"}, "sgp: off: the API key is missing, set SGP_API_KEY"),
    (
        {"SIDECAR_SGP__RELAY": "yes"},
        "sgp: on: https://api.egp.scale.com, with the keys that agents send",
    ),
    ({}, "otlp: off: the endpoint is missing, set otlp.endpoint"),
    (
        {"SIDECAR_OTLP__ENDPOINT": "http://u:p@127.0.0.1:9/x"},
        "otlp: on: http://***@127.0.0.1:9/x, with no credential",
    ),
    (
        {"SIDECAR_OTLP__ENDPOINT": "http://127.0.0.1:9", "SIDECAR_OTLP__HEADERS": "A=1,B=2"},
        "otlp: on: http://127.0.0.1:9, with a and b in SIDECAR_OTLP__HEADERS",
    ),
    (
        {"SIDECAR_LISTENER__PORT": "8400", "SIDECAR_ADMIN__HOST": "127.0.0.1"},
        "ports: agents post to 127.0.0.1:8400 and [::1]:8400; operators use 127.0.0.1:0",
    ),
    (
        {"SIDECAR_QUEUE__MAX_BYTES": "64Mi"},
        "storage: at most 64MiB in memory, nothing on disk; dead letters are not kept",
    ),
]


@pytest.mark.parametrize(("environ", "line"), VERDICTS)
def test_verdict(capsys: Capture, environ: dict[str, str], line: str) -> None:
    """Five lines: whether it is ready, what is on or off and why, the ports, and the storage."""
    _, out, _ = checked(capsys, **environ)
    lines = out.splitlines()
    assert line in lines
    assert [each.partition(":")[0] for each in lines[:7]] == [
        *("verdict", "agentex", "sgp", "otlp", "ports", "storage"),
        "",
    ]


def test_what_is_on_disk(capsys: Capture, tmp_path: Path) -> None:
    """The last line of the verdict says what is kept, and where."""
    spool, letters = f"{tmp_path}/spool", f"{tmp_path}/letters"
    result, out, err = checked(
        capsys, SIDECAR_SPOOL__PATH=spool, SIDECAR_DEAD_LETTERS__PATH=letters
    )
    assert (result, err) == (True, "")
    assert out.startswith("verdict: ready\n")
    assert f", 1GiB on disk in {spool}; dead letters are kept in {letters}\n" in out
    assert list(tmp_path.iterdir()) == []


def settings_in(out: str) -> str:
    """The part of the output that has the settings."""
    return out[out.index("\n[listener]\n") :]


def test_settings(capsys: Capture, tmp_path: Path) -> None:
    """They are TOML with every key, and say where each value comes from."""
    file = tmp_path / "sidecar.toml"
    file.write_text('[log]\nlevel = "DEBUG"\n[sgp]\nlinger_s = "1s"\n', encoding="utf-8")
    environ = {"SIDECAR_QUEUE__MAX_BYTES": "64Mi", "SIDECAR_SGP__LINGER_S": "2s"}
    environ |= {"SGP_API_KEY": "hidden", "SGP_ACCOUNT_ID": 'a"\\b c'}
    _, out, _ = checked(capsys, str(file), **environ, SIDECAR_SPOOL__PATH="/\x7f/\u00fc\U0001f600")
    text = settings_in(out)
    shown = tomllib.loads(text)
    assert shown["queue"]["max_bytes"] == "64MiB"
    assert shown["spool"]["path"] == "/\x7f/\u00fc\U0001f600"
    assert {name: set(keys) for name, keys in shown.items()} == {
        name: set(keys) for name, keys in redacted(Config()).items()
    }
    lines = text.splitlines()
    for line in (
        f'level = "debug" # {file}',
        "linger_s = 2.0 # SIDECAR_SGP__LINGER_S",
        'base_url = "http://127.0.0.1:9" # AGENTEX_BASE_URL',
        'api_key = "***" # SGP_API_KEY',
        "max_batch = 500 # default",
    ):
        assert line in lines
    assert "hidden" not in out


def test_the_settings_are_the_configuration(capsys: Capture, tmp_path: Path) -> None:
    """A file with the settings as `check` prints them is the same configuration."""
    environ = {"SIDECAR_RETRY__MAX_S": "1m", "SIDECAR_SGP__OPEN_WRITES": "no"}
    environ |= {"SIDECAR_LISTENER__HOSTS": "127.0.0.1,127.0.0.2"}
    _, out, _ = checked(capsys, **environ)
    file = tmp_path / "sidecar.toml"
    file.write_text(settings_in(out), encoding="utf-8")
    assert read(str(file), {}).config == read(None, BASE | environ).config


def folder(path: Path) -> str:
    """A directory."""
    path.mkdir()
    return str(path)


def file(path: Path, text: str = "", mode: int = 0o600) -> str:
    """A file with `text`."""
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return str(path)


def link(path: Path, to: str) -> str:
    """A symbolic link."""
    path.symlink_to(to)
    return str(path)


HEADERS = "SIDECAR_OTLP__HEADERS_FILE"
KEY, LETTERS, SPOOL = (
    "SIDECAR_SGP__API_KEY_FILE",
    "SIDECAR_DEAD_LETTERS__PATH",
    "SIDECAR_SPOOL__PATH",
)
FILES = [
    (KEY, lambda p: str(p / "none"), "does not exist: mount the Secret there"),
    (KEY, folder, "is not a file: give the path of the file with the key"),
    (KEY, lambda p: file(p, " \n"), "is empty: write the key to it"),
    (KEY, lambda p: file(p, "two\nlines"), "must have one line of printable ASCII"),
    (KEY, lambda p: file(p, "caf\u00e9"), "must have one line of printable ASCII"),
    (KEY, lambda p: file(p, "x") + "/key", "can't be read (Not a directory)"),
    (KEY, lambda p: file(p, "x" * (2**20 + 1)), "is larger than 1MiB: give the path of the file"),
    (KEY, lambda p: str(p.with_name("x" * 300)), "can't be read (File name too long)"),
    ("SIDECAR_AGENTEX__API_KEY_FILE", str, "does not exist: mount the Secret there"),
    (HEADERS, lambda p: str(p / "none"), "does not exist: mount the Secret there"),
    (HEADERS, folder, "is not a file: give the path of the file with the headers"),
    (HEADERS, lambda p: file(p, "# none\n"), "is empty: write the headers to it"),
    (HEADERS, lambda p: file(p, "a: 1\nb"), "can't be used: line 2 must be NAME: VALUE"),
    (LETTERS, folder, "is a directory: give the path of a file in it"),
    (LETTERS, lambda p: folder(p.with_name("l.1"))[:-2], "needs"),
    (LETTERS, lambda _: "/dev/null", "is not a regular file: give the path of one"),
    (LETTERS, lambda p: f"{p}/none/letters", "does not exist: mount a volume there"),
    (LETTERS, lambda p: file(p) + "/letters", "is not a directory: mount a volume there"),
    (LETTERS, lambda p: str(p.with_name("x" * 300)), "can't be reached (File name too long)"),
    (LETTERS, lambda p: link(p, "none/x"), "none does not exist: mount a volume there"),
    (LETTERS, lambda p: link(p, "x"), "can't be reached (Too many levels of symbolic links)"),
    (SPOOL, lambda p: str(p.with_name("x" * 300)), "can't be reached (File name too long)"),
    (SPOOL, lambda p: link(p, "none/x"), "does not exist: mount a volume there"),
    (SPOOL, lambda p: link(p, "x"), "can't be reached (Too many levels of symbolic links)"),
    (SPOOL, lambda p: folder(p) and link(p / "spool.db", "spool.db")[:-9], "has spool.db in it"),
    (SPOOL, file, "is not a directory: give the path of a directory"),
    (SPOOL, lambda p: file(p) + "/spool", "is not a directory: mount a volume there"),
    (SPOOL, lambda p: folder(p) and folder(p / "spool.db")[:-9], "has spool.db in it"),
]


@pytest.mark.parametrize(("variable", "make", "said"), FILES)
def test_files(capsys: Capture, tmp_path: Path, variable: str, make: object, said: str) -> None:
    """A file or directory that can't be used is a problem that names the key and the path."""
    assert callable(make)
    path = make(tmp_path / "x")
    environ = {"SGP_ACCOUNT_ID": "a", KEY: file(tmp_path / "good", "\ufeffkey\n"), variable: path}
    environ["SIDECAR_OTLP__ENDPOINT"] = "http://127.0.0.1:9"
    result, out, err = checked(capsys, **environ)
    assert result is None
    assert out.startswith("verdict: not ready: 1 problem, see below\n")
    key = variable.removeprefix("SIDECAR_").lower().replace("__", ".")
    assert err.startswith(f"sidecar: {key}: {path} ")
    assert said in err
    assert err.endswith(f" (set by {variable})\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("environ", "key", "off"),
    [
        ({"SGP_API_KEY": "k"}, "sgp.api_key", "SGP is off: the account id is missing"),
        ({"SGP_ACCOUNT_ID": "a"}, "sgp.account_id", "SGP is off: the API key is missing"),
        ({"SIDECAR_AGENTEX__API_KEY": "k"}, "agentex.api_key", "Agentex is off: the base URL"),
        ({"SIDECAR_OTLP__HEADERS": "a=1"}, "otlp.headers", "OTLP is off: the endpoint is missing"),
        ({"SIDECAR_OTLP__HEADERS_FILE": "/x"}, "otlp.headers_file", "OTLP is off: the endpoint"),
    ],
)
def test_half_an_upstream(capsys: Capture, environ: dict[str, str], key: str, off: str) -> None:
    """A key without an account, the other way round, and a key without a URL are problems."""
    variables = {"SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a", "AGENTEX_BASE_URL": ""}
    if key.startswith("sgp"):
        variables = {}
    result, _, err = checked(capsys, **variables, **environ)
    assert result is None
    said = next(line for line in err.splitlines() if "is set, but" in line)
    assert said.startswith(f"sidecar: {key}: is set, but {off}")
    assert said.endswith(f"(set by {next(iter(environ))})")


@pytest.mark.parametrize(
    "environ",
    [
        {"SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "\u00e9"},
        {"SGP_API_KEY": "k", "SIDECAR_SGP__RELAY": "perhaps"},
        {"SIDECAR_AGENTEX__API_KEY": "k", "AGENTEX_BASE_URL": "localhost"},
    ],
)
def test_half_an_upstream_by_mistake(capsys: Capture, environ: dict[str, str]) -> None:
    """A mistake is said once, not also as what follows from it."""
    _, _, err = checked(capsys, **environ)
    assert err.count("\n") == 1
    assert "is off" not in err


def test_one_proxy_for_both(capsys: Capture) -> None:
    """If it can't be used, that is one problem, without its password."""
    environ = {"AGENTEX_BASE_URL": "https://a.test", "SIDECAR_SGP__RELAY": "on"}
    result, out, err = checked(capsys, **environ, HTTPS_PROXY="socks5://me:hidden@proxy")
    assert result is None
    assert err == "sidecar: HTTPS_PROXY: socks5:// proxies can't be used, only http:// proxies\n"
    assert "hidden" not in out


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("SIDECAR_QUEUE__MAX_BYTES", "900TiB is more than the memory that there is, "),
        ("SIDECAR_SPOOL__MAX_BYTES", "900TiB is more than the whole disk has, "),
    ],
)
def test_more_than_there_is(capsys: Capture, tmp_path: Path, variable: str, said: str) -> None:
    """More memory or disk than this machine has is a problem."""
    environ = {"SIDECAR_SPOOL__PATH": f"{tmp_path}/none/spool", variable: "900Ti"}
    result, _, err = checked(capsys, **environ)
    key = variable.removeprefix("SIDECAR_").lower().replace("__", ".")
    assert result is None
    assert err.startswith(f"sidecar: {key}: {said}")
    assert ": lower it, or " in err


@pytest.mark.parametrize("section", ["listener", "admin"])
def test_a_port_in_use(capsys: Capture, section: str) -> None:
    """It is a problem that names the key, unless a sidecar runs here already."""
    name = f"SIDECAR_{section.upper()}__PORT"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result, _, err = checked(capsys, SIDECAR_ADMIN__HOST="127.0.0.1", **{name: port})
    assert result is None
    assert err.startswith(f"sidecar: {section}.port: 127.0.0.1:{port}: ")
    assert "end the process that uses it, or set another port" in err
    assert err.endswith(f"(set by {name})\n")


@pytest.mark.parametrize(
    "response", [b"5", b'["sinks"]', b'"sinks"', b"[" * 9999, b"\xff", b"", b"{}"]
)
async def test_a_port_of_something_else(capsys: Capture, response: bytes) -> None:
    """Whatever responds there, it is no sidecar."""

    def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + response)
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        port = str(server.sockets[0].getsockname()[1])
        environ = {"SIDECAR_ADMIN__HOST": "127.0.0.1", "SIDECAR_ADMIN__PORT": port}
        result, _, err = await asyncio.to_thread(checked, capsys, **environ)
    assert result is None
    assert err.startswith(f"sidecar: admin.port: 127.0.0.1:{port}: Address already in use: ")


async def test_a_port_of_something_endless(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check` does not wait for the end of its response."""
    ended = asyncio.Event()

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n")
        await ended.wait()
        writer.close()

    monkeypatch.setattr(ports, "TIMEOUT_S", 0.05)
    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        port = str(server.sockets[0].getsockname()[1])
        environ = {"SIDECAR_ADMIN__HOST": "127.0.0.1", "SIDECAR_ADMIN__PORT": port}
        result, _, err = await asyncio.to_thread(checked, capsys, **environ)
        ended.set()
    assert result is None
    assert err.startswith(f"sidecar: admin.port: 127.0.0.1:{port}: Address already in use: ")


def test_a_host_twice(capsys: Capture) -> None:
    """`run` could not listen on both: the problem is of the hosts."""
    result, _, err = checked(capsys, SIDECAR_LISTENER__HOSTS="localhost,127.0.0.1")
    assert result is None
    assert err.startswith("sidecar: listener.hosts: 127.0.0.1:")
    assert "another of the hosts has this address already: remove one of them" in err


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "a\0b", "[::1]"])
@pytest.mark.parametrize("variable", ["SIDECAR_LISTENER__HOSTS", "SIDECAR_ADMIN__HOST"])
def test_what_is_no_host(capsys: Capture, variable: str, host: str) -> None:
    """It is a problem that says what a host looks like."""
    result, _, err = checked(capsys, **{variable: host})
    assert result is None
    assert ": give an address of this machine, such as 127.0.0.1 or ::1 (set by" in err


def test_a_certificate(capsys: Capture, tmp_path: Path) -> None:
    """It is a problem that says where its path is set."""
    name = "SIDECAR_AGENTEX__CA_FILE"
    _, _, err = checked(capsys, AGENTEX_BASE_URL="https://h", **{name: f"{tmp_path}"})
    expected = f"agentex.ca_file: {tmp_path}: not a file: give the path of a PEM file"
    assert err == f"sidecar: {expected} that can be used (set by {name})\n"


def test_a_key_in_place_of_its_path(capsys: Capture) -> None:
    """It is not shown."""
    result, out, err = checked(capsys, SGP_ACCOUNT_ID="a", **{KEY: "hidden"})
    assert result is None
    assert "sgp.api_key_file: *** does not exist: " in err
    assert "hidden" not in out + err


def test_a_disk_of_unknown_size(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems say that they have no bytes at all: that is no problem."""
    monkeypatch.setattr(problems, "disk_usage", lambda _: shutil.disk_usage("/proc"))
    assert checked(capsys, **{SPOOL: str(tmp_path)})[0] is True


def test_an_address_that_is_not_here(capsys: Capture) -> None:
    """It is a problem of the hosts, not of the port."""
    result, _, err = checked(capsys, SIDECAR_LISTENER__HOSTS="192.0.2.1")
    assert result is None
    assert "sidecar: listener.hosts: 192.0.2.1:0: " in err
    assert "give an address of this machine" in err


async def test_beside_a_running_sidecar(capsys: Capture, tmp_path: Path) -> None:
    """`check` in the sidecar's own container fails neither for its ports nor for its spool."""
    spool = tmp_path / "spool"
    async with running_app(None, spool__path=spool) as app:
        environ = {
            "SIDECAR_SPOOL__PATH": str(spool),
            "SIDECAR_LISTENER__PORT": str(app.app.ports["listener"]),
            "SIDECAR_ADMIN__PORT": str(app.app.ports["admin"]),
            "SIDECAR_LISTENER__HOSTS": "127.0.0.1",
            "SIDECAR_ADMIN__HOST": "127.0.0.1",
        }
        result, _, err = await asyncio.to_thread(checked, capsys, **environ)
        # What no sidecar could listen on is still a problem.
        environ["SIDECAR_LISTENER__HOSTS"] = "192.0.2.1"
        changed, _, problem = await asyncio.to_thread(checked, capsys, **environ)
    assert result is True
    assert err.startswith("sidecar: warning: a sidecar runs here already: ")
    assert err.count("\n") == 1
    assert (changed, problem.startswith("sidecar: listener.hosts: 192.0.2.1:")) == (None, True)


async def test_a_spool_in_use(capsys: Capture, tmp_path: Path) -> None:
    """A spool that a sidecar on other ports uses is a problem."""
    spool = str(tmp_path / "spool")
    async with running_app(None, spool__path=spool):
        environ = {"SIDECAR_SPOOL__PATH": spool}
        result, _, err = await asyncio.to_thread(checked, capsys, **environ)
    assert result is None
    assert err.startswith(f"sidecar: spool.path: {spool} is in use by another sidecar: give each")


def test_all_at_once(capsys: Capture, tmp_path: Path) -> None:
    """Mistakes come first, then problems of what is not mistaken; of the rest, only a verdict."""
    result, out, err = checked(
        capsys,
        SIDECAR_LOG__LEVEL="loud",
        SIDECAR_SGP__API_KEY="caf\u00e9",
        SIDECAR_DEAD_LETTERS__PATH=str(tmp_path),
        SIDECAR_X="1",
        SIDECAR_SPOOL__PATH="/dev/null",
        SIDECAR_SPOOL__MAX_BITES="1",
    )
    assert (result, out) == (None, "verdict: not ready: 6 problems, see below\n")
    assert [line.split(": ")[1] for line in err.splitlines()] == [
        "SIDECAR_SPOOL__MAX_BITES",
        "sgp.api_key",
        "log.level",
        "SIDECAR_X",
        "dead_letters.path",
        "spool.path",
    ]

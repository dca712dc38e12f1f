"""Configuration: the sources of a value, and the errors for invalid ones."""

import os
import threading
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar import config_load
from sidecar.config import Config, ConfigError, redacted
from sidecar.config_load import _TYPES, load, read
from sidecar.config_values import AUTO, Size, convert
from sidecar.credentials import Secret

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"


def test_the_example_is_the_default() -> None:
    """Loading the example is the same as loading no file."""
    assert load(str(EXAMPLE), {}) == load(None, {}) == Config()


def test_the_example_has_every_key() -> None:
    """The example has every key, each with a comment."""
    keys = {name: set(section) for name, section in tomllib.loads(EXAMPLE.read_text()).items()}
    assert keys == {
        section.name: {key.name for key in msgspec.structs.fields(section.type)}
        for section in msgspec.structs.fields(Config)
    }
    for line in EXAMPLE.read_text().splitlines():
        assert not line or "#" in line


def write(path: Path, text: str) -> str:
    """Write a file with `text`; return its path."""
    file = path / "sidecar.toml"
    file.write_text(text)
    return str(file)


def test_where_a_value_comes_from(tmp_path: Path) -> None:
    """SIDECAR_ variables win over the file, the file over the pod's, those over the default."""
    pod = {"AGENTEX_BASE_URL": "http://pod"}
    file = write(tmp_path, '[agentex]\nbase_url = "http://file"\n')
    own = {"SIDECAR_AGENTEX__BASE_URL": "http://own"}
    assert load(None, {}).agentex.base_url == ""
    assert load(None, pod).agentex.base_url == "http://pod"
    assert load(file, pod).agentex.base_url == "http://file"
    assert load(file, pod | own).agentex.base_url == "http://own"


def test_the_pods_own_variables() -> None:
    """The pod's own variables are used, without surrounding whitespace."""
    config = load(
        None,
        {
            "AGENTEX_BASE_URL": " http://agentex:5003 ",
            "SGP_CLIENT_BASE_URL": "https://sgp.example",
            "SGP_API_KEY": "key\n",
            "SGP_ACCOUNT_ID": "account",
        },
    )
    assert config.agentex.base_url == "http://agentex:5003"
    assert config.sgp.base_url == "https://sgp.example"
    assert config.sgp.api_key == Secret("key")
    assert config.sgp.account_id == "account"


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_variable_of_the_pod_is_unset(text: str) -> None:
    """An empty variable such as `SGP_CLIENT_BASE_URL=` means the default."""
    names = ("AGENTEX_BASE_URL", "SGP_CLIENT_BASE_URL", "SGP_API_KEY", "SGP_ACCOUNT_ID")
    assert load(None, dict.fromkeys(names, text)) == Config()


def test_every_kind_of_value_by_environment() -> None:
    """Numbers, sizes, booleans and lists are parsed from strings."""
    config = load(
        None,
        {
            "SIDECAR_LISTENER__HOSTS": "127.0.0.1, ::1,",
            "SIDECAR_LISTENER__ALLOWED_HOSTS": "Sidecar.example., [fd00::1]",
            "SIDECAR_LISTENER__PORT": "0",
            "SIDECAR_LISTENER__MAX_BODY": "1.5MiB",
            "SIDECAR_QUEUE__MAX_BYTES": "auto",
            "SIDECAR_QUEUE__START_HOLD_S": "0.25",
            "SIDECAR_SGP__OPEN_WRITES": "false",
            "SIDECAR_SGP__RELAY": "true",
            "SIDECAR_LOG__LEVEL": "debug",
            "SIDECAR_CONFIG": "not a key",
            "OTHER__THING": "not ours",
        },
    )
    assert config.listener.hosts == ("127.0.0.1", "::1")
    assert config.listener.allowed_hosts == ("Sidecar.example.", "[fd00::1]")
    assert (config.listener.port, config.listener.max_body) == (0, 3 * 2**19)
    assert (config.queue.max_bytes, config.queue.start_hold_s) == (AUTO, 0.25)
    assert (config.sgp.open_writes, config.sgp.relay) == (False, True)
    assert config.log.level == "debug"


BAD = [
    ("listener", "port", "70000", '"70000" is not a whole number from 0 to 65535'),
    ("listener", "port", "http", '"http" is not a whole number from 0 to 65535'),
    ("listener", "port", "1.5", '"1.5" is not a whole number'),
    ("listener", "max_body", "12 parsecs", '"12 parsecs" is not a size such as "64MiB"'),
    ("listener", "max_body", "0MiB", "must be a size above 0"),
    ("listener", "max_body", "auto", "must be a size above 0"),
    ("listener", "body_timeout_s", "0", '"0" is not a number of seconds, above 0, such as "30s"'),
    ("queue", "max_bytes", "0B", "must be a size above 0, or auto"),
    ("queue", "max_bytes", "64M", '"64M" is not a size such as "64MiB"'),
    ("queue", "start_hold_s", "-1", '"-1" is not a number of seconds, from 0 up, such as "30s"'),
    ("queue", "start_hold_s", "nan", '"nan" is not a number of seconds'),
    ("queue", "start_hold_s", "inf", '"inf" is not a number of seconds'),
    ("queue", "max_bytes", "1e999", '"1e999" is not a size such as "64MiB"'),
    ("agentex", "max_concurrency", "1.5e0", '"1.5e0" is not a whole number'),
    ("agentex", "max_concurrency", "1e999", '"1e999" is not a whole number'),
    ("queue", "start_hold_s", "2 weeks", '"2 weeks" is not a number of seconds'),
    ("queue", "open_span_ttl_s", "1", "open_span_ttl_s must not be less than start_hold_s"),
    ("queue", "start_hold_s", "2h", "open_span_ttl_s must not be less than start_hold_s"),
    ("spool", "max_bytes", "1KiB", "must be at least 1MiB"),
    ("spool", "sync", "never", '"never" is not "full" or "normal"'),
    ("listener", "hosts", " , ", 'must not be empty: "127.0.0.1" is for agents in this pod'),
    ("listener", "allowed_hosts", "http://h", "number 1 is not"),
    ("listener", "allowed_hosts", "h,h:8318", "number 2 is not"),
    ("agentex", "base_url", "agentex:5003", "must be a URL such as http://host:port/path"),
    ("agentex", "base_url", "http://h?", "must have no query and no fragment (? or #)"),
    ("sgp", "base_url", "http://h/x#", "must have no query and no fragment (? or #)"),
    ("sgp", "base_url", "http://u:1/2@h", "must have %2F for a / in its password"),
    ("network", "proxy", "automatic://p", "automatic:// proxies can't be used"),
    ("network", "proxy", "http://p#", 'must have no query and no fragment (? or #), or "auto"'),
    ("network", "proxy", "u:1/2@p", "a proxy must have %2F for a / in its password"),
    ("agentex", "max_concurrency", "0", '"0" is not a whole number from 1 up'),
    ("agentex", "client_key_file", "/key", "needs client_cert_file"),
    ("sgp", "base_url", "ftp://sgp", "must be a URL such as http://host:port/path"),
    ("sgp", "max_batch", "1001", '"1001" is not a whole number from 1 to 1000'),
    ("sgp", "max_batch_bytes", "0B", "must be a size above 0"),
    ("sgp", "open_writes", "maybe", '"maybe" is not "auto", true or false'),
    ("sgp", "relay", "perhaps", '"perhaps" is not true or false'),
    ("sgp", "api_key", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "not text of printable ASCII"),
    ("retry", "initial_s", "31", "initial_s must not be more than max_s"),
    ("retry", "max_attempts", "x", '"x" is not a whole number from 1 up'),
    ("dead_letters", "max_bytes", "0B", "must be a size above 0"),
    ("shutdown", "grace_s", "soon", '"soon" is not a number of seconds'),
    ("sgp", "hide", "inputs", 'the value is not a list of "data", "input" or "output", each'),
    ("otlp", "hide", "input,input", "each at most once"),
    ("otlp", "endpoint", "collector:4318", "must be a URL such as http://host:port/path"),
    ("otlp", "endpoint", "http://h/v1/traces/", "must not end in /v1/traces, which the sidecar"),
    ("otlp", "client_key_file", "/key", "needs client_cert_file"),
    ("otlp", "max_batch_bytes", "0B", "must be a size above 0"),
    ("otlp", "compression", "zstd", '"zstd" is not "gzip" or "none"'),
    ("otlp", "headers", "x", "each header must be NAME=VALUE, with commas between them"),
    ("otlp", "headers", "a=1,b c=2", "the name of header 2 is not that of an HTTP header"),
    ("otlp", "headers", "a=1,A=2", "a is there twice: leave one out"),
    ("otlp", "headers", "a=1%0A2", "the value of a must be printable ASCII, and not empty"),
    ("otlp", "headers", "a=%C3%A9", "the value of a must be printable ASCII, and not empty"),
    ("otlp", "headers", "a=", "the value of a must be printable ASCII, and not empty"),
    ("otlp", "headers", "Host=h", "host is set by the sidecar itself: leave it out"),
    *(
        ("pod", key, text, "must be at most 253 printable ASCII characters")
        for key in ("name", "namespace", "node")
        for text in ("x" * 254, "a\nb", "\x1b[2J", "a\x7f", "caf\xe9", "\u202e", "\udcff")
    ),
    ("log", "level", "loud", '"loud" is not "debug", "error", "info" or "warning"'),
    ("log", "level", "inof", '; did you mean "info"?'),
    ("log", "level", "er", '"er" is not "debug"'),
    ("log", "format", "xml", '"xml" is not "auto", "console" or "json"'),
    ("log", "format", "x" * 99, f'"{"x" * 39}..." is not'),
]


@pytest.mark.parametrize(("section", "key", "text", "message"), BAD)
def test_bad_values_by_environment(section: str, key: str, text: str, message: str) -> None:
    """The message begins with the key, says what is wrong, and ends with the variable."""
    name = f"SIDECAR_{section}__{key}".upper()
    with pytest.raises(ConfigError) as caught:
        load(None, {name: text})
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"{section}.{key}: ")
    assert message in mistake
    assert mistake.endswith(f" (set by {name})")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[queue]\nmax_byte = 1", "queue.max_byte: no such key; did you mean queue.max_bytes?"),
        ("[retry]\ngrace_s = 1", "retry.grace_s: no such key; did you mean shutdown.grace_s?"),
        ("[queue]\nhorses = 1", "queue.horses: no such key ("),
        ("relay = 1", "relay: a key must be in a section; did you mean sgp.relay?"),
        ("port = 1", "a key must be in a section; did you mean listener.port or admin.port?"),
        ("horses = 1", "horses: a key must be in a section ("),
        ("[queues]", "queues: no such section; did you mean [queue]?"),
        ("[horses]", "horses: no such section ("),
        ('queue = "auto"', "queue: must be a section, [queue] on a line of its own"),
        ("[queue]\nmax_bytes = -5", "queue.max_bytes: -5 is not a size"),
        ("[queue]\nmax_bytes = true", "queue.max_bytes: true is not a size"),
        ("[queue]\nmax_bytes = [5]", "queue.max_bytes: a list is not a size"),
        ("[log.level]\nx = 1", 'log.level: a table is not "debug"'),
        ("[listener]\nport = true", "listener.port: true is not a whole number"),
        ("[sgp]\naccount_id = true", "sgp.account_id: the value is not text in quotes"),
        ("[sgp]\napi_key = [5]", "sgp.api_key: the value is not text of printable ASCII"),
        ("[listener]\nhosts = []", "listener.hosts: must not be empty"),
        ("[listener]\nhosts = [1]", "listener.hosts: the value is not a list of texts in quotes"),
        ("[Listener]", "Listener: no such section; did you mean [listener]?"),
        ("[log]\nLEVEL = 1", "log.LEVEL: no such key; did you mean log.level?"),
        ("[sgp]\nlinger_s = 2024-01-01", "sgp.linger_s: a date or a time is not a number"),
        (f"[sgp]\nlinger_s = {'9' * 400}", 'is not a number of seconds, from 0 up, such as "30s"'),
        (f"[sgp]\nlinger_s = {'9' * 5000}", "a line is [section] or key = value"),
        (f"[sgp]\nx = {'[' * 5000}", "a line is [section] or key = value"),
        ("[log]\n[log]", "each is there once"),
        ('[spool]\npath = "a\\u0000"', "spool.path: the value has a NUL character"),
        ('[agentex]\nca_file = "\\u0000"', "agentex.ca_file: the value has a NUL character"),
        ('[otlp]\nheaders = { "a b" = "1" }', "otlp.headers: the name of header 1 is not that"),
        ("[otlp]\nheaders = { a = 1 }", "otlp.headers: the value is not a table of names and"),
        ("[otlp]\nheaders = [1]", "otlp.headers: the value is not a table of names and"),
        ("[listener\n", "line 1"),
        ("[log]\nlevel = info", "and text has quotes around it"),
        ("\0", "line 1"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    """A mistake in a file is one sentence that says what is wrong, and names the file."""
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    (mistake,) = caught.value.mistakes
    assert message in mistake
    assert file in mistake


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    """Those of the file, of variables, of rules within a section and of rules across sections."""
    file = write(
        tmp_path, '[queue]\nmax_bytes = "many"\n[retry]\nmax_s = 0.1\n[log]\nlevle = "info"\n'
    )
    environ = {
        "SIDECAR_LISTENER__PORT": "9318",
        "SIDECAR_LISTENER__MAX_BODY": "0",
        "AGENTEX_BASE_URL": "http://localhost:9318",
        "SIDECAR_SGP__RELLAY": "true",
    }
    with pytest.raises(ConfigError) as caught:
        load(file, environ)
    found = [mistake.partition(":")[0] for mistake in caught.value.mistakes]
    assert found == [
        "log.levle",
        "SIDECAR_SGP__RELLAY",
        "queue.max_bytes",
        "listener.max_body",
        "retry.max_s",
        "listener.port",
    ]
    # An upstream at a port that is a mistake may be right.
    settings = read(file, environ)
    assert settings.config.queue == Config().queue
    assert ("retry", "max_s") in settings.mistaken


def test_only_what_is_set_is_to_blame() -> None:
    """A rule about two keys, of which one has its default, names the other."""
    with pytest.raises(ConfigError, match=r"^retry.max_s: initial_s must not .*RETRY__MAX_S\)$"):
        load(None, {"SIDECAR_RETRY__MAX_S": "0.1"})
    with pytest.raises(ConfigError, match=r"^admin.port: admin.port and listener.port are both"):
        load(None, {"SIDECAR_ADMIN__PORT": "8318"})


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("log.level", "INFO", "info"),
        ("log.level", " Warning ", "warning"),
        ("log.level", "WARN", "warning"),
        ("log.format", "JSON", "json"),
        ("sgp.open_writes", "AUTO", "auto"),
        ("sgp.open_writes", "No", False),
        ("network.proxy", "None", "none"),
        ("sgp.relay", "yes", True),
        ("sgp.relay", "ON", True),
        ("sgp.relay", "0", False),
        ("sgp.relay", "off", False),
        ("sgp.timeout_s", "30s", 30.0),
        ("sgp.timeout_s", "1.5 h", 5400.0),
        ("sgp.timeout_s", "1e-06", 1e-06),
        ("sgp.timeout_s", ".5", 0.5),
        ("sgp.timeout_s", "5m", 300.0),
        ("sgp.timeout_s", "2min", 120.0),
        ("sgp.linger_s", "250ms", 0.25),
        ("retry.max_age_s", "1d", 86400.0),
        ("queue.max_bytes", "64Mi", 64 * 2**20),
        ("queue.max_bytes", "64mib", 64 * 2**20),
        ("queue.max_bytes", "1 gb", 10**9),
        ("spool.max_bytes", "1Ti", 2**40),
        ("queue.max_bytes", "Auto", -1),
        ("listener.port", " 8400 ", 8400),
    ],
)
def test_other_spellings(tmp_path: Path, key: str, text: str, value: object) -> None:
    """A value that can mean one thing only is taken, from a variable and as text from a file."""
    section, name = key.split(".")
    variable = load(None, {f"SIDECAR_{section}__{name}".upper(): text})
    file = load(write(tmp_path, f'[{section}]\n{name} = "{text}"\n'), {})
    assert getattr(getattr(variable, section), name) == value
    assert file == variable


def test_values_of_another_type_in_a_file(tmp_path: Path) -> None:
    """A number of bytes, an account that is a number, and a list of one host need no quotes."""
    text = '[queue]\nmax_bytes = 1000\n[sgp]\naccount_id = 17\n[listener]\nhosts = "::1"\n'
    config = load(write(tmp_path, text), {})
    assert (config.queue.max_bytes, config.sgp.account_id) == (1000, "17")
    assert config.listener.hosts == ("::1",)


@given(st.text() | st.integers() | st.floats() | st.booleans() | st.lists(st.text()) | st.none())
def test_any_value(value: object) -> None:
    """Every key either takes a value, or refuses it with a message of one line."""
    for kind in _TYPES.values():
        with suppress(ValueError):
            convert(kind, value)
            continue
        with pytest.raises(ValueError, match=r"\A[^\n]+ (is|must) [^\n]+\Z"):
            convert(kind, value)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    """A missing file, a directory and a binary file are each reported with the path."""
    (tmp_path / "binary").write_bytes(b"\xff")
    for name, reason in (("none", "No such file"), ("", "directory"), ("binary", "utf-8")):
        with pytest.raises(ConfigError, match=reason) as caught:
            load(str(tmp_path / name), {})
        assert str(tmp_path) in str(caught.value)


def test_numbers_as_templates_write_them() -> None:
    """A whole number may be written as a float: Helm makes 1e+06 of 1000000."""
    for text in ("1e+06", "1000000.0", "1E6"):
        environ = {"SIDECAR_RETRY__MAX_ATTEMPTS": text, "SIDECAR_QUEUE__MAX_BYTES": text}
        config = load(None, environ)
        assert (config.retry.max_attempts, config.queue.max_bytes) == (10**6, 10**6)
    assert convert(_TYPES["listener", "port"], 8318.0) == 8318
    assert convert(_TYPES["queue", "max_bytes"], 1e6) == 10**6


def test_a_file_without_an_end(tmp_path: Path) -> None:
    """No more is read of a device or a huge file than a configuration can have."""
    (tmp_path / "huge").write_text("#" * 2**20 + "\n")
    for path in ("/dev/zero", f"{tmp_path}/huge"):
        with pytest.raises(ConfigError, match="larger than 1MiB: give the path of a TOML file"):
            load(path, {})


def test_a_pipe_that_nobody_writes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for, but not for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(config_load, "FILE_S", 0.05)
    with pytest.raises(ConfigError, match=r"could not be read within .* s: give the path"):
        load(str(pipe), {})
    os.close(os.open(pipe, os.O_WRONLY))  # ends the thread


def test_a_pipe(tmp_path: Path) -> None:
    """A shell's `--config <(...)` is one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=('[log]\nlevel = "error"\n',))
    writer.start()
    assert load(str(pipe), {}).log.level == "error"
    writer.join()


def test_what_may_be_a_key_is_not_shown() -> None:
    """A key given as its file has no "/" in it."""
    environ = {"SIDECAR_SGP__API_KEY_FILE": "hidden", "SIDECAR_AGENTEX__API_KEY_FILE": "/run/key"}
    shown = redacted(load(None, environ))
    assert (shown["sgp"]["api_key_file"], shown["agentex"]["api_key_file"]) == ("***", "/run/key")


def test_lists_are_shown_as_utf_8() -> None:
    """As all other text: TOML has no other bytes."""
    shown = redacted(load(None, {"SIDECAR_LISTENER__HOSTS": "a\udcff,b"}))
    assert shown["listener"]["hosts"] == ["a\ufffd", "b"]


def test_a_value_in_place_of_a_section(tmp_path: Path) -> None:
    """It is an error, also when a variable sets a key of that section."""
    with pytest.raises(ConfigError, match="queue: must be a section"):
        load(write(tmp_path, "queue = 5"), {"SIDECAR_QUEUE__MAX_BYTES": "1MiB"})


def test_a_value_in_place_of_a_section_and_a_pod_variable(tmp_path: Path) -> None:
    """It is an error, also when a variable of the pod sets a key of that section."""
    with pytest.raises(ConfigError):
        load(write(tmp_path, "agentex = 5"), {"AGENTEX_BASE_URL": "http://pod"})


@pytest.mark.parametrize("value", [b"a\nb", b"a\0b", b"a\x1bb", b"a\r\nX-Evil: 1"])
@pytest.mark.parametrize("key", ["agentex__api_key", "sgp__api_key", "sgp__account_id"])
def test_credentials_that_no_header_can_hold(key: str, value: bytes) -> None:
    """Such a credential is an error that does not repeat it."""
    with pytest.raises(ConfigError, match=key.split("__")[1]) as caught:
        load(None, {f"SIDECAR_{key.upper()}": value.decode()})
    assert value.decode() not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http://h:99999", "http://a b", "https:///x", "http://ü..x"]
)
def test_invalid_urls(url: str) -> None:
    """A URL that can't work is an error."""
    with pytest.raises(ConfigError, match="base_url"):
        load(None, {"SIDECAR_AGENTEX__BASE_URL": url})


@pytest.mark.parametrize(
    "name",
    ["AGENTEX_BASE_URL", "SGP_CLIENT_BASE_URL", "SIDECAR_SGP__BASE_URL", "SIDECAR_NETWORK__PROXY"],
)
def test_errors_about_urls_have_no_password(name: str) -> None:
    """Whatever is wrong with a URL, the error has no part of its user name and password."""
    ends = ("h?", "h#", "h:99999", "h:x", "ü..x", "[h]", "h x", "", "/34@h", "/34", " h", "h\nx")
    for scheme in ("http://", "https://", "ftp://", ""):
        for end in ends:
            with pytest.raises(ConfigError) as caught:
                load(None, {name: f"{scheme}hidden:hidden@{end}"})
            assert "hidden" not in str(caught.value)
            assert f"(set by {name})" in str(caught.value)
            assert caught.value.__context__ is None


PASSWORDS = ["hidden", "hid@den", "@hidden", "hid:den:", "hidden%40%2F%3A", "hid%den", "hïdden"]


@pytest.mark.parametrize("password", PASSWORDS)
def test_passwords_in_urls_are_not_shown(password: str) -> None:
    """`redacted` shows `***` in place of a user name and password, in base URLs and the proxy."""
    shown = redacted(
        load(
            None,
            {
                "AGENTEX_BASE_URL": f"http://user:{password}@agentex/x",
                "SGP_CLIENT_BASE_URL": f"https://{password}@sgp",
                "SIDECAR_NETWORK__PROXY": f"user:{password}@proxy:3128",
            },
        )
    )
    assert shown["agentex"]["base_url"] == "http://***@agentex/x"
    assert shown["sgp"]["base_url"] == "https://***@sgp"
    assert shown["network"]["proxy"] == "***@proxy:3128"
    for each in ("auto", "none", "http://proxy:3128"):
        assert redacted(load(None, {"SIDECAR_NETWORK__PROXY": each}))["network"]["proxy"] == each


@pytest.mark.parametrize(
    "host",
    ["", "http://h", "h:8318", "[::1]:8318", "h/x", "h x", "*", "u@h", "h\n", "fd00::1%eth0"],
)
def test_hosts_that_can_not_be_allowed(tmp_path: Path, host: str) -> None:
    """The error names the key and which entry, and does not repeat it."""
    file = write(
        tmp_path, f"[listener]\nallowed_hosts = {msgspec.json.encode(['h', host]).decode()}"
    )
    with pytest.raises(ConfigError, match=r"^listener.allowed_hosts: must be .* number 2 is not"):
        load(file, {})


def test_an_upstream_that_is_an_allowed_host_is_refused() -> None:
    """By that name agents reach the sidecar, so it would forward to itself."""
    environ = {
        "AGENTEX_BASE_URL": "http://sidecar.example:8318",
        "SIDECAR_LISTENER__ALLOWED_HOSTS": "Sidecar.Example.",
    }
    with pytest.raises(ConfigError, match=r"agentex.base_url: .* own listener"):
        load(None, environ)
    assert load(None, environ | {"SIDECAR_LISTENER__PORT": "8319"}).listener.port == 8319


def test_an_empty_url_is_unset(tmp_path: Path) -> None:
    """An empty URL means the default: it would lose everything (docs/upstreams.md S4.3 F23)."""
    file = tmp_path / "config.toml"
    file.write_text('[sgp]\nbase_url = ""\n')
    for environ in ({"SIDECAR_SGP__BASE_URL": ""}, {"SGP_CLIENT_BASE_URL": ""}):
        assert load(str(file), environ).sgp.base_url == "https://api.egp.scale.com"


@pytest.mark.parametrize(
    ("text", "size", "shown"),
    [
        ("64MiB", 64 * 2**20, "64MiB"),
        ("1.5KiB", 1536, "1536B"),
        ("2048", 2048, "2KiB"),
        ("10 MB", 10**7, "10000000B"),
        ("1024 MiB", 2**30, "1GiB"),
        ("0", 0, "0B"),
        ("auto", -1, "auto"),
    ],
)
def test_sizes(text: str, size: int, shown: str) -> None:
    """A size is parsed in any unit, and printed in the largest one that fits."""
    assert Size.parse(text) == size
    assert str(Size.parse(text)) == shown
    assert Size.parse(shown) == size


@pytest.mark.parametrize("text", ["", "-1B", "MiB", "1e", "1 M", "1PiB", -5, 1.5, True, None])
def test_invalid_sizes(text: object) -> None:
    """Anything else is an error."""
    with pytest.raises(ValueError, match=r"not a|str"):
        Size.parse(text)


def test_public_hides_secrets() -> None:
    """`redacted` shows every key as it would be configured, and secrets as `***`."""
    environ = {
        "SIDECAR_AGENTEX__API_KEY": "hidden-1",
        "SIDECAR_SGP__API_KEY": "hidden-2",
        "SIDECAR_QUEUE__MAX_BYTES": "3MiB",
    }
    config = load(None, environ)
    shown: dict[str, Any] = redacted(config)
    assert (shown["agentex"]["api_key"], shown["sgp"]["api_key"]) == ("***", "***")
    assert redacted(Config())["sgp"]["api_key"] == ""
    assert (shown["queue"]["max_bytes"], shown["listener"]["max_body"]) == ("3MiB", "32MiB")
    for text in (repr(shown), repr(config), str(config), f"{config.sgp.api_key}"):
        assert "hidden" not in text


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "LOCALHOST.", "x.localhost", "[::1]", "[0::1]", "127.1", "0.0.0.0"),
        "[::ffff:127.0.0.1]",
    ],
)
def test_an_upstream_that_is_the_sidecar_itself_is_refused(host: str) -> None:
    """With SGP_CLIENT_BASE_URL shared by all containers, it would forward to itself forever."""
    environ = {"SGP_CLIENT_BASE_URL": f"http://{host}:8318/"}
    with pytest.raises(ConfigError, match=r"sgp.base_url: .* own listener"):
        load(None, environ)
    assert load(None, environ | {"SIDECAR_LISTENER__PORT": "8319"}).listener.port == 8319


def test_headers_in_a_file_and_in_a_variable(tmp_path: Path) -> None:
    """A table has the values as they are; in a variable they are percent-encoded. None is shown."""
    file = write(tmp_path, '[otlp]\nheaders = { Authorization = "Bearer a%20b", x-scope = "s" }\n')
    variable = {"SIDECAR_OTLP__HEADERS": " Authorization = Bearer%20a%2520b , X-Scope=s=1, "}
    by_file, by_variable = load(file, {}), load(None, variable)
    assert by_file.otlp.headers == {
        "authorization": Secret("Bearer a%20b"),
        "x-scope": Secret("s"),
    }
    assert by_variable.otlp.headers == {
        "authorization": Secret("Bearer a%20b"),
        "x-scope": Secret("s=1"),
    }
    assert redacted(by_file)["otlp"]["headers"] == {"authorization": "***", "x-scope": "***"}
    assert "Bearer" not in repr(by_file)


def test_the_collectors_own_variable_is_not_read() -> None:
    """Other parts of the pod use it for what they send themselves."""
    assert load(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}).otlp.missing


def test_what_is_hidden() -> None:
    """In any order, and for each upstream by itself."""
    config = load(None, {"SIDECAR_OTLP__HIDE": "Output, input", "SIDECAR_SGP__HIDE": "data"})
    sections = config.agentex, config.sgp, config.otlp
    assert [section.hidden for section in sections] == [0, 4, 3]

"""Configuration: the sources of a value, and the errors for invalid ones."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sidecar.app import App
from sidecar.config import AUTO, Config, ConfigError, Size, redacted
from sidecar.config_load import load
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
    ("listener", "port", "70000", "listener.port: Expected `int` <= 65535"),
    ("listener", "port", "http", "listener.port: Expected `int`"),
    ("listener", "max_body", "12 parsecs", "listener.max_body: expected a size"),
    ("listener", "max_body", "0MiB", "max_body must be a size above 0"),
    ("listener", "max_body", "auto", "max_body must be a size above 0"),
    ("listener", "body_timeout_s", "0", "listener.body_timeout_s: Expected `float` > 0"),
    ("queue", "max_bytes", "0B", "max_bytes must be a size above 0"),
    ("queue", "start_hold_s", "-1", "queue.start_hold_s: Expected `float` >= 0"),
    ("queue", "start_hold_s", "nan", "queue.start_hold_s: Expected `float`"),
    ("queue", "open_span_ttl_s", "1", "open_span_ttl_s must not be less than start_hold_s"),
    ("spool", "max_bytes", "1KiB", "max_bytes must be at least 1MiB"),
    ("spool", "sync", "never", "spool.sync: Invalid enum value"),
    ("listener", "hosts", " , ", "hosts must not be empty"),
    ("listener", "allowed_hosts", "http://h", "number 1 is not"),
    ("listener", "allowed_hosts", "h,h:8318", "number 2 is not"),
    ("agentex", "base_url", "agentex:5003", "base_url must be a URL"),
    ("agentex", "base_url", "http://h?", "base_url must have no query and no fragment (? or #)"),
    ("sgp", "base_url", "http://h/x#", "base_url must have no query and no fragment (? or #)"),
    ("sgp", "base_url", "http://u:1/2@h", "base_url must have %2F for a / in its password"),
    ("network", "proxy", "automatic://p", "proxy: automatic:// proxies can't be used"),
    ("network", "proxy", "http://p#", 'must have no query and no fragment (? or #), or "auto"'),
    ("network", "proxy", "u:1/2@p", "proxy: a proxy must have %2F for a / in its password"),
    ("agentex", "max_concurrency", "0", "agentex.max_concurrency: Expected `int` >= 1"),
    ("sgp", "base_url", "ftp://sgp", "base_url must be a URL"),
    ("sgp", "max_batch", "1001", "sgp.max_batch: Expected `int` <= 1000"),
    ("sgp", "max_batch_bytes", "0B", "max_batch_bytes must be a size above 0"),
    ("sgp", "open_writes", "maybe", "sgp.open_writes: Invalid"),
    ("sgp", "relay", "perhaps", "sgp.relay: Expected `bool`"),
    ("retry", "initial_s", "31", "initial_s must not be more than max_s"),
    ("retry", "max_attempts", "x", "retry.max_attempts: Expected `int`"),
    ("dead_letters", "max_bytes", "0B", "max_bytes must be a size above 0"),
    ("shutdown", "grace_s", "soon", "shutdown.grace_s: Expected `float`"),
    ("log", "level", "loud", "log.level: Invalid enum value 'loud'"),
    ("log", "format", "xml", "log.format: Invalid enum value 'xml'"),
    ("queue", "max_events", "5", "SIDECAR_QUEUE__MAX_EVENTS: queue has no such key"),
]


@pytest.mark.parametrize(("section", "key", "text", "message"), BAD)
def test_bad_values_by_environment(section: str, key: str, text: str, message: str) -> None:
    """A bad value is a `ConfigError` with the section, the key where possible, and the reason."""
    name = f"SIDECAR_{section}__{key}".upper()
    with pytest.raises(ConfigError) as caught:
        load(None, {name: text})
    assert message in str(caught.value)
    assert section in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[queue]\nmax_byte = 1", "queue: Object contains unknown field `max_byte`"),
        ("[queues]", "the top level: Object contains unknown field `queues`"),
        ("[queue]\nmax_bytes = 1000", "queue.max_bytes: expected a size"),
        ('queue = "auto"', "queue: Expected `object`, got `str`"),
        ("[sgp]\napi_key = 5", "sgp.api_key: expected secret"),
        ("[listener]\nhosts = []", "listener: hosts must not be empty"),
        ("[listener\n", "line 1"),
        ("\0", "line 1"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    """A bad value in a file is a `ConfigError` that also names the file."""
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert message in str(caught.value)
    assert file in str(caught.value)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    """A missing file, a directory and a binary file are each reported with the path."""
    (tmp_path / "binary").write_bytes(b"\xff")
    for name, reason in (("none", "No such file"), ("", "directory"), ("binary", "utf-8")):
        with pytest.raises(ConfigError, match=reason) as caught:
            load(str(tmp_path / name), {})
        assert str(tmp_path) in str(caught.value)


def test_a_value_in_place_of_a_section(tmp_path: Path) -> None:
    """It is an error, also when a variable sets a key of that section."""
    with pytest.raises(ConfigError, match="queue is not a section"):
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
            assert caught.value.__suppress_context__


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
    with pytest.raises(ConfigError, match=r"^listener: allowed_hosts must be .* number 2 is not"):
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


async def test_one_upstream_is_needed() -> None:
    """A sidecar without an upstream does not start; the error names what to set."""
    with pytest.raises(ConfigError, match=r"AGENTEX_BASE_URL.*SGP_API_KEY"):
        App(load(None, {"SGP_API_KEY": "only a key"}), {})


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


@pytest.mark.parametrize("text", ["", "-1B", "1TiB", "MiB", "1e3", "1 M", "64mib", 5, None])
def test_invalid_sizes(text: object) -> None:
    """Anything else is an error."""
    with pytest.raises(ValueError, match="64MiB"):
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

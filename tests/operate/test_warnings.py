"""Warnings about a configuration that is valid but allows what may surprise."""

import pytest

from sidecar.config import Config, ListenerConfig
from sidecar.config_upstreams import OtlpConfig, SgpConfig
from sidecar.operate.warnings import warnings_of


def about(*hosts: str, pass_through: bool = False) -> list[str]:
    """The warnings about a listener on `hosts`."""
    listener = ListenerConfig(hosts=hosts, pass_through=pass_through)
    return list(warnings_of(Config(listener=listener), {}))


def test_the_default_is_no_surprise() -> None:
    """Neither is anything that only this machine can reach."""
    assert list(warnings_of(Config(), {})) == []
    assert about("localhost", "LocalHost.", "127.0.0.1", "127.1", "127.9.9.9", "::1") == []
    assert about("127.0.0.1", pass_through=True) == []


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "10.1.2.3", "fd00::1", "fe80::1%eth0", "agent.example", "localhost.example"],
)
def test_an_address_that_others_may_reach(host: str) -> None:
    """One sentence names the setting, the address, and what anyone who reaches it can do."""
    (text,) = about("127.0.0.1", host)
    assert text.startswith(f"listener.hosts: {host} is not a loopback address: ")
    assert "without any credential, write and replace spans" in text
    assert "SGP" not in text


def test_every_address() -> None:
    """An empty host is every address, and is shown in quotes."""
    (text,) = about("", "::1", "10.1.2.3")
    assert text.startswith('listener.hosts: "", 10.1.2.3 are not loopback addresses: ')


@pytest.mark.parametrize("relay", [False, True])
def test_spans_that_pass_by_otlp(relay: bool) -> None:
    """Without the SGP lane, spans of its SDK that are passed through do not reach OTLP."""
    listener, sgp = ListenerConfig(pass_through=True), SgpConfig(relay=relay)
    otlp = OtlpConfig(endpoint="http://127.0.0.1:4318")
    found = list(warnings_of(Config(listener=listener, sgp=sgp, otlp=otlp), {}))
    assert [text.partition(":")[0] for text in found if "OTLP" in text] == ["sgp is off"] * (
        not relay
    )


def test_pass_through_opens_more() -> None:
    """With `listener.pass_through`, so does the way to SGP's whole API."""
    (text,) = about("0.0.0.0", pass_through=True)
    assert text.endswith("and use SGP's whole API through it")

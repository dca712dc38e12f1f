"""Credentials: which one is used, when it changes, and that none is shown."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sidecar.credentials import Credentials, Secret
from sidecar.sinks.credential_file import CredentialFile, key_as

KEY, ACCOUNT = "x-api-key", "x-selected-account-id"


def sgp(key: str = "", account: str = "", **options: Any) -> Credentials:
    """Credentials with two headers, both required."""
    configured = {KEY: Secret(key), ACCOUNT: Secret(account)}
    return Credentials(configured, **{"relay": True, "required": True, **options})


def test_a_secret_is_never_shown() -> None:
    """Only `reveal` returns the string."""
    secret = Secret("hidden")
    for text in (str(secret), repr(secret), f"{secret}", f"{secret!r}", repr([secret])):
        assert "hidden" not in text
    assert secret.reveal() == "hidden"
    assert not hasattr(secret, "__dict__")


def test_secrets_are_equal_by_their_text() -> None:
    """Secrets with equal strings are equal; an empty one is false."""
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert (bool(Secret("a")), bool(Secret(""))) == (True, False)


def received(headers: dict[str, str]) -> dict[bytes, bytes]:
    """The headers of a request, as the server parses them."""
    return {name.encode(): value.encode() for name, value in headers.items()}


def test_missing_headers() -> None:
    """If required, no headers without all of them; otherwise, the ones that are known."""
    assert sgp("k", "a").headers() == {KEY: "k", ACCOUNT: "a"}
    assert sgp("k").headers() is None
    assert sgp("k", required=False).headers() == {KEY: "k"}
    assert sgp(required=False).headers() == {}


def test_an_agent_supplies_what_is_not_configured() -> None:
    """Each header that is not configured comes from the agent; configured ones stay."""
    credentials = sgp(account="mine")
    theirs = received({KEY: "theirs", ACCOUNT: "mine", "authorization": "theirs"})
    assert credentials.offer(theirs)
    assert credentials.headers() == {KEY: "theirs", ACCOUNT: "mine"}
    assert not credentials.offer(theirs)


def test_the_key_of_another_account_is_not_used() -> None:
    """A request that names another account than the configured one brings no key."""
    credentials = sgp(account="mine")
    assert not credentials.offer(received({KEY: "theirs", ACCOUNT: "theirs"}))
    assert credentials.headers() is None
    assert credentials.offer(received({KEY: "ours"}))
    assert credentials.headers() == {KEY: "ours", ACCOUNT: "mine"}


def test_the_last_one_is_used() -> None:
    """A new value replaces the old one; the same, a missing or an empty one changes nothing."""
    credentials = sgp(account="a")
    seen = []
    for headers in ({KEY: "1"}, {KEY: "1"}, {}, {KEY: ""}, {KEY: "2"}):
        changed = credentials.offer(received(headers))
        seen.append((changed, credentials.headers()))
    first, last = {KEY: "1", ACCOUNT: "a"}, {KEY: "2", ACCOUNT: "a"}
    assert seen == [(True, first), (False, first), (False, first), (False, first), (True, last)]


def test_headers_in_separate_requests() -> None:
    """Two requests can bring one header each."""
    credentials = sgp()
    credentials.offer(received({KEY: "k"}))
    assert credentials.headers() is None
    credentials.offer(received({ACCOUNT: "a"}))
    assert credentials.headers() == {KEY: "k", ACCOUNT: "a"}


def test_without_relay_offers_are_ignored() -> None:
    """An agent's credential is used only with `relay`."""
    credentials = sgp(relay=False)
    assert not credentials.offer(received({KEY: "k", ACCOUNT: "a"}))
    assert credentials.headers() is None


def read(file: CredentialFile) -> Callable[[], Mapping[str, Secret]]:
    """The headers that are in the file at each call."""

    def headers() -> Mapping[str, Secret]:
        with suppress(OSError, UnicodeDecodeError):
            file._files.read()
        return file.headers

    return headers


def age(file: Path, text: str, seconds: int) -> None:
    """Write a file and set its modification time, whatever the clock's resolution."""
    file.write_text(text)
    os.utime(file, (seconds, seconds))


async def test_a_key_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """A rotated key is used from the next refresh; rewriting the same key is not a change."""
    file = tmp_path / "key"
    age(file, "first\n", 1000)
    credentials = sgp(account="a", in_file=read(CredentialFile(str(file), key_as(KEY))))
    assert credentials.headers() == {KEY: "first", ACCOUNT: "a"}
    assert not credentials.refresh()
    age(file, " second ", 2000)
    assert credentials.refresh()
    assert credentials.headers() == {KEY: "second", ACCOUNT: "a"}
    age(file, "second", 3000)
    assert not credentials.refresh()
    assert credentials.headers() == {KEY: "second", ACCOUNT: "a"}


async def test_a_key_file_wins_over_a_key_and_an_agent(tmp_path: Path) -> None:
    """The key in the file wins over a configured key and over an agent's."""
    file = tmp_path / "key"
    file.write_text("file")
    credentials = sgp("configured", "a", in_file=read(CredentialFile(str(file), key_as(KEY))))
    credentials.offer(received({KEY: "theirs"}))
    assert credentials.headers() == {KEY: "file", ACCOUNT: "a"}


async def test_a_key_file_that_appears_later(tmp_path: Path) -> None:
    """A missing file is waited for; if it is emptied or deleted later, the last key stays."""
    file = tmp_path / "key"
    credentials = sgp(account="a", in_file=read(CredentialFile(str(file), key_as(KEY))))
    assert credentials.headers() is None
    age(file, "", 1000)
    assert not credentials.refresh()
    assert credentials.headers() is None
    age(file, "key", 2000)
    assert credentials.refresh()
    assert credentials.headers() == {KEY: "key", ACCOUNT: "a"}
    age(file, "\n", 3000)
    assert not credentials.refresh()
    file.unlink()
    assert not credentials.refresh()
    assert credentials.headers() == {KEY: "key", ACCOUNT: "a"}


@pytest.mark.parametrize("junk", [b"\xff\xfe", b"two\nlines", b"\0", b"a\x1b"])
async def test_a_key_file_with_junk(tmp_path: Path, junk: bytes) -> None:
    """If the file has no valid key, the last one stays in use."""
    file = tmp_path / "key"
    age(file, "key", 1000)
    credentials = sgp(account="a", in_file=read(CredentialFile(str(file), key_as(KEY))))
    file.write_bytes(junk)
    os.utime(file, (2000, 2000))
    assert not credentials.refresh()
    assert credentials.headers() == {KEY: "key", ACCOUNT: "a"}

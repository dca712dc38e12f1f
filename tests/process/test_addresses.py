"""Base URLs, and hosts in all their spellings."""

import asyncio
from itertools import product
from urllib.parse import quote

import pytest

from sidecar.process.addresses import (
    ListenError,
    canonical_host,
    is_host,
    is_local,
    is_loopback,
    listen,
    masked,
    parse_base_url,
)
from tests.support.upstream_connection import on_both_loops

HIDDEN = "hidden"
SHAPE = "must be a URL such as http://host:port/path"
QUERY = "must have no query and no fragment (? or #)"
SPACES = "must have no spaces or control characters"
LABEL = "must have a host whose names between dots have 1 to 63 characters"
SLASH = "must have %2F for a / in its password, and %40 for an @ in its path"


@pytest.mark.parametrize(
    ("text", "scheme", "authority", "port", "path"),
    [
        ("http://h", "http", "h", 80, ""),
        ("https://h/", "https", "h", 443, "/"),
        ("HTTP://H.Example:5003/a/b", "http", "h.example:5003", 5003, "/a/b"),
        ("http://h:", "http", "h", 80, ""),
        ("http://h:65535", "http", "h:65535", 65535, ""),
        ("https://h:80", "https", "h:80", 80, ""),
        ("http://[::1]:5003/x", "http", "[::1]:5003", 5003, "/x"),
        ("http://bücher.example/ü", "http", "xn--bcher-kva.example", 80, "/%C3%BC"),
        ("http://h/a%20b%40c:d", "http", "h", 80, "/a%20b%40c:d"),
    ],
)
def test_base_urls(text: str, scheme: str, authority: str, port: int, path: str) -> None:
    """Host and scheme in lower case, the port of the scheme by default, the path encoded."""
    url = parse_base_url(text)
    assert (url.scheme, url.authority, url.port, url.path) == (scheme, authority, port, path)
    assert (url.user, url.password) == (None, None)


@pytest.mark.parametrize("password", ["p", "p@w", "p/w", "p:w", "p?w#", "%", "%2F", "ü", "", "p w"])
def test_passwords(password: str) -> None:
    """Percent-encoded, a user name and a password can have any character."""
    url = parse_base_url(f"http://{quote(password, safe='')}:{quote(password, safe='')}@h/x")
    assert (url.host, url.path, url.user, url.password) == ("h", "/x", password, password)


@pytest.mark.parametrize("password", ["p@w", "p:w", "p@w:x", ":", "@", "p%zzw", "ü"])
def test_passwords_that_need_no_encoding(password: str) -> None:
    """The last "@" ends the password, and only the first ":" begins it."""
    url = parse_base_url(f"http://u:{password}@h:1/x")
    assert (url.host, url.port, url.user, url.password) == ("h", 1, "u", password)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        # At the very end, too: a path would be appended to the query or the fragment.
        (f"http://u:{HIDDEN}@h?", QUERY),
        (f"http://u:{HIDDEN}@h#", QUERY),
        (f"http://u:{HIDDEN}@h/x?", QUERY),
        (f"http://u:{HIDDEN}@h/x#", QUERY),
        (f"http://h/x?key={HIDDEN}", QUERY),
        (f"http://h/x#{HIDDEN}", QUERY),
        (f"http://u:{HIDDEN}?x@h", QUERY),
        (f"http://u:{HIDDEN}#x@h", QUERY),
        (f"?{HIDDEN}", QUERY),
        # IDNA: an empty label, one that is too long, and characters that no name can have.
        (f"http://u:{HIDDEN}@ü..example", SHAPE),
        (f"http://u:{HIDDEN}@{'ü' * 64}.example", SHAPE),
        (f"http://u:{HIDDEN}@ü\u0378.example", SPACES),
        (f"http://u:{HIDDEN}@ü\u05d0.example", SHAPE),
        (f"http://u:{HIDDEN}@h\u2100x.example", SHAPE),
        # Names that no lookup, and no TLS, can have.
        ("http://h..example", LABEL),
        ("http://.example", LABEL),
        (f"http://u:{HIDDEN}@{'a' * 64}.example", LABEL),
        # Ports.
        (f"http://u:{HIDDEN}@h:65536", SHAPE),
        (f"http://u:{HIDDEN}@h:99999999999", SHAPE),
        (f"http://u:{HIDDEN}@h:0", SHAPE),
        (f"http://u:{HIDDEN}@h:-1", SHAPE),
        (f"http://u:{HIDDEN}@h:http", SHAPE),
        (f"http://u:{HIDDEN}@h:8\u0663", SHAPE),
        (f"http://h:{HIDDEN}", SHAPE),
        # A slash in a password ends the host.
        (f"http://u:{HIDDEN}/12@h", SHAPE),
        (f"http://u:/{HIDDEN}@h", SLASH),
        (f"http://u:12/{HIDDEN}@h", SLASH),
        (f"http://u/{HIDDEN}@h", SLASH),
        (f"http://h/{HIDDEN}@x", SLASH),
        (f"http://u:{HIDDEN}[@h", SHAPE),
        (f"http://u:{HIDDEN}@[::1", SHAPE),
        (f"http://u:{HIDDEN}@[h]", SHAPE),
        (f"http://u:{HIDDEN}@", SHAPE),
        (f"http://u:{HIDDEN}@/x", SHAPE),
        (f"u:{HIDDEN}@h", SHAPE),
        (f"ftp://u:{HIDDEN}@h", SHAPE),
        (f"http:u:{HIDDEN}@h", SHAPE),
        (f"{HIDDEN}://h", SHAPE),
        (f"http://u:{HIDDEN} @h", SPACES),
        (f" http://u:{HIDDEN}@h", SPACES),
        (f"http://u:{HIDDEN}@h\n", SPACES),
        (f"http://u:{HIDDEN}\0@h", SPACES),
        (f"http://u:{HIDDEN}\udcff@h", SPACES),
        ("", SHAPE),
    ],
)
def test_errors_have_no_part_of_the_url(text: str, reason: str) -> None:
    """The error is one of a few sentences, and nothing chained to it is shown."""
    with pytest.raises(ValueError, match="must ") as caught:
        parse_base_url(text)
    assert str(caught.value) == reason
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://h:1/x", "http://h:1/x"),
        (f"http://u:{HIDDEN}@h:1/x", "http://***@h:1/x"),
        (f"http://{HIDDEN}@h", "http://***@h"),
        (f"http://:{HIDDEN}@h", "http://***@h"),
        (f"http://u:{HIDDEN}@{HIDDEN}@h", "http://***@h"),
        (f"http://u:{HIDDEN}/{HIDDEN}@h/x", "http://***@h/x"),
        (f"http://u:{HIDDEN}?{HIDDEN}#@h", "http://***@h"),
        (f"http://u:{quote(HIDDEN + '@/:', safe='')}@h", "http://***@h"),
        (f"u:{HIDDEN}@h:1", "***@h:1"),
        ("auto", "auto"),
        ("", ""),
    ],
)
def test_masked(text: str, shown: str) -> None:
    """Whatever a user name and a password have in them, "***" is shown in their place."""
    assert masked(text) == shown


@pytest.mark.parametrize(
    ("host", "canonical"),
    [
        ("H.Example", "h.example"),
        ("h.example.", "h.example"),
        ("under_score", "under_score"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("[FD00:0::1]", "fd00::1"),
        ("fd00:0:0::1", "fd00::1"),
        ("10.1.2.3", "10.1.2.3"),
        ("127.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("[::ffff:10.1.2.3]", "10.1.2.3"),
        ("", ""),
        ("ü..x", "ü..x"),
        ("\0", "\0"),
    ],
)
def test_canonical_hosts(host: str, canonical: str) -> None:
    """All spellings of a host have one form, and what is no host stays as it is."""
    assert canonical_host(host) == canonical
    assert canonical_host(canonical) == canonical


HOSTS = [
    *("h", "H.Example.", "under_score", "x-1.y", "bücher.example", "a" * 63),
    *("10.1.2.3", "127.1", "0.0.0.0", "::", "FD00::1", "[fd00::1]", "[::ffff:10.1.2.3]"),
]
NO_HOSTS = [
    *("", ".", "h..x", ".h", "*", "*.h", "-h", "h-", "a" * 64, "ü..x", "h\udcff", "%41"),
    *("h:8318", "[::1]:8318", "10.1.2.3:80", "http://h", "//h", "h/", "h/x", "h?x", "h#x", "u@h"),
    *("a,b", "a b", " h", "h ", "h\n", "h\0", "h\x1b[m", "h\xa0x", "10.0.0.0/8"),
    *("[h]", "[10.1.2.3]", "[::1", "::1]", "[[::1]]", "[]", "fd00::1%eth0", "[fd00::1%eth0]"),
]


def test_hosts() -> None:
    """Names and addresses, IPv6 with or without brackets; no scheme, port, path, zone or blank."""
    assert [text for text in HOSTS if not is_host(text)] == []
    assert [text for text in NO_HOSTS if is_host(text)] == []


LOOPBACK = [
    *("localhost", "LocalHost.", "x.localhost", "127.0.0.1", "127.9.9.9", "127.1", "2130706433"),
    *("::1", "[::1]", "0:0::1", "::ffff:127.0.0.1"),
]
UNSPECIFIED = ["0.0.0.0", "::", "[::]", "0", "::ffff:0.0.0.0"]
ELSEWHERE = [
    *("", "h", "localhost.h", "notlocalhost", "127.h", "127.0.0.1.h"),
    *("10.1.2.3", "128.0.0.1", "169.254.1.1", "::2", "fe80::1%eth0"),
]


def test_loopback() -> None:
    """Only names and addresses that no other machine has."""
    assert [host for host in LOOPBACK if not is_loopback(host)] == []
    assert [host for host in UNSPECIFIED + ELSEWHERE if is_loopback(host)] == []


def test_this_machine() -> None:
    """As an upstream, an unspecified address and our own hosts are this machine as well."""
    ours = ("Sidecar.Svc", "[FD00:0::1]")
    local = [*LOOPBACK, *UNSPECIFIED, "sidecar.svc.", "fd00::1"]
    assert [host for host in local if not is_local(host, ours)] == []
    assert [host for host in ELSEWHERE if is_local(host, ours)] == []


TWICE = [
    ("127.0.0.1", "127.0.0.1"),
    ("127.0.0.1", "127.1"),
    ("0.0.0.0", "127.0.0.1"),
    ("127.0.0.1", "0.0.0.0"),
]


@on_both_loops
async def test_one_address_twice() -> None:
    """It is refused, as no other process's: also where the port is only tried out."""
    for hosts, serve in product(TWICE, (True, False)):
        with pytest.raises(ListenError, match="Address already in use") as caught:
            await listen(asyncio.Protocol, hosts, 0, serve=serve)
        assert caught.value.twice


@on_both_loops
async def test_what_is_no_host() -> None:
    """It is an error as for a name that nobody knows."""
    for host in ("a..b", "x" * 64, "a\0b"):
        with pytest.raises(ListenError):
            await listen(asyncio.Protocol, [host], 0)


@on_both_loops
async def test_different_addresses() -> None:
    """They do not exclude each other."""
    servers, port = await listen(asyncio.Protocol, ["127.0.0.1", "127.0.0.2"], 0)
    assert {each.sockets[0].getsockname() for each in servers} == {
        ("127.0.0.1", port),
        ("127.0.0.2", port),
    }
    for each in servers:
        each.close()

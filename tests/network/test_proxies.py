"""Which proxy a URL is reached through. tests/e2e/test_proxy_rules.py asks httpx the same."""

from base64 import b64encode
from collections.abc import Mapping

import pytest

from sidecar.network.proxies import AUTO, NONE, Proxy, find_proxy, parse_proxy
from sidecar.process.addresses import parse_base_url

P = "http://p:3128"
HIDDEN = "hidden"


def found(
    url: str, environ: Mapping[str, str], proxy: str = AUTO, no_proxy: str = ""
) -> tuple[str, str] | None:
    """The proxy for a URL, as its own URL and its source."""
    chosen = find_proxy(parse_base_url(url), proxy, no_proxy, environ)
    return chosen and (str(chosen), chosen.source)


def is_direct(url: str, entries: str) -> bool:
    """Whether `NO_PROXY=entries` exempts the URL, read from the variable and from the setting."""
    chosen = found(url, {"ALL_PROXY": P, "NO_PROXY": entries})
    assert found(url, {}, P, entries) == (chosen and (P, "network.proxy"))
    return chosen is None


VARIABLES: list[tuple[str, dict[str, str], str | None]] = [
    ("http://x", {}, None),
    ("http://x", {"HTTP_PROXY": P}, "HTTP_PROXY"),
    ("http://x", {"HTTPS_PROXY": P}, None),
    ("https://x", {"HTTPS_PROXY": P}, "HTTPS_PROXY"),
    ("https://x", {"HTTP_PROXY": P}, None),
    ("https://x", {"ALL_PROXY": P}, "ALL_PROXY"),
    ("https://x", {"ALL_PROXY": "http://other", "HTTPS_PROXY": P}, "HTTPS_PROXY"),
    ("http://x", {"HTTP_PROXY": "http://other", "http_proxy": P}, "http_proxy"),
    ("http://x", {"ALL_PROXY": "http://other", "all_proxy": P}, "all_proxy"),
    ("http://x", {"HTTP_PROXY": P, "http_proxy": ""}, None),
    ("http://x", {"HTTP_PROXY": "http://other", "http_proxy": "", "all_proxy": P}, "all_proxy"),
    ("http://x", {"HTTP_PROXY": "", "ALL_PROXY": P}, "ALL_PROXY"),
    ("http://x", {"HTTP_PROXY": f" {P}\n"}, "HTTP_PROXY"),
    ("http://127.0.0.1:5003", {"HTTP_PROXY": P}, "HTTP_PROXY"),
    ("http://localhost:5003", {"HTTP_PROXY": P}, "HTTP_PROXY"),
    ("http://x", {"FTP_PROXY": P, "SOCKS_PROXY": P, "PROXY": P}, None),
    # In a CGI script, HTTP_PROXY is what the client sent as a header "Proxy".
    ("http://x", {"HTTP_PROXY": P, "REQUEST_METHOD": "GET"}, None),
    ("http://x", {"HTTP_PROXY": P, "ALL_PROXY": P, "REQUEST_METHOD": "GET"}, "ALL_PROXY"),
    ("http://x", {"http_proxy": P, "REQUEST_METHOD": "GET"}, "http_proxy"),
    ("https://x", {"HTTPS_PROXY": P, "REQUEST_METHOD": "GET"}, "HTTPS_PROXY"),
]


@pytest.mark.parametrize(("url", "environ", "source"), VARIABLES)
def test_variables(url: str, environ: dict[str, str], source: str | None) -> None:
    """The scheme's variable wins over the one for all, and lower case over capitals."""
    assert found(url, environ) == (source and (P, source))


def test_no_proxy_in_lower_case_wins() -> None:
    """`no_proxy` wins over `NO_PROXY`, even if it is empty."""
    environ = {"HTTP_PROXY": P, "NO_PROXY": "x"}
    assert found("http://x", environ) is None
    assert found("http://x", environ | {"no_proxy": ""}) == (P, "HTTP_PROXY")
    assert found("http://y", environ | {"no_proxy": "y"}) is None
    assert found("http://x", environ | {"no_proxy": "y"}) == (P, "HTTP_PROXY")


def test_settings_win_over_variables() -> None:
    """A configured proxy is for every URL, "none" for none; `no_proxy` replaces the variable."""
    environ = {"HTTPS_PROXY": "http://other", "NO_PROXY": "x"}
    assert found("https://y", environ, P) == (P, "network.proxy")
    assert found("http://y", environ, P) == (P, "network.proxy")
    assert found("https://x", environ, P) is None
    assert found("https://x", environ, P, "y") == (P, "network.proxy")
    assert found("https://y", environ, NONE) is None
    assert found("https://y", environ, AUTO, "y") is None


DIRECT = [
    ("http://x", "x"),
    ("http://x", "a, x ,b"),
    ("http://x", "*"),
    ("http://x", "a,*"),
    ("http://X.example", "x.EXAMPLE"),
    ("http://a.b.example", "example"),
    ("http://a.b.example", ".example"),
    ("http://a.b.example", "b.example"),
    ("http://x.example:8080", "example"),
    ("http://x.example:8080", "example:8080"),
    ("http://x.example:443", "example:443"),
    ("https://x.example:8443", "https://x.example"),
    ("https://x.example", "https://x.example:443"),
    ("http://x.example:8080", "all://x.example:8080/path"),
    ("http://x.example", "http://*.example"),
    ("http://x.example", "http://*x.example"),
    ("http://x:8080", ":8080"),
    ("https://x", "https://"),
    ("http://localhost", "LOCALHOST"),
    ("http://127.0.0.1:8318", "127.0.0.1"),
    ("http://127.0.0.1:8318", "127.0.0.1:8318"),
    ("http://[::1]:8318", "::1"),
    ("http://[fd00::a]", "FD00:0::A"),
    # What httpx does not have.
    ("http://10.1.2.3", "10.0.0.0/8"),
    ("http://10.1.2.3:5003", "10.1.2.3/32"),
    ("http://10.1.2.3", "10.1.2.3/255.255.0.0"),
    ("http://[fd00::1]", "fd00::/8"),
    ("http://[fd00::1]", "[fd00::]/8"),
    ("http://[::1]", "[::1]"),
    ("http://[::1]:8318", "[::1]:8318"),
    ("https://[::1]:8443", "https://[::1]:8443"),
]
PROXIED = [
    ("http://x", ""),
    ("http://x", " , ,"),
    ("http://x", "y"),
    ("http://wwwexample.com", "example.com"),
    ("http://example.com", ".example.com"),
    ("http://x.example.com", "*.example.com"),
    ("http://example.com.evil", "example.com"),
    ("http://x.example:8081", "example:8080"),
    ("http://x.example", "example:80"),
    ("http://x.example", "https://x.example"),
    ("http://y.x.example", "http://x.example"),
    ("http://x.localhost", "localhost"),
    ("http://127.0.0.2", "127.0.0.1"),
    ("http://11.1.2.3", "10.0.0.0/8"),
    ("http://x", "0.0.0.0/0"),
    ("http://10.1.2.3", "::/0"),
    ("http://[::1]", "0.0.0.0/0"),
    ("http://[::1]:8319", "[::1]:8318"),
    ("http://[::2]", "[::1]:8318"),
    # What means nothing is ignored.
    ("http://x", "x:y"),
    ("http://x", "[x"),
    ("http://x", "[::1"),
    ("http://x", f"x:{'9' * 5000}"),
    ("http://x", "\x1b"),
    ("http://x", "ü..x"),
    ("http://x", "10.0.0.0/99"),
    ("http://x", "://"),
]


@pytest.mark.parametrize(("url", "entries"), DIRECT)
def test_exempt(url: str, entries: str) -> None:
    """Names, names below a domain, ports, schemes, addresses and networks of NO_PROXY."""
    assert is_direct(url, entries)


@pytest.mark.parametrize(("url", "entries"), PROXIED)
def test_not_exempt(url: str, entries: str) -> None:
    """What NO_PROXY does not have is reached through the proxy."""
    assert not is_direct(url, entries)


def test_an_entry_for_a_scheme_and_the_variables() -> None:
    """As in httpx, it cancels that scheme's variable: the one for all is less specific."""
    both = {"HTTPS_PROXY": P, "ALL_PROXY": P}
    assert found("https://x", both | {"NO_PROXY": "https://"}) is None
    assert found("https://x", both | {"NO_PROXY": "all://"}) == (P, "HTTPS_PROXY")
    assert found("http://x", both | {"NO_PROXY": "all://"}) is None
    assert found("http://x", both | {"NO_PROXY": "https://"}) == (P, "ALL_PROXY")


@pytest.mark.parametrize(
    ("text", "host", "port", "credential"),
    [
        ("http://p:3128", "p", 3128, ""),
        ("p:3128", "p", 3128, ""),
        ("http://p", "p", 80, ""),
        ("HTTP://P:3128/", "p", 3128, ""),
        ("http://[fd00::1]:3128", "fd00::1", 3128, ""),
        ("[fd00::1]:3128", "fd00::1", 3128, ""),
        ("http://bücher.example:3128", "xn--bcher-kva.example", 3128, ""),
        ("http://u:pw@p:3128", "p", 3128, "u:pw"),
        ("u:pw@p:3128", "p", 3128, "u:pw"),
        ("u:pw@[fd00::1]", "fd00::1", 80, "u:pw"),
        ("http://u%40x:p%2Fw%3A%25@p:3128", "p", 3128, "u@x:p/w:%"),
        ("http://u:p@w:x@p:3128", "p", 3128, "u:p@w:x"),
        ("http://u@p", "p", 80, "u:"),
        ("http://:pw@p", "p", 80, ":pw"),
        ("http://@p", "p", 80, ""),
        ("http://ü:%C3%BC@p", "p", 80, "ü:ü"),
    ],
)
def test_the_url_of_a_proxy(text: str, host: str, port: int, credential: str) -> None:
    """Its scheme may be missing, its port is 80 without one, and its credential is decoded."""
    proxy = parse_proxy(text, "HTTP_PROXY")
    encoded = f"Basic {b64encode(credential.encode()).decode()}" if credential else ""
    assert (proxy.host, proxy.port, proxy.authorization.reveal()) == (host, port, encoded)
    assert proxy.source == "HTTP_PROXY"


def test_a_credential_is_never_shown() -> None:
    """Neither by `str`, which is the URL that people see, nor by `repr`."""
    proxy = parse_proxy(f"http://{HIDDEN}:{HIDDEN}@p:3128", "HTTP_PROXY")
    bare = b64encode(f"{HIDDEN}:{HIDDEN}".encode()).decode()
    for text in (str(proxy), repr(proxy), f"{proxy}", f"{proxy!r}", repr([proxy])):
        assert HIDDEN not in text
        assert bare not in text
    assert str(proxy) == "http://p:3128"
    assert str(parse_proxy(f"{HIDDEN}@[FD00::1]", "")) == "http://[fd00::1]:80"


UNUSABLE = [
    (f"https://u:{HIDDEN}@p:3128", "https:// proxies can't be used, only http:// proxies"),
    (f"HTTPS://u:{HIDDEN}@p:3128", "https:// proxies can't be used, only http:// proxies"),
    (f"socks5://u:{HIDDEN}@p:1080", "socks5:// proxies can't be used, only http:// proxies"),
    (f"socks5h://u:{HIDDEN}@p", "socks5h:// proxies can't be used, only http:// proxies"),
    (f"http://u:{HIDDEN}@p:99999", "a proxy must be a URL such as http://host:port/path"),
    (f"http://u:{HIDDEN}@", "a proxy must be a URL such as http://host:port/path"),
    (f"http://u:{HIDDEN}@ü..x", "a proxy must be a URL such as http://host:port/path"),
    (f"u:{HIDDEN}@p:port", "a proxy must be a URL such as http://host:port/path"),
    (f"u:12/{HIDDEN}@p", "a proxy must have %2F for a / in its password"),
    (f"u:{HIDDEN}/34@p", "a proxy must be a URL such as http://host:port/path"),
    (f"u:{HIDDEN}#@p", "a proxy must have no query and no fragment (? or #)"),
    (f"http://p?{HIDDEN}", "a proxy must have no query and no fragment (? or #)"),
    (f"http://u:{HIDDEN} @p", "a proxy must have no spaces or control characters"),
    (f"://u:{HIDDEN}@p", "a proxy must be a URL such as http://host:port/path"),
]


@pytest.mark.parametrize(("text", "reason"), UNUSABLE)
def test_a_proxy_that_can_not_be_used(text: str, reason: str) -> None:
    """The error names the variable or the setting and the reason, and has no password in it."""
    for source, proxy, environ in (
        ("network.proxy", text, {}),
        ("http_proxy", AUTO, {"http_proxy": text}),
        ("ALL_PROXY", AUTO, {"ALL_PROXY": text}),
    ):
        with pytest.raises(ValueError, match=f"^{source}: ") as caught:
            find_proxy(parse_base_url("http://x"), proxy, "", environ)
        assert reason in str(caught.value)
        assert HIDDEN not in str(caught.value)
        assert caught.value.__suppress_context__


def test_a_proxy_that_does_not_apply_may_be_unusable() -> None:
    """A SOCKS proxy for others, or for an exempt host, is none of the sidecar's business."""
    socks = "socks5://p"
    assert found("http://x", {"HTTPS_PROXY": socks}) is None
    assert found("http://x", {"HTTP_PROXY": P, "ALL_PROXY": socks}) == (P, "HTTP_PROXY")
    assert found("http://x", {"ALL_PROXY": socks, "NO_PROXY": "x"}) is None
    assert found("http://x", {"ALL_PROXY": socks}, NONE) is None


def test_a_proxy_is_a_value() -> None:
    """Two proxies with the same parts are equal, so connections can be shared by proxy."""
    assert parse_proxy("http://u:p@p:1", "a") == parse_proxy("u:p@P:1/", "a")
    assert parse_proxy("http://u:p@p:1", "a") != parse_proxy("http://u:q@p:1", "a")
    assert isinstance(parse_proxy("p", ""), Proxy)

"""Which proxy a URL is reached through, if any: pure.

In: the settings of `[network]` and the usual variables. The variables are read as httpx reads them,
because the SDKs use it: what an agent reaches itself, the sidecar reaches in the same way. Beyond
httpx, `NO_PROXY` may have networks (`10.0.0.0/8`) and IPv6 addresses in brackets, addresses are
compared as numbers, and an entry that makes no sense is ignored instead of being an error.
"""

import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from sidecar.credentials import Secret
from sidecar.process.addresses import DEFAULT_PORTS, BaseUrl, bracketed, parse_base_url

AUTO, NONE = "auto", "none"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# An entry of NO_PROXY after its scheme: a host, which may be in brackets, a port and a path.
_AUTHORITY = re.compile(
    r"(?:[^/?#]*@)?(?:\[([^]/?#]*)\]|([^/?#:@]*))(?::([0-9]{0,5}))?(?:[/?#].*)?"
)


class Proxy(NamedTuple):
    """An HTTP proxy. `authorization` is the value of `Proxy-Authorization`, empty for none.

    `source` is the setting or the variable that names it.
    """

    host: str
    port: int
    authorization: Secret
    source: str

    def __str__(self) -> str:
        """Its URL, without the credential."""
        return f"http://{bracketed(self.host)}:{self.port}"


def parse_proxy(text: str, source: str) -> Proxy:
    """Parse the URL of a proxy, `http://` if it has no scheme.

    Raises `ValueError`, whose text has no part of the URL in it but the scheme.
    """
    scheme = _SCHEME.match(text)
    if scheme is not None and scheme[1].lower() != "http":
        raise ValueError(f"{scheme[1].lower()}:// proxies can't be used, only http:// proxies")
    try:
        url = parse_base_url(text if scheme else f"http://{text}")
    except ValueError as error:
        raise ValueError(f"a proxy {error}") from None
    return Proxy(url.host, url.port, Secret(url.credential), source)


def find_proxy(url: BaseUrl, proxy: str, no_proxy: str, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy for `url`, or None to connect directly.

    `proxy` and `no_proxy` are settings: `proxy` is "auto" (as the variables say), "none" or a URL,
    and an empty `no_proxy` leaves it to the variable. Raises `ValueError`, which names the source,
    if the proxy that applies can't be used.
    """
    if proxy == NONE:
        return None
    # By pattern: the source and the URL of a proxy, or None for no proxy. Of those that fit, the
    # most specific one applies, or else the first.
    rules: dict[str, tuple[str, str] | None] = {"all://": ("network.proxy", proxy)}
    if proxy == AUTO:
        named = ((name, _variable(f"{name}_proxy", environ)) for name in (url.scheme, "all"))
        rules = {f"{name}://": rule for name, rule in named if rule[1]}
    excluded = no_proxy or _variable("no_proxy", environ)[1]
    entries = [entry.strip() for entry in excluded.split(",")]
    if "*" in entries:
        return None
    rules |= {entry: None for entry in entries if entry}
    fitting = [
        (pattern.rank, rule)
        for text, rule in rules.items()
        if (pattern := _parse_pattern(text)) is not None and pattern.fits(url)
    ]
    rule = min(fitting, key=lambda each: each[0])[1] if fitting else None
    if rule is None:
        return None
    source, text = rule
    try:
        return parse_proxy(text, source)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _variable(name: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """The name and value of a variable in lower case, else in capitals.

    An empty one in lower case unsets the other. In a CGI script, `HTTP_PROXY` is a header of the
    request.
    """
    upper = name.upper()
    if name in environ or (name == "http_proxy" and "REQUEST_METHOD" in environ):
        return name, environ.get(name, "").strip()
    return upper, environ.get(upper, "").strip()


class _Pattern(NamedTuple):
    """Which URLs an entry is for: empty or None means any. `network` takes the place of `host`."""

    scheme: str
    host: str
    port: int | None
    network: IPv4Network | IPv6Network | None = None

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Less for a pattern that is more specific."""
        return self.port is None, -len(self.host), -len(self.scheme)

    def fits(self, url: BaseUrl) -> bool:
        if self.network is not None:
            return _is_in(url.host, self.network)
        # The scheme's own port is part of no URL: a pattern for any scheme can't name it.
        port = None if url.port == DEFAULT_PORTS[url.scheme] else url.port
        return (
            self.scheme in {"", url.scheme}
            and self.port in {None, port}
            and _is_host(url.host, self.host)
        )


def _parse_pattern(entry: str) -> _Pattern | None:
    """Parse an entry of `NO_PROXY`, such as `https://x:8443`, `.x`, `10.0.0.0/8` or `[::1]`."""
    network = _parse_network(entry)
    if network is not None:
        return _Pattern("", str(network), None, network)
    scheme, has_scheme, rest = entry.partition("://")
    if not has_scheme:
        is_exact = entry.startswith("[") or entry.lower() == "localhost"
        scheme, rest = "", entry if is_exact else f"*{entry}"
    match = _AUTHORITY.fullmatch(rest)
    if match is None:
        return None
    host = (match[1] or match[2] or "").lower()
    port = int(match[3]) if match[3] else None
    if port == DEFAULT_PORTS.get(scheme):
        port = None  # for httpx, https://x:443 is https://x, which is for all ports
    scheme = scheme.lower()
    return _Pattern("" if scheme == "all" else scheme, "" if host == "*" else host, port)


def _parse_network(entry: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(re.sub(r"^\[([^]]*)\](?=/|$)", r"\1", entry), strict=False)
    except ValueError:
        return None


def _is_in(host: str, network: IPv4Network | IPv6Network) -> bool:
    try:
        return ip_address(host) in network
    except ValueError:
        return False


def _is_host(host: str, pattern: str) -> bool:
    """Whether `host` fits: "*.x" is any name below x, "*x" is x as well, and "" everything."""
    if not pattern:
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    if pattern.startswith("*"):
        return host == pattern[1:] or host.endswith(f".{pattern[1:]}")
    return host == pattern

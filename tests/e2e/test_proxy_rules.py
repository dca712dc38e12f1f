"""The sidecar takes the proxy that the SDKs' HTTP client takes: real httpx is asked."""

import json
import random
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from sidecar.network.proxies import AUTO, find_proxy
from sidecar.process.addresses import parse_base_url
from tests.e2e.sdk_support import DEADLINE_S, ROOT, sdk_python

Choice: TypeAlias = list[str | int] | str | None

SCRIPT = Path(__file__).parent / "agents" / "httpx_choices.py"
SEED, CASES = 20, 3000
PROXIES = (
    "http://p1:3128",
    "p2:3128",
    "p3",
    "HTTP://P4:3128/",
    "http://[fd00::1]:3128",
    "[fd00::2]:3128",
    "http://user:pw@p5:8080",
    "user:pw@p5:8080",
    "http://us%40er:p%2Fw%3A%25@p6:8080",
    "http://user:p@ss@p7:8080",
    "http://user:p:w%zz+é@p7:8080",
    "http://user@p8:8080",
    "http://:pw@p9:8080",
    "http://@p10:8080",
)
HOSTS = (
    "example.com",
    "www.example.com",
    "a.b.example.com",
    "wwwexample.com",
    "EXAMPLE.com",
    "example.com.",
    "com",
    "localhost",
    "x.localhost",
    "under_score.internal",
    "127.0.0.1",
    "10.1.2.3",
    "10.1.2.30",
    "[::1]",
    "[fd00::1:2]",
)
PORTS = ("", "", "", ":80", ":443", ":8080", ":8443")
# What an entry of NO_PROXY may have before its host, as its host, and after its port.
BEFORE = ("", "", "", "", ".", "*.", "*", "http://", "https://", "all://", "HTTPS://", "All://*.")
NAMED = (*HOSTS, "::1", "fd00::1:2", "LocalHost", "ample.com", "example.org", "10.1.2", "")
AFTER = ("", "", "", "", "/", "/path", "?query")
RARE = (
    *("*", "", ".", "**", ":", ":8443", "*:8443", "10.1.2.3/path", "[::1", "a b", "x:y"),
    *("http://", "https://", "all://", "https://*", "all://*", "ftp://", "://", "://com"),
)


class Case(NamedTuple):
    """Variables, and the URL to reach."""

    variables: Mapping[str, str]
    url: str


def entry(rng: random.Random) -> str:
    """Return one entry of NO_PROXY."""
    if rng.random() < 0.1:
        return rng.choice(RARE)
    text = rng.choice(BEFORE) + rng.choice(NAMED) + rng.choice(PORTS) + rng.choice(AFTER)
    return f"{rng.choice(('', '', ' '))}{text}{rng.choice(('', '', ' '))}"


def case(rng: random.Random) -> Case:
    """Return variables, in both spellings and sometimes empty, and a URL."""
    variables = {}
    for scheme in ("http", "https", "all"):
        for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
            if rng.random() < 0.4:
                variables[name] = rng.choice((*PROXIES, "", "", ""))
    for name in ("no_proxy", "NO_PROXY"):
        if rng.random() < 0.5:
            variables[name] = ",".join(entry(rng) for _ in range(rng.randrange(4)))
    if rng.random() < 0.1:
        variables["REQUEST_METHOD"] = "GET"
    url = f"{rng.choice(('http', 'https'))}://{rng.choice(HOSTS)}{rng.choice(PORTS)}/v5"
    return Case(variables, url)


def choices(cases: list[Case]) -> list[Choice]:
    """Ask httpx about every case."""
    done = subprocess.run(
        [sdk_python(), "-I", SCRIPT],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answer: list[Choice] = json.loads(done.stdout)
    return answer


def our_choice(case: Case) -> Choice:
    """What the sidecar takes, in the form of httpx's answer."""
    found = find_proxy(parse_base_url(case.url), AUTO, "", case.variables)
    return found and [found.host, found.port, found.authorization.reveal()]


def test_the_choice_is_httpx_s() -> None:
    """For generated variables and URLs, the sidecar takes the same proxy with the same credential.

    Where httpx makes no client, because an entry of NO_PROXY means nothing to it, the sidecar does
    without the entry.
    """
    rng = random.Random(SEED)
    cases = [case(rng) for _ in range(CASES)]
    both = [
        (our_choice(each), choice, each) for each, choice in zip(cases, choices(cases), strict=True)
    ]
    compared = [each for each in both if not isinstance(each[1], str)]
    assert [each for each in compared if each[0] != each[1]] == []
    direct = [ours for ours, _, _ in compared].count(None)
    assert min(direct, len(compared) - direct) > CASES / 10, "most cases must mean something"


def test_the_documented_value_keeps_posts_in_the_pod() -> None:
    """With the `NO_PROXY` of docs/client.md, httpx posts to a sidecar on loopback directly."""
    page = (ROOT / "docs/client.md").read_text(encoding="utf-8")
    (value,) = re.findall(r"^NO_PROXY=(.+)$", page, re.MULTILINE)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        proxy = {name: "http://p:3128"}
        cases = [
            Case(proxy | more, f"http://{host}:8318")
            for more in ({}, {"NO_PROXY": value}, {"NO_PROXY": value, "no_proxy": ""})
            for host in ("127.0.0.1", "localhost", "[::1]")
        ]
        through: Choice = ["p", 3128, ""]
        assert choices(cases) == [through] * 3 + [None] * 3 + [through] * 3
    url = "http://127.0.0.1:8318"
    assert choices(
        [
            Case(proxy | {"NO_PROXY": "[::1]"}, url),
            Case(proxy | {"NO_PROXY": "127.0.0.0/8"}, url),
            Case({"HTTPS_PROXY": "http://p:3128"}, url),
        ]
    ) == ["InvalidURL", through, None]

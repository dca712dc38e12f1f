"""The admin port: the page, its content security policy, and headers against other origins."""

import asyncio
import base64
import hashlib
import html
import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import sidecar
from sidecar.lanes import UPSTREAMS
from tests.support.world import running_app

PACKAGE = Path(sidecar.__file__).parent
PATHS = ["/", "/metrics", "/livez", "/readyz", "/status", "/status/history", "/debug", "/nowhere"]


async def test_the_page_is_self_contained() -> None:
    """Style and scripts are inlined, and the policy allows their hashes and nothing else."""
    async with running_app() as app, app.client.get(app.admin_url + "/") as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        page = await response.text()
        policy = response.headers["Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for kind, number in (("style", 1), ("script", 6)):
        inside = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in inside]
        assert len(digests) == number
        assert rules[f"{kind}-src"] == " ".join(f"'sha256-{d.decode()}'" for d in digests)
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert "unsafe" not in policy
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)


async def test_the_page_knows_every_upstream() -> None:
    """It has the names of all of them for people: a dead letter may be of one that is off."""
    async with running_app() as app, app.client.get(app.admin_url + "/") as response:
        page = await response.text()
    (found,) = re.findall(r'<body data-titles="(.+)">', page)
    assert json.loads(html.unescape(found)) == {each.name: each.title for each in UPSTREAMS}


@pytest.mark.parametrize("path", PATHS)
async def test_every_response_is_protected(path: str) -> None:
    """Every response forbids sniffing, framing, use by another origin, and caching."""
    async with running_app() as app, app.client.get(app.admin_url + path) as response:
        headers = response.headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in headers


async def test_the_response_to_a_body_that_ends_early_is_protected() -> None:
    """So is the response to a request that never became complete."""
    async with running_app() as app:
        reader, writer = await asyncio.open_connection("127.0.0.1", app.app.ports["admin"])
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
        writer.write_eof()
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Cache-Control: no-store" in head


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_it_is_read_only(method: str) -> None:
    """Every method that could change something gets a 405."""
    async with running_app() as app:
        for path in PATHS[:-1]:
            async with app.client.request(method, app.admin_url + path) as response:
                assert response.status == 405


async def test_any_host_is_accepted() -> None:
    """Any Host is accepted: people use port forwards, probes the pod's address."""
    async with running_app() as app:
        for host in ("localhost:1234", "10.1.2.3:9318", "agent.example:80"):
            async with app.client.get(app.admin_url + "/", headers={"Host": host}) as response:
                assert response.status == 200


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "²", ""])
async def test_history_needs_a_number(after: str) -> None:
    """Anything but a number in `after` gets a 400."""
    async with running_app() as app:
        url = app.admin_url + "/status/history"
        async with app.client.get(url, params={"after": after}) as response:
            assert response.status == 400


async def test_history_after_the_newest_sample_is_empty() -> None:
    """A number that is not reached yet gives no samples."""
    async with running_app() as app:
        async with app.client.get(app.admin_url + "/status/history?after=9999999999") as response:
            piece = await response.json()
        assert piece["first"] == piece["next"]
        assert set(map(len, piece["series"].values())) == {0}


async def test_page_and_first_responses_are_small() -> None:
    """The first view needs at most 80 KB in all, with a full history."""
    async with running_app() as app:
        for tick in range(1, 1000):
            app.app.operations.tick(1e9 + tick * 5.0 + tick / 997, 0.0)
        total = 0
        for path in ("/", "/status", "/status/history"):
            async with app.client.get(app.admin_url + path) as response:
                total += len(await response.read())
    assert total <= 80_000


def test_the_page_is_packaged() -> None:
    """The package data globs cover every file of the page."""
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    globs = settings["tool"]["setuptools"]["package-data"]["sidecar"]
    files = [path.relative_to(PACKAGE) for path in (PACKAGE / "operate" / "page").iterdir()]
    assert files
    missing = [str(file) for file in files if not any(fnmatch(str(file), glob) for glob in globs)]
    assert missing == []

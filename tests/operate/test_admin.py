"""The admin port: the page, its policy, and answers that no page of another origin can use."""

import base64
import hashlib
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import sidecar
from tests.support.world import running_app

PACKAGE = Path(sidecar.__file__).parent
PATHS = ["/", "/metrics", "/livez", "/readyz", "/status", "/status/history", "/nowhere"]


async def test_the_page_holds_all_it_needs() -> None:
    """Style and scripts are inside, and the policy names the hash of each and nothing else."""
    async with running_app() as app, app.client.get(app.admin_url + "/") as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        page = await response.text()
        policy = response.headers["Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for kind, number in (("style", 1), ("script", 2)):
        inside = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in inside]
        assert len(digests) == number
        assert rules[f"{kind}-src"] == " ".join(f"'sha256-{d.decode()}'" for d in digests)
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert "unsafe" not in policy
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_is_protected(path: str) -> None:
    """No sniffing, no framing, no use by another origin, nothing kept."""
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


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_it_is_read_only(method: str) -> None:
    """Whoever reaches the port can change nothing."""
    async with running_app() as app:
        for path in PATHS[:-1]:
            async with app.client.request(method, app.admin_url + path) as response:
                assert response.status == 405


async def test_any_host_is_answered() -> None:
    """People come through port forwards, probes by the pod's address."""
    async with running_app() as app:
        for host in ("localhost:1234", "10.1.2.3:9318", "agent.example:80"):
            async with app.client.get(app.admin_url + "/", headers={"Host": host}) as response:
                assert response.status == 200


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "²", ""])
async def test_history_wants_a_number(after: str) -> None:
    """Anything else is a mistake of the caller."""
    async with running_app() as app:
        url = app.admin_url + "/status/history"
        async with app.client.get(url, params={"after": after}) as response:
            assert response.status == 400


async def test_history_goes_on_where_the_reader_was() -> None:
    """A number that will come later gives nothing yet."""
    async with running_app() as app:
        async with app.client.get(app.admin_url + "/status/history?after=9999999999") as response:
            piece = await response.json()
        assert piece["first"] == piece["next"]
        assert set(map(len, piece["series"].values())) == {0}


async def test_page_and_first_answers_are_small() -> None:
    """Under 60 KB in all, with a history that is full."""
    async with running_app() as app:
        for tick in range(1, 1000):
            app.app._status.tick(1e9 + tick * 5.0 + tick / 997, 0.0)
        total = 0
        for path in ("/", "/status", "/status/history"):
            async with app.client.get(app.admin_url + path) as response:
                total += len(await response.read())
    assert total < 60_000


def test_the_page_is_packaged() -> None:
    """An installed sidecar has every file of its page."""
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    globs = settings["tool"]["setuptools"]["package-data"]["sidecar"]
    files = [path.relative_to(PACKAGE) for path in (PACKAGE / "operate" / "page").iterdir()]
    assert files
    missing = [str(file) for file in files if not any(fnmatch(str(file), glob) for glob in globs)]
    assert missing == []

"""In one environment, the sidecar reaches the upstreams that the real SDKs' clients reach.

The SDKs are the second opinion: nothing here says what an environment means.
"""

import asyncio
import json
import os
from asyncio.subprocess import PIPE
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.network_support import (
    AGENTEX,
    NAMES,
    PASSWORD,
    SGP,
    USER,
    Etc,
    Pod,
    Proxy,
    Relay,
    hashed,
    names_of,
    pod,
    tinyproxy,
)
from tests.e2e.sdk_support import DEADLINE_S, ROOT, lost, sdk_python
from tests.e2e.sdk_support import pod as sdk_pod
from tests.support.tls import Authority

PLAIN, SECURE = "http", "https"
CREDENTIAL = f"{USER}:{PASSWORD}"
NOWHERE = "http://127.0.0.1:1"


@dataclass(frozen=True)
class Case:
    """An environment. In values, {open} is a proxy, {closed} one that wants a credential.

    {with} is the latter with the right one, {ours} the file and {folder} the folder with the
    authority that the upstreams' certificates are of, {port} Agentex's port.
    """

    environ: dict[str, str]
    scheme: str = PLAIN


CASES = {
    "nothing": Case({}),
    "HTTP_PROXY": Case({"HTTP_PROXY": "{open}"}),
    "lower case wins": Case({"http_proxy": "{open}", "HTTP_PROXY": NOWHERE}),
    "an empty one in lower case": Case({"http_proxy": "", "HTTP_PROXY": NOWHERE}),
    "ALL_PROXY": Case({"ALL_PROXY": "{open}"}),
    "HTTP_PROXY before ALL_PROXY": Case({"HTTP_PROXY": "{open}", "ALL_PROXY": NOWHERE}),
    "without a scheme": Case({"HTTP_PROXY": "127.0.0.1:{open_port}"}),
    "a credential": Case({"HTTP_PROXY": "{with}"}),
    "an escaped credential": Case({"HTTP_PROXY": "{escaped}"}),
    "a trailing slash": Case({"HTTP_PROXY": "{open}/"}),
    "a scheme in capitals": Case({"HTTP_PROXY": "HTTP://127.0.0.1:{open_port}"}),
    "no credential": Case({"HTTP_PROXY": "{closed}"}),
    "a wrong credential": Case({"HTTP_PROXY": "{wrong}"}),
    "a proxy that is away": Case({"HTTP_PROXY": NOWHERE}),
    "NO_PROXY for both": Case({"HTTP_PROXY": NOWHERE, "NO_PROXY": "elsewhere, .internal"}),
    "NO_PROXY for one": Case({"HTTP_PROXY": "{open}", "NO_PROXY": AGENTEX}),
    "NO_PROXY without a dot": Case({"HTTP_PROXY": NOWHERE, "NO_PROXY": "internal"}),
    "no_proxy wins": Case({"HTTP_PROXY": NOWHERE, "no_proxy": "*", "NO_PROXY": "elsewhere"}),
    "NO_PROXY with a port": Case({"HTTP_PROXY": NOWHERE, "NO_PROXY": f"{AGENTEX}:{{port}}"}),
    "NO_PROXY with a scheme": Case({"HTTP_PROXY": NOWHERE, "NO_PROXY": f"http://{AGENTEX}"}),
    "NO_PROXY in capitals": Case({"HTTP_PROXY": NOWHERE, "NO_PROXY": AGENTEX.upper()}),
    "NO_PROXY with part of a name": Case({"HTTP_PROXY": "{open}", "NO_PROXY": "entex.internal"}),
    "HTTPS_PROXY for http": Case({"HTTPS_PROXY": NOWHERE}),
    "NO_PROXY with only a star in it": Case({"HTTP_PROXY": "{open}", "NO_PROXY": "*.internal"}),
    "NO_PROXY in a list of spaces": Case({"HTTP_PROXY": "{open}", "NO_PROXY": f"a {AGENTEX}"}),
    "NO_PROXY with every scheme": Case({"HTTP_PROXY": NOWHERE, "NO_PROXY": f"all://{AGENTEX}"}),
    "NO_PROXY with all ports": Case({"HTTP_PROXY": NOWHERE, "NO_PROXY": f"http://{AGENTEX}:80"}),
    "a CGI script": Case({"HTTP_PROXY": NOWHERE, "REQUEST_METHOD": "GET"}),
    "SSL_CERT_FILE": Case({"SSL_CERT_FILE": "{ours}"}, SECURE),
    "SSL_CERT_DIR": Case({"SSL_CERT_DIR": "{folder}"}, SECURE),
    "an unknown authority": Case({}, SECURE),
    "HTTPS_PROXY": Case({"HTTPS_PROXY": "{open}", "SSL_CERT_FILE": "{ours}"}, SECURE),
    "HTTPS_PROXY, a credential": Case({"HTTPS_PROXY": "{with}", "SSL_CERT_FILE": "{ours}"}, SECURE),
    "HTTPS_PROXY, none": Case({"HTTPS_PROXY": "{closed}", "SSL_CERT_FILE": "{ours}"}, SECURE),
    "HTTPS_PROXY, NO_PROXY": Case(
        {"https_proxy": NOWHERE, "NO_PROXY": f"https://{SGP}", "SSL_CERT_FILE": "{ours}"}, SECURE
    ),
    "ALL_PROXY for https": Case({"all_proxy": "{with}", "SSL_CERT_FILE": "{ours}"}, SECURE),
    "HTTP_PROXY for https": Case({"HTTP_PROXY": NOWHERE, "SSL_CERT_FILE": "{ours}"}, SECURE),
    "a tunnel, an unknown authority": Case({"HTTPS_PROXY": "{open}"}, SECURE),
}
OFTEN = {
    "lower case wins",
    "ALL_PROXY",
    "a credential",
    "no credential",
    "NO_PROXY for one",
    "NO_PROXY with a port",
    "a CGI script",
    "SSL_CERT_FILE",
    "HTTPS_PROXY, a credential",
    "HTTPS_PROXY, NO_PROXY",
}


async def reached_by_sdks(here: Pod, etc: Etc, environ: dict[str, str]) -> dict[str, set[str]]:
    """Run every client of the SDKs once; return which ones reached which upstream."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    settings = {
        "PYTHONPATH": str(ROOT),
        "AGENTEX_BASE_URL": here.settings["AGENTEX_BASE_URL"],
        "SGP_CLIENT_BASE_URL": here.settings["SGP_CLIENT_BASE_URL"],
        "SGP_API_KEY": "key",
        "SGP_ACCOUNT_ID": "account",
    }
    command = [*etc.wrapper, str(sdk_python()), "-m", "tests.e2e.agents.reaching_agent"]
    process = await asyncio.create_subprocess_exec(
        *command, env={**kept, **settings, **environ}, stdout=PIPE, stderr=PIPE
    )
    here.processes.append(process)
    async with asyncio.timeout(DEADLINE_S):
        out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-4000:]
    said = json.loads(out)
    reached = {sink: set(upstream.complete) for sink, upstream in here.upstreams.items()}
    assert set().union(*reached.values()) == {id_ for id_, error in said.items() if not error}, said
    for upstream in here.upstreams.values():
        upstream.complete.clear()
    return reached


def asked(proxies: list[Proxy], port: int) -> list[bool]:
    """Which proxies were asked for a port."""
    return [bool(proxy.tunnels(port) or proxy.forwards(port)) for proxy in proxies]


@pytest.mark.parametrize("case", names_of(CASES, CASES.keys() - OFTEN))
async def test_what_the_sdks_reach(tmp_path: Path, case: str) -> None:
    """The sidecar reaches the same upstreams, in the same way, and holds the spans of others."""
    scheme, etc = CASES[case].scheme, Etc(tmp_path / "etc", NAMES)
    ours = Authority(tmp_path)
    tls = ours.server(AGENTEX, SGP) if scheme == SECURE else None
    async with (
        pod(tmp_path) as here,
        Relay(here.agentex.port, tls=tls) as agentex,
        Relay(here.sgp.port, tls=tls) as sgp,
    ):
        here.lead_to(agentex.port, sgp.port, scheme=scheme)
        ways = []
        for turn in ("sdk", "sidecar"):
            async with (
                tinyproxy(tmp_path / turn / "open", etc=etc) as free,
                tinyproxy(tmp_path / turn / "closed", etc=etc, credential=CREDENTIAL) as closed,
            ):
                values = {
                    "open": free.url,
                    "open_port": str(free.port),
                    "closed": closed.shown,
                    "with": closed.url,
                    "escaped": closed.url.replace(PASSWORD, f"%{ord(PASSWORD[0]):x}{PASSWORD[1:]}"),
                    "wrong": f"http://{USER}:wrong@127.0.0.1:{closed.port}",
                    "ours": str(ours.path),
                    "folder": str(hashed(ours, tmp_path / turn / "hashed")),
                    "port": str(agentex.port),
                }
                environ = {
                    name: value.format_map(values) for name, value in CASES[case].environ.items()
                }
                if turn == "sdk":
                    reached = await reached_by_sdks(here, etc, environ)
                else:
                    await same_by_sidecar(here, etc, environ, reached)
                ways.append([asked([free, closed], relay.port) for relay in (agentex, sgp)])
        assert ways[0] == ways[1]


async def same_by_sidecar(
    here: Pod, etc: Etc, environ: dict[str, str], reached: dict[str, set[str]]
) -> None:
    """Check that a sidecar reaches what the SDKs reached, and nothing else; it loses nothing."""
    life = await here.start(*etc.wrapper, **environ)
    await here.post(life)
    for sink, upstream in here.upstreams.items():
        if reached[sink]:
            await here.delivers(sink)
        else:
            await here.holds(life, sink, "")
            assert not upstream.complete
    await here.ends(life)


@pytest.mark.parametrize("variable", names_of(["HTTP_PROXY", "all_proxy"], {"all_proxy"}))
async def test_our_client_needs_no_proxy(tmp_path: Path, variable: str) -> None:
    """An agent with our processors reaches its sidecar, though its variables name a proxy."""
    async with sdk_pod(tmp_path, sidecar=True) as here:
        made = await here.run("async_agent", "sidecar", "everything", **{variable: NOWHERE})
        arrived = here.arrived()
        assert lost(made, arrived.agentex) == lost(made, arrived.sgp) == 0

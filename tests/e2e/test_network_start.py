"""What the start and `sidecar check` say about the way to each upstream, before any span."""

import json
import re
import ssl
from pathlib import Path

import pytest

from sidecar.demo.stand_in import Answer
from tests.e2e.network_support import (
    AGENTEX,
    NAMES,
    PASSWORD,
    SGP,
    USER,
    Etc,
    Relay,
    client_files,
    get,
    logs,
    over_tls,
    pod,
    status,
    tinyproxy,
)
from tests.support.lives import shows
from tests.support.spans import make_event
from tests.support.tls import Authority

HOSTS = {"agentex": AGENTEX, "sgp": SGP}


async def test_not_asked_yet(tmp_path: Path) -> None:
    """An upstream is up only when it has taken something; until then it was not asked."""
    etc = Etc(tmp_path / "etc", NAMES)
    async with pod(tmp_path) as here:
        here.lead_to(here.agentex.port, here.sgp.port)
        life = await here.start(*etc.wrapper)
        for sink, host in HOSTS.items():
            line = await logs(life, "upstream_reachable", sink=sink, level="info")
            assert any(host in step and "127.0.0.1" in step for step in line["steps"])
        assert here.agentex.requests_total == here.sgp.requests_total == 0
        found = await status(life)
        for sink in HOSTS:
            assert (found["sinks"][sink]["state"], found["sinks"][sink]["last_error"]) == (
                "not_asked",
                None,
            )
        metrics = await get(life, "/metrics")
        assert re.search(r'sink_state\{[^}]*sink="sgp"\} 0', metrics)
        await here.post(life)
        await here.delivers()
        assert await shows(
            life, lambda now: {sink["state"] for sink in now["sinks"].values()} == {"up"}
        )
        await here.ends(life)


async def test_one_is_not_reachable(tmp_path: Path) -> None:
    """It shows at the start, in the log and on the page; the other one is not affected."""
    etc = Etc(tmp_path / "etc", {"localhost": "127.0.0.1", SGP: "127.0.0.1"})
    async with pod(tmp_path) as here:
        here.lead_to(here.agentex.port, here.sgp.port)
        life = await here.start(*etc.wrapper)
        text = f"DNS knows no {AGENTEX}"
        await logs(life, "upstream_unreachable", sink="agentex", error=text, level="warning")
        await logs(life, "upstream_reachable", sink="sgp")
        found = await status(life)
        agentex = found["sinks"]["agentex"]
        assert (agentex["state"], agentex["depth"]) == ("not_asked", 0)
        assert (agentex["last_error"]["kind"], agentex["last_error"]["text"]) == (
            "connection",
            text,
        )
        why = found["answers"][2]
        assert why["answer"] == "Agentex could not be reached at the start"
        assert why["detail"].startswith(f"{text}, ")
        etc.move(agentex_internal="127.0.0.1")
        await here.post(life)
        await here.delivers()
        await here.ends(life)


@pytest.mark.parametrize("through", [False, True], ids=["directly", "proxy"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_way_in_words(tmp_path: Path, scheme: str, *, through: bool) -> None:
    """`check --probe` prints each step of a way that is good, and exits with 0."""
    ours, etc = Authority(tmp_path), Etc(tmp_path / "etc", NAMES)
    async with (
        pod(tmp_path, SSL_CERT_FILE=str(ours.path)) as here,
        over_tls(here, ours.server(AGENTEX, SGP)),
        tinyproxy(tmp_path / "proxy", credential=f"{USER}:{PASSWORD}", etc=etc) as proxy,
    ):
        here.sgp.api_key, here.sgp.account_id = "key", "account"
        if scheme == "http":
            here.lead_to(here.agentex.port, here.sgp.port)
        variable = f"{scheme.upper()}_PROXY"
        if through:
            here.settings[variable] = proxy.url
        code, out, errors = await here.says("check", "--probe", wrapper=etc.wrapper)
        assert (code, errors) == (0, ""), out + errors
        for sink, host in HOSTS.items():
            how = f", through the proxy {proxy.shown} ({variable})" if through else ""
            assert re.search(
                rf"^{sink}: on: {scheme}://[^ ]+{re.escape(how)}, with the key", out, re.MULTILINE
            )
            lines = [line for line in out.splitlines() if line.startswith(f"{sink}: ")]
            kinds = [line.split()[1].rstrip(":") for line in lines[1:]]
            proxy_step = ["proxy"] if through else []
            tls = ["TLS"] if scheme == "https" else []
            # The proxy's address needs no lookup, and the upstream's is the proxy's business.
            names = [] if through else ["DNS"]
            # What accepts a key at SGP is the API.
            api = ["API"] if sink == "agentex" else []
            assert kinds == [*names, "TCP", *proxy_step, *tls, *api, "credential"]
            assert through or f"DNS: {host} is 127.0.0.1" in lines[1]
        assert "sgp: credential: accepted" in out
        assert PASSWORD not in out
        assert not here.agentex.complete
        assert not here.sgp.complete


async def test_wrong_ways_in_words(tmp_path: Path) -> None:
    """`check --probe` says why each upstream can't be reached, and exits with 1; `check` does not.

    Each is tried, whatever becomes of the other.
    """
    ours, theirs = Authority(tmp_path), Authority(tmp_path, "theirs")
    etc = Etc(tmp_path / "etc", {"localhost": "127.0.0.1", SGP: "127.0.0.1"})
    async with (
        pod(tmp_path, SSL_CERT_FILE=str(ours.path)) as here,
        over_tls(here, theirs.server(AGENTEX, SGP)),
    ):
        code, out, errors = await here.says("check", "--probe", wrapper=etc.wrapper)
        assert code == 1
        assert f"agentex: DNS knows no {AGENTEX}" in errors
        assert f"sgp: certificate of {SGP} is not trusted: " in errors
        assert f"sgp: DNS: {SGP} is 127.0.0.1" in out
        code, out, errors = await here.says("check", wrapper=etc.wrapper)
        assert (code, errors) == (0, "")
        assert "\nsgp: on: https://" in out


@pytest.mark.parametrize("status_", [401, 403, 503, 404])
async def test_a_key_in_words(tmp_path: Path, status_: int) -> None:
    """`check --probe` tries the credential; what the API says to it is in the text."""
    async with pod(tmp_path, SIDECAR_AGENTEX__API_KEY="key") as here:
        here.agentex.rule = here.sgp.rule = lambda _: Answer(status_, b'{"detail":"no"}')
        code, out, errors = await here.says("check", "--probe")
        assert code == 1, out + errors
        for sink in HOSTS:
            assert re.search(rf"{sink}: .*HTTP {status_}", errors), errors
            assert f"{sink}: credential: accepted" not in out


async def test_a_client_certificate_in_words(tmp_path: Path) -> None:
    """That one is required shows at the start and in `check --probe`, without a request."""
    ours, theirs = Authority(tmp_path), Authority(tmp_path, "theirs")
    etc = Etc(tmp_path / "etc", NAMES)
    tls = ours.server(AGENTEX, SGP, clients=theirs)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    async with pod(tmp_path, SSL_CERT_FILE=str(ours.path)) as here, over_tls(here, tls):
        life = await here.start(*etc.wrapper)
        texts = {sink: f"{host} requires a client certificate" for sink, host in HOSTS.items()}
        for sink, text in texts.items():
            await logs(life, "upstream_unreachable", sink=sink, error=text)
        await here.ends(life)
        code, _, errors = await here.says("check", "--probe", wrapper=etc.wrapper)
        assert code == 1
        for sink, text in texts.items():
            assert f"{sink}: {text}" in errors
        files = client_files(tmp_path, theirs, "pod")
        for sink in ("AGENTEX", "SGP"):
            here.settings[f"SIDECAR_{sink}__CLIENT_CERT_FILE"] = files.cert
            here.settings[f"SIDECAR_{sink}__CLIENT_KEY_FILE"] = files.key
        code, _, errors = await here.says("check", "--probe", wrapper=etc.wrapper)
        assert (code, errors) == (0, "")


async def test_commands_need_no_proxy(tmp_path: Path) -> None:
    """The commands that ask a sidecar on loopback do so directly, whatever the variables say."""
    async with pod(tmp_path) as here:
        life = await here.start()
        await here.post(life)
        await here.settles(life)
        variables = ("HTTP_PROXY", "http_proxy", "ALL_PROXY")
        here.settings |= dict.fromkeys(variables, "http://127.0.0.1:1")
        at = ("--url", life.admin_url)
        code, out, errors = await here.says("top", "--once", "--json", *at)
        assert (code, json.loads(out)["sinks"]["sgp"]["state"]) == (0, "up"), errors
        code, out, errors = await here.says("explain", "s-0", *at)
        assert code == 0, out + errors
        letters = tmp_path / "some.jsonl"
        head = {"time": "2026-01-02T03:04:05Z", "sink": "sgp", "reason": "refused", "status": 422}
        event = make_event("replayed", kind="end")
        letters.write_text(json.dumps({**head, "error": "", "event": event}) + "\n")
        code, out, errors = await here.says("replay", "--to", life.url, str(letters))
        assert (code, out) == (0, "accepted 1\n"), errors
        here.sent.add("replayed")
        await here.delivers("sgp")
        await here.ends(life)


@pytest.mark.parametrize("bad", ["?a=b", "#a", "/v1?a=b", "/?", "#"])
async def test_base_urls_with_more_than_a_path(tmp_path: Path, bad: str) -> None:
    """A query or a fragment would be joined wrongly: the start and `check` refuse it, unshown."""
    async with pod(tmp_path) as here:
        here.settings["AGENTEX_BASE_URL"] = f"http://user:of-the-url@{AGENTEX}{bad}"
        for command in ("run", "check"):
            code, out, errors = await here.says(command)
            assert code == 2
            assert "must have no query and no fragment (? or #)" in errors
            assert "of-the-url" not in out + errors


async def test_a_start_that_hangs_on_the_network(tmp_path: Path) -> None:
    """Trying out the way to the upstreams holds up neither the start, nor posts, nor the stop."""
    async with pod(tmp_path) as here, Relay(here.sgp.port) as sgp:
        here.settings["SGP_CLIENT_BASE_URL"] = f"http://localhost:{sgp.port}"
        etc = Etc(tmp_path / "etc", {"localhost": "127.0.0.1"}, resolver="127.83.18.56")
        here.settings["AGENTEX_BASE_URL"] = "http://unknown.internal"
        life = await here.start(*etc.wrapper)
        await here.post(life)
        await here.delivers("sgp")
        await here.ends(life)
        assert "Traceback" not in json.dumps(life.log)

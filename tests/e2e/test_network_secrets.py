"""A proxy's password, the keys and the content of spans are in nothing that a sidecar shows."""

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from sidecar.demo.stand_in import Answer, Recorded
from tests.e2e.network_support import (
    AGENTEX,
    NAMES,
    PASSWORD,
    SGP,
    USER,
    Etc,
    FakeProxy,
    Pod,
    echoing,
    get,
    names_of,
    over_tls,
    pod,
    silent,
    tinyproxy,
)
from tests.support.kill import SidecarRun
from tests.support.lives import ANSWER_S, shows
from tests.support.spans import make_event
from tests.support.stalls import deaf_port
from tests.support.tls import Authority

CONTENT = "content-of-a-span"
KEYS = {"SGP_API_KEY": "sgp-key-of-the-pod", "SIDECAR_AGENTEX__API_KEY": "agentex-key-of-the-pod"}
CREDENTIAL, OF_THE_URL = f"{USER}:{PASSWORD}", "user:password-of-the-url"
ENCODED = [b64encode(each.encode()).decode() for each in (CREDENTIAL, OF_THE_URL)]
SECRETS = [PASSWORD, "password-of-the-url", *ENCODED, *KEYS.values()]
PAGES = ("/", "/status", "/status/history", "/metrics", "/explain?id=s-0", "/livez", "/readyz")
RARE = {"is away", "says nothing", "does not answer", "is unknown"}


def check(texts: dict[str, str], *secrets: str) -> None:
    """Check that no secret is in any text; say which one is in which."""
    leaks = [
        (where, secret, text[max(0, text.index(secret) - 100) :][:200])
        for where, text in texts.items()
        for secret in secrets
        if secret in text
    ]
    assert not leaks, leaks


async def post(here: Pod, life: SidecarRun) -> None:
    """Post spans with content in every field."""
    timeout = aiohttp.ClientTimeout(ANSWER_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for number in range(5):
            fields = {name: {"text": CONTENT} for name in ("input", "output", "data")}
            event = make_event(f"s-{number}", kind="end", name=CONTENT, **fields)
            async with session.post(life.url + "/v1/spans", json=event) as reply:
                assert reply.status == 202
    here.sent |= {f"s-{number}" for number in range(5)}


async def shown(here: Pod, life: SidecarRun) -> dict[str, str]:
    """Everything that the sidecar shows while it runs; its commands with the same settings."""
    texts = {path: await get(life, path) for path in PAGES}
    texts["log"] = json.dumps(life.log, ensure_ascii=False)
    at = ("--url", life.admin_url)
    commands = [("check",), ("check", "--probe"), ("top", "--once", "--json", *at)]
    for arguments in (*commands, ("top", "--once", *at), ("explain", "s-0", *at)):
        _, out, errors = await here.says(*arguments)
        assert out
        texts[" ".join(arguments)] = out + errors
    return texts


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("how", names_of(["works", "refuses", "echoes", *sorted(RARE)], RARE))
async def test_nothing_is_told(tmp_path: Path, how: str, scheme: str) -> None:
    """Whatever becomes of a request, neither its credentials nor its content are shown."""
    ours, etc = Authority(tmp_path), Etc(tmp_path / "etc", NAMES)
    output = tmp_path / "output"
    wrapper = ["sh", "-c", f'exec "$@" >{output}', "sh"]
    short = {f"SIDECAR_{name}__TIMEOUT_S": "1" for name in ("AGENTEX", "SGP")}
    with deaf_port() as deaf:
        async with (
            pod(tmp_path, **KEYS, **short, SSL_CERT_FILE=str(ours.path)) as here,
            over_tls(here, ours.server(AGENTEX, SGP)),
            a_proxy(how, tmp_path / "proxy", etc, deaf) as url,
        ):
            here.agentex.api_key = KEYS["SIDECAR_AGENTEX__API_KEY"]
            if scheme == "http":
                here.lead_to(here.agentex.port, here.sgp.port)
            for name in ("AGENTEX_BASE_URL", "SGP_CLIENT_BASE_URL"):
                base = here.settings[name]
                here.settings[name] = base.replace("://", f"://{OF_THE_URL}@")
            here.settings[f"{scheme.upper()}_PROXY"] = url
            life = await here.start(*wrapper)
            await post(here, life)
            if how == "works":
                await here.delivers()
            else:
                for sink in here.upstreams:
                    await here.holds(life, sink, "")
            texts = await shown(here, life)
            await here.ends(life)
            texts |= {"log": json.dumps(life.log, ensure_ascii=False), "stdout": read(output)}
            check(texts, *SECRETS, CONTENT)
            letters, log = read(tmp_path / "letters.jsonl"), read(tmp_path / "proxy" / "proxy.log")
            check({"dead letters": letters, "the proxy's log": log}, *SECRETS)


def read(path: Path) -> str:
    """A file's text, "" if there is none."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


@asynccontextmanager
async def a_proxy(how: str, folder: Path, etc: Etc, deaf: int) -> AsyncIterator[str]:
    """Run a proxy that behaves as `how` says; its URL has the password."""
    if how in {"works", "refuses"}:
        credential = CREDENTIAL if how == "works" else f"{USER}:another"
        async with tinyproxy(folder, etc=etc, credential=credential) as proxy:
            yield f"http://{CREDENTIAL}@127.0.0.1:{proxy.port}"
    elif how in {"echoes", "says nothing"}:
        async with FakeProxy(echoing() if how == "echoes" else silent) as fake:
            yield fake.url
    else:
        where = {"is away": "127.0.0.1:1", "does not answer": f"127.0.0.1:{deaf}"}
        yield f"http://{CREDENTIAL}@{where.get(how, 'proxy.invalid:3128')}"


async def test_dead_letters_and_replay(tmp_path: Path) -> None:
    """A dead letter has no credential in it, and sending it again shows neither that nor content.

    Both upstreams and the proxy repeat what they were sent.
    """
    refuses = echoing(422, "application/json")
    async with pod(tmp_path, **KEYS) as here, FakeProxy(refuses) as proxy:

        def repeat(request: Recorded) -> Answer:
            said = " ".join(f"{name}: {value}" for name, value in request.headers.items())
            detail = {"detail": said + request.body.decode()}
            return Answer(422, json.dumps(detail).encode())

        here.agentex.rule = here.sgp.rule = repeat
        life = await here.start()
        await post(here, life)
        assert await shows(
            life,
            lambda now: all(
                sink["dead_lettered"] == len(here.sent) for sink in now["sinks"].values()
            ),
        )
        texts = await shown(here, life)
        life.process.terminate()
        assert await life.ended() == 0
        texts["log"] = json.dumps(life.log, ensure_ascii=False)
        letters = tmp_path / "letters.jsonl"
        assert CONTENT in read(letters)
        check({"dead letters": read(letters)}, *SECRETS)
        here.settings["HTTP_PROXY"] = proxy.url
        for arguments in (("--dry-run",), ()):
            _, out, errors = await here.says("replay", *arguments, str(letters))
            texts[f"replay {arguments}"] = out + errors
        assert proxy.heads
        assert CONTENT in read(letters)  # nothing was delivered
        check(texts, *SECRETS, CONTENT)


async def test_pass_through(tmp_path: Path) -> None:
    """What passes through is in no output, and the proxy's credential is not in any response."""
    ours = Authority(tmp_path)
    more = {"SIDECAR_LISTENER__PASS_THROUGH": "true", "SSL_CERT_FILE": str(ours.path)}
    async with pod(tmp_path, **KEYS, **more) as here, FakeProxy(echoing()) as proxy:
        here.lead_to(1, 1, scheme="https")
        life = await here.start(HTTPS_PROXY=proxy.url)
        timeout = aiohttp.ClientTimeout(ANSWER_S)
        headers = {"x-api-key": "key-of-the-agent"}
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.post(f"{life.url}/v4/{CONTENT}?q={CONTENT}", data=CONTENT) as reply,
        ):
            assert reply.status == 502
            texts = {"response": await reply.text() + str(reply.headers)}
        texts |= await shown(here, life)
        await here.ends(life)
        texts["log"] = json.dumps(life.log, ensure_ascii=False)
        check(texts, *SECRETS, CONTENT, "key-of-the-agent")

"""A real Prometheus that scrapes real sidecars every second.

Every scenario has its own namespace, whose targets exist only during the scenario, so that one
Prometheus serves all of them. The rules are the chart's, with shortened times.
"""

import asyncio
import json
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiohttp import web

from tests.e2e import parts
from tests.support.kill import SidecarRun

T = TypeVar("T")
Labels = dict[str, str]

RULES = Path(__file__).parents[2] / "helm/trace-sidecar/files/rules.yaml"
# Longer than anything here takes on a fully loaded machine.
DEADLINE_S = 90.0
POLL_S = 0.2
STOP_S = 20.0
_CONFIGURATION = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: sidecars
    honor_labels: true
    file_sd_configs: [{{files: [{targets}/*.json], refresh_interval: 1s}}]
"""
# Minutes of the chart are seconds here. Scrapes are a second apart; five of them must fit. A
# process is young for a minute: on a busy machine, its first scrape is seconds after its start.
_SHORTER = (
    (r"for: \d+m", "for: 1s"),
    (r"\[(5m|15m|1h)\]", "[10s]"),
    ("> 900", "> 3"),
    ("< 900", "< 60"),
)


def program(name: str) -> Path:
    """Return `prometheus` or `promtool` of the Debian package."""
    return parts.unpacked("prometheus") / "usr/bin" / name


def shortened(rules: str) -> str:
    """Return the rules with shortened times."""
    for pattern, shorter in _SHORTER:
        rules, found = re.subn(pattern, shorter, rules)
        assert found, pattern
    return rules


async def until(look: Callable[[], Awaitable[T]]) -> T:
    """Return the first true result of `look`."""
    found: T | None = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (found := await look()):  # noqa: ASYNC110 (nobody else can say when)
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S:g} s: {look}") from None
    return found


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str, targets: Path) -> None:
        self.url = url
        self._targets = targets

    async def get(self, path: str, **parameters: str) -> Any:  # noqa: ANN401 (JSON)
        """Return the `data` of a response of its API."""
        address = f"{self.url}/api/v1/{path}"
        async with (
            aiohttp.ClientSession() as client,
            client.get(address, params=parameters) as reply,
        ):
            body = await reply.json()
        assert body["status"] == "success", body
        return body["data"]

    async def query(self, expr: str) -> list[Labels]:
        """Return the labels of every series that an expression yields now."""
        data = await self.get("query", query=expr)
        return [each["metric"] for each in data["result"]]

    async def firing(self, namespace: str | None = None) -> set[tuple[str, ...]]:
        """Return the firing alerts of a namespace: name, with sink, pod or reason if it has one."""
        alerts = (await self.get("alerts"))["alerts"]
        return {
            (labels["alertname"], *(labels[k] for k in ("sink", "pod", "reason") if k in labels))
            for labels in (each["labels"] for each in alerts if each["state"] == "firing")
            if labels.get("namespace") == namespace
        }

    async def fires(self, *alerts: str, namespace: str | None) -> None:
        """Return once all of these fire; each is the name, then its distinguishing labels."""

        async def look() -> bool:
            return {tuple(each.split()) for each in alerts} <= await self.firing(namespace)

        look.__qualname__ = f"{alerts} to fire"
        await until(look)

    async def silent(self, *names: str, namespace: str | None) -> None:
        """Return once none of these fires; without names, once nothing fires."""

        async def look() -> bool:
            firing = {each[0] for each in await self.firing(namespace)}
            return not (firing & set(names) if names else firing)

        look.__qualname__ = f"{names} to be silent"
        await until(look)

    async def scraped(self, namespace: str) -> None:
        """Return once there is a sample: `increase` misses what is counted before the first one."""

        async def look() -> bool:
            return bool(await self.query(f'trace_sidecar_queue_bytes{{namespace="{namespace}"}}'))

        look.__qualname__ = f"a first scrape in {namespace}"
        await until(look)

    @contextmanager
    def scraping(self, namespace: str, **addresses: str) -> Iterator[None]:
        """Scrape these addresses, by pod; `honest` is a target that sets its own labels."""
        file = self._targets / f"{namespace}.json"
        groups = [
            {
                "targets": [address],
                "labels": {} if pod == "honest" else {"namespace": namespace, "pod": pod},
            }
            for pod, address in addresses.items()
        ]
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps(groups))
        unfinished.replace(file)
        try:
            yield
        finally:
            file.unlink()


def address(life: SidecarRun) -> str:
    """Return the address at which a sidecar is scraped."""
    return life.admin_url.removeprefix("http://")


@contextmanager
def prometheus(folder: Path, rules: str) -> Iterator[Prometheus]:
    """Run a Prometheus with `rules` as the text of its rule file."""
    targets = folder / "targets"
    targets.mkdir()
    rule_file, configuration = folder / "rules.yaml", folder / "prometheus.yaml"
    rule_file.write_text(rules)
    configuration.write_text(_CONFIGURATION.format(rules=rule_file, targets=targets))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command: list[str | Path] = [
        program("prometheus"),
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        url = f"http://127.0.0.1:{port}"
        asyncio.run(until(lambda: _ready(url)))
        yield Prometheus(url, targets)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _ready(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as client, client.get(f"{url}/-/ready") as reply:
            return reply.ok
    except aiohttp.ClientError:
        return False


@asynccontextmanager
async def exposing(text: Callable[[], str]) -> AsyncIterator[str]:
    """Serve the result of `text` at each scrape; yield the address. Replaces kube-state-metrics."""

    async def metrics(_: web.BaseRequest) -> web.Response:
        return web.Response(text=text(), content_type="text/plain")

    runner = web.ServerRunner(web.Server(metrics))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()

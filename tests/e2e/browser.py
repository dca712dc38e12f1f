"""A headless Chromium, driven by the W3C WebDriver protocol over plain HTTP."""

import asyncio
import base64
import json
import os
import tarfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp

from tests.e2e import parts

AXE = "4.14.1"
# The value of a script or a command.
Value: TypeAlias = Any
# A cold start of the browser on a busy machine, or any other command.
START_S = 120.0
DEADLINE_S = 60.0
# chromedriver uses one port for IPv4 and IPv6, and ends if either is in use.
ATTEMPTS = 5
POLL_S = 0.05
DESKTOP = (1280, 900)
PHONE = (390, 844)


@dataclass
class Browser:
    """One browser session: a page, its console log and its network requests."""

    session: aiohttp.ClientSession
    url: str

    async def command(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Value:
        """Run one WebDriver command and return its value."""
        payload = {} if body is None and method == "POST" else body
        async with (
            asyncio.timeout(START_S),
            self.session.request(method, f"{self.url}{path}", json=payload) as reply,
        ):
            answer = await reply.json(content_type=None)
        assert reply.status == 200, answer
        return answer["value"]

    async def devtools(self, command: str, **parameters: Any) -> Value:
        """Run one command of the DevTools protocol."""
        return await self.command(
            "POST", "/goog/cdp/execute", {"cmd": command, "params": parameters}
        )

    async def open(self, url: str) -> None:
        """Load a page."""
        await self.command("POST", "/url", {"url": url})

    async def run(self, script: str, *arguments: Any) -> Value:
        """Run a function body in the page and return its value."""
        return await self.command("POST", "/execute/sync", {"script": script, "args": arguments})

    async def until(self, condition: str, *arguments: Any, within: float = DEADLINE_S) -> Value:
        """Wait until an expression is true in the page, and return its value."""
        async with asyncio.timeout(within):
            while True:
                if value := await self.run(f"return {condition}", *arguments):
                    return value
                await asyncio.sleep(POLL_S)

    async def look(self, size: tuple[int, int], scheme: str = "light") -> None:
        """Emulate a screen of this size in CSS pixels, `light` or `dark`."""
        width, height = size
        await self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < DESKTOP[0],
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.devtools("Emulation.setEmulatedMedia", features=features)

    async def key(self, name: str) -> None:
        """Press and release a key, such as `Tab`."""
        keys = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "ArrowLeft": 37, "/": 191}
        text = {"Enter": {"text": "\r"}, "/": {"text": "/"}}.get(name, {})
        code = {"key": name, "windowsVirtualKeyCode": keys[name]}
        await self.devtools("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        await self.devtools("Input.dispatchKeyEvent", type="keyUp", **code)

    async def type(self, text: str) -> None:
        """Type a text into what has the focus."""
        await self.devtools("Input.insertText", text=text)

    async def screenshot(self, path: Path, size: tuple[int, int] | None = None) -> None:
        """Save the whole page, or what is at its top in this size, as a PNG file."""
        clip = {}
        if size is not None:
            clip["clip"] = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        shot = await self.devtools(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, **clip
        )
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))

    async def complaints(self) -> list[str]:
        """Return the console's errors and warnings (CSP violations, too) since the last call."""
        entries = await self.command("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in {"SEVERE", "WARNING"}]

    async def requests(self) -> list[str]:
        """Return the URL of every network request since the last call."""
        entries = await self.command("POST", "/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    async def violations(self) -> list[str]:
        """Return axe-core's findings for the current page."""
        # Through DevTools, because the page's own policy blocks other scripts.
        source = await asyncio.to_thread(axe().read_text)
        await self.devtools("Runtime.evaluate", expression=source)
        found = await self.devtools(
            "Runtime.evaluate",
            expression="axe.run(document, {resultTypes: ['violations']}).then(JSON.stringify)",
            awaitPromise=True,
            returnByValue=True,
        )
        result = json.loads(found["result"]["value"])
        assert result["passes"], "axe-core looked at nothing"
        return [
            f"{violation['id']}: {violation['help']}: {node['html'][:200]} {node['failureSummary']}"
            for violation in result["violations"]
            for node in violation["nodes"]
        ]


def artifacts(fallback: Path) -> Path:
    """Return the folder for screenshots: `E2E_ARTIFACTS`, else the test's own folder."""
    folder = Path(os.environ.get("E2E_ARTIFACTS") or fallback)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def axe() -> Path:
    """Return axe-core's script, from npm."""

    def build(home: Path) -> None:
        parts.run("npm", "pack", f"axe-core@{AXE}", "--silent", cwd=home)
        with tarfile.open(next(home.glob("*.tgz"))) as archive:
            # Python before 3.11.4 has no filters.
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            archive.extractall(home)  # noqa: S202 (see above)

    return parts.build_once(f"axe-core/{AXE}", build) / "package/axe.min.js"


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Run a browser that ends with the test."""
    await asyncio.to_thread(parts.debian, "chromium", "chromium-driver")
    driver, address = await _driver()
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(START_S) as starting:
            made = Browser(session, address)
            capabilities = {
                "browserName": "chrome",
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                "goog:chromeOptions": {
                    # Chromium's sandbox does not work as root in a container.
                    "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"],
                },
            }
            wish = {"capabilities": {"alwaysMatch": capabilities}}
            begun = await made.command("POST", "/session", wish)
            made.url += f"/session/{begun['sessionId']}"
            starting.reschedule(None)
            try:
                yield made
            finally:
                # Else the browser would outlive its driver, and keep its output open.
                await made.command("DELETE", "")
    finally:
        driver.terminate()
        await driver.communicate()


async def _driver() -> tuple[asyncio.subprocess.Process, str]:
    """Run a driver and yield its URL."""
    for _ in range(ATTEMPTS):
        driver = await asyncio.create_subprocess_exec(
            "chromedriver", "--port=0", stdout=asyncio.subprocess.PIPE
        )
        assert driver.stdout is not None
        async for line in driver.stdout:
            if b"started successfully on port" in line:
                port = int(line.rpartition(b" ")[2].strip(b".\n "))
                return driver, f"http://127.0.0.1:{port}"
        await driver.wait()
    return parts.missing("chromedriver does not start")

"""`sidecar top` in a real terminal, whose screen tmux captures."""

import asyncio
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sidecar.demo.stand_in import Answer
from tests.e2e import parts
from tests.support.kill import Rig

DEADLINE_S = 60.0
POLL_S = 0.1


@dataclass
class Terminal:
    """A terminal of 80 by 24 that runs a shell command."""

    socket: Path

    async def tmux(self, *arguments: str) -> str:
        """Run one tmux command and return its output."""
        process = await asyncio.create_subprocess_exec(
            "tmux", "-S", str(self.socket), "-f", os.devnull, *arguments,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0, arguments
        return out.decode()

    async def shows(self, condition: Callable[[str], bool]) -> str:
        """Wait until the screen meets the condition, and return the screen."""
        screen = ""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    screen = await self.tmux("capture-pane", "-p")
                    if condition(screen):
                        return screen
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            pytest.fail(f"never on the screen, which was:\n{screen}")


@asynccontextmanager
async def terminal(folder: Path, command: str) -> AsyncIterator[Terminal]:
    """Run a command in a terminal that is closed when the test ends."""
    await asyncio.to_thread(parts.debian, "tmux")
    made = Terminal(folder / "tmux")
    # cat keeps the screen as the command left it.
    await made.tmux("new-session", "-d", "-x", "80", "-y", "24", f"{command}; echo code $?; cat")
    try:
        yield made
    finally:
        await made.tmux("kill-server")


async def test_in_a_terminal(tmp_path: Path) -> None:
    """Numbers move, an outage shows, a resize applies immediately, Ctrl-C restores the screen."""
    rig = Rig(tmp_path, seed=9, settings={"SIDECAR_RETRY__MAX_S": "1"})
    root = Path(__file__).parents[2]
    async with rig.agentex, rig.sgp:
        life = await rig.start()
        agent = asyncio.create_task(rig.agent(life.url, "agent"))
        words = ["env", f"PYTHONPATH={root}", "LC_ALL=C.UTF-8", "PYTHONUTF8=1", sys.executable]
        words += ["-m", "sidecar", "top", "--every", "0.5", "--url", life.admin_url]
        try:
            async with terminal(tmp_path, shlex.join(words)) as screen:
                first = await screen.shows(lambda text: "[ok]   Why?" in text)
                assert max(map(len, first.splitlines())) <= 80
                await screen.shows(lambda text: accepted(text) > accepted(first) > 0)
                rig.sgp.rule = lambda _: Answer(503)
                await screen.shows(lambda text: "SGP is down: HTTP 503" in text)
                rig.sgp.rule = None
                await screen.shows(lambda text: "[ok]   Why?" in text)
                await screen.tmux("resize-window", "-x", "100", "-y", "40")
                await screen.shows(lambda text: "last 15 minutes" in text and "█" in text)
                await screen.tmux("resize-window", "-x", "40", "-y", "10")
                await screen.shows(lambda text: len(text.splitlines()) <= 10)
                life.process.kill()
                await life.ended()
                await screen.tmux("resize-window", "-x", "80", "-y", "24")
                gone = await screen.shows(lambda text: "does not respond" in text)
                assert "trying again; shown below:" in " ".join(gone.split())
                assert accepted(gone) > 0, "the last report stays on the screen"
                await screen.tmux("send-keys", "C-c")
                left = await screen.shows(lambda text: "code 0" in text)
                assert "listener" not in left
        finally:
            if life.code is None:
                life.process.kill()
                await life.ended()
            await agent


def accepted(screen: str) -> int:
    """Return how many events the listener accepted according to the screen, 0 if not shown."""
    _, found, rest = screen.partition("accepted ")
    return int(rest.split()[0].replace(",", "")) if found and rest.split() else 0

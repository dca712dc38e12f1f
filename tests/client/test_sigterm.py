"""`TRACE_SIDECAR_FLUSH_ON_SIGTERM`: spans survive a SIGTERM that ends the process as such."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.client import DEADLINE_S, scripted

ROOT = Path(__file__).parents[2]

# As uvicorn does: take the signal over, import the agent, put back what was there, raise again.
SERVER = """
import signal, sys
before = signal.signal(signal.SIGTERM, lambda *_: None)
from trace_sidecar_client import Spans
spans = Spans(sys.argv[1])
signal.raise_signal(signal.SIGTERM)
with spans.span("last"):
    pass
assert callable(signal.signal(signal.SIGTERM, before))
assert before is signal.SIG_DFL
signal.raise_signal(signal.SIGTERM)
"""
PLAIN = """
import signal, sys
from trace_sidecar_client import Spans
with Spans(sys.argv[1]).span("last"):
    pass
signal.raise_signal(signal.SIGTERM)
"""
IN_THREAD = """
import signal, sys, threading
def work():
    from trace_sidecar_client import Spans
    with Spans(sys.argv[1]).span("last"):
        pass
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.raise_signal(signal.SIGTERM)
"""
CHILD = """
import os, signal, sys
from trace_sidecar_client import Spans
spans = Spans(sys.argv[1])
child = os.fork()
if child == 0:
    with spans.span("last"):
        pass
    signal.raise_signal(signal.SIGTERM)
os.kill(os.getpid(), -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
OWN_HANDLER = """
import signal, sys
def own(*_):
    sys.exit(7)
signal.signal(signal.SIGTERM, own)
from trace_sidecar_client import Spans
with Spans(sys.argv[1]).span("last"):
    pass
assert signal.getsignal(signal.SIGTERM) is own
assert signal.signal(signal.SIGTERM, signal.SIG_IGN) is own
signal.raise_signal(signal.SIGTERM)
assert signal.signal(signal.SIGTERM, own) is signal.SIG_IGN
assert signal.signal(signal.SIGUSR1, signal.SIG_DFL) is signal.SIG_DFL
try:
    signal.signal(signal.SIGKILL, own)
except OSError:
    signal.raise_signal(signal.SIGTERM)
"""


def run(code: str, url: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `code` in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, url],
        env={"PYTHONPATH": str(ROOT / "client"), **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.mark.process
@pytest.mark.parametrize(
    "code", [SERVER, PLAIN, IN_THREAD, CHILD], ids=["server", "plain", "thread", "child"]
)
def test_spans_are_flushed_before_the_default_action(code: str) -> None:
    """With the switch on, they arrive, and the process still ends by SIGTERM."""
    with scripted() as sidecar:
        agent = run(code, sidecar.url, TRACE_SIDECAR_FLUSH_ON_SIGTERM="1")
        assert (agent.returncode, agent.stderr) == (-signal.SIGTERM, "")
        assert sidecar.names == ["last", "last"]


@pytest.mark.process
def test_each_copy_of_the_package_flushes_its_own(tmp_path: Path) -> None:
    """A vendored copy next to the installed one takes nothing from it."""
    shutil.copytree(ROOT / "client" / "trace_sidecar_client", tmp_path / "vendored")
    code = PLAIN.replace(
        "signal.raise",
        "import vendored\nfor each in (Spans, vendored.Spans):\n"
        "    with each(sys.argv[1]).span('again'): pass\nsignal.raise",
    )
    with scripted() as sidecar:
        path = f"{ROOT / 'client'}:{tmp_path}"
        agent = run(code, sidecar.url, TRACE_SIDECAR_FLUSH_ON_SIGTERM="1", PYTHONPATH=path)
        assert (agent.returncode, agent.stderr) == (-signal.SIGTERM, "")
        assert sorted(sidecar.names) == ["again"] * 4 + ["last"] * 2


@pytest.mark.process
def test_a_handler_of_the_agents_own_is_left_alone() -> None:
    """It runs as without the switch, and sees what it would see."""
    with scripted() as sidecar:
        agent = run(OWN_HANDLER, sidecar.url, TRACE_SIDECAR_FLUSH_ON_SIGTERM="true")
        assert (agent.returncode, agent.stderr) == (7, "")
        assert sidecar.names == ["last", "last"]


@pytest.mark.process
@pytest.mark.parametrize("value", ["", "0", "false"])
def test_without_the_switch_nothing_is_changed(value: str) -> None:
    """`signal` is the standard library's own, and so is the end of the process."""
    unchanged = "import signal; own = signal.signal\n" + SERVER.replace(
        "signal.raise_signal(signal.SIGTERM)\nwith", "assert signal.signal is own\nwith"
    )
    with scripted() as sidecar:
        agent = run(unchanged, sidecar.url, TRACE_SIDECAR_FLUSH_ON_SIGTERM=value)
        assert (agent.returncode, agent.stderr) == (-signal.SIGTERM, "")


@pytest.mark.process
def test_a_sidecar_that_hangs_delays_the_end_by_the_deadline_only() -> None:
    """Then the process ends by SIGTERM, and the log says what was lost."""
    code = PLAIN.replace(
        "import signal, sys", "import signal, sys, trace_sidecar_client.exits as e"
    )
    with scripted() as sidecar:
        sidecar.may_respond.clear()
        agent = run(
            code.replace("with ", "e.EXIT_TIMEOUT_S = 0.1\nwith ", 1),
            sidecar.url,
            TRACE_SIDECAR_FLUSH_ON_SIGTERM="on",
        )
        assert agent.returncode == -signal.SIGTERM
        assert "2 (not delivered at exit)" in agent.stderr

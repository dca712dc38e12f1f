"""What importing the client does, and that its thread imports nothing later."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.client import ACCEPTED, DEADLINE_S, Response, scripted

ROOT = Path(__file__).parents[2]

THREAD = """
import sys, logging
logging.basicConfig(format="%(message)s")
from trace_sidecar_client import Sender, delivery
senders = [Sender(url) for url in sys.argv[1:]]
before = set(sys.modules)
for sender in senders:
    for number in range(8):
        sender.send(b'{"span":{"name":"x"}}')
        sender.flush(0.1 if sender is senders[-1] else 5.0)
senders[0]._delivery._post = lambda *_: 1 / 0
senders[0].send(b"{}")
senders[0].flush(5.0)
assert senders[0].dropped["internal error"] == 1
print(sorted(set(sys.modules) - before))
"""


def run(code: str, *arguments: str) -> str:
    """Run `code` in a fresh interpreter and return its standard output."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={"PYTHONPATH": str(ROOT / "client")},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.process
def test_the_thread_imports_nothing() -> None:
    """A child that is forked in the middle of an import could never finish it."""
    rejecting: Response = (
        202,
        {},
        b'{"accepted":0,"rejected":[{"index":0,"id":null,"error":"\xc3\xa9"}]}',
    )
    script: list[Response] = [
        ACCEPTED,
        rejecting,
        (400, {}, b"{"),
        (404, {}, b'{"error":"no such path"}'),
        (413, {"Connection": "close"}, b""),
        (503, {"Retry-After": "0.01"}, b""),
        (429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b""),
    ]
    with scripted(*script) as sidecar, scripted(*script) as named:
        by_name = f"http://localhost:{named.port}"
        assert run(THREAD, sidecar.url, by_name, "http://127.0.0.1:1") == "[]\n"
        assert len(sidecar.requests) >= len(script)
        assert len(named.requests) >= len(script)


IMPORT = """
import atexit, os, signal, sys, threading
def forget(*_, **hooks):
    forked.append(hooks)
forked, os.register_at_fork = [], forget
import http.client, json, logging, random, asyncio, weakref
before = atexit._ncallbacks(), len(forked), threading.active_count(), signal.signal
import trace_sidecar_client as client
assert before == (atexit._ncallbacks(), len(forked), threading.active_count(), signal.signal)
spans, sender = client.Spans(sys.argv[1]), client.Sender(sys.argv[1])
assert before == (atexit._ncallbacks(), len(forked), threading.active_count(), signal.signal)
for number in range(3):
    with spans.span("x"):
        pass
    sender.send(b"{}")
print(atexit._ncallbacks() - before[0], len(forked) - before[1])
"""


@pytest.mark.process
def test_an_import_has_no_side_effects() -> None:
    """Hooks for exits and forks, once each, come with the first span: a sandbox only imports."""
    with scripted() as sidecar:
        assert run(IMPORT, sidecar.url) == "1 1\n"


def test_no_class_derives_from_another_modules_attribute() -> None:
    """A sandbox for workflows wraps modules such as `http.client`: to derive from theirs raises."""
    package = ROOT / "client" / "trace_sidecar_client"
    for path in package.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                assert not [base for base in node.bases if isinstance(base, ast.Attribute)], path


ENCODE = """
import sys, trace_sidecar_client as client
spans = client.Spans(sys.argv[1])
before = set(sys.modules)
with spans.span("x", input={"text": "\\ud800", "n": 2**70, "b": b"\\xff", "o": object()}) as span:
    span.output = float("nan"), {1: 2}, {3}
spans.flush(5.0)
print(sorted(set(sys.modules) - before))
"""


@pytest.mark.process
def test_encoding_imports_nothing() -> None:
    """Nor does an agent's thread: another one may fork while it traces for the first time."""
    with scripted() as sidecar:
        assert run(ENCODE, sidecar.url) == "[]\n"
        assert sidecar.names == ["x", "x"]

"""What to copy beside a running demo: the commands as they work from the current directory."""

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from sidecar.config import AdminConfig, ListenerConfig
from sidecar.demo.children import Ports

# The example of README.md.
SPAN = (
    '{"event_type": "end", "span": {"id": "s1", "trace_id": "t1", "name": "turn", '
    '"start_time": "2026-01-02T03:04:05Z", "end_time": "2026-01-02T03:04:06Z", '
    '"input": {"q": "hi"}, "output": {"a": "hello"}}}'
)


def what_to_copy(ports: Ports) -> Iterator[str]:
    """Yield lines with the page, a curl and `top`; before them, which usual ports are taken."""
    if ports.listener != ListenerConfig().port:
        yield f"port {ListenerConfig().port} is taken, so agents post to {ports.listener} here"
    if ports.admin != AdminConfig().port:
        yield f"port {AdminConfig().port} is taken, so the status page is on {ports.admin} here"
    post = f"curl -i http://127.0.0.1:{ports.listener}/v1/spans -H 'Content-Type: application/json'"
    yield f"status page:  http://127.0.0.1:{ports.admin}/"
    yield f"post a span:  {post} -d '{SPAN}'"
    yield f"watch:        {_sidecar()} top{_url(ports)}"


def explain_command(ports: Ports, id_: str) -> str:
    """The line with the command that explains this span."""
    return f"one span:     {_sidecar()} explain {id_}{_url(ports)}"


def _url(ports: Ports) -> str:
    usual = ports.admin == AdminConfig().port
    return "" if usual else f" --url http://127.0.0.1:{ports.admin}"


def _sidecar() -> str:
    """The `sidecar` command, as this process was started."""
    started = Path(sys.argv[0])
    if started.name != "sidecar":
        return f"{_from_here(Path(sys.executable))} -m sidecar"
    found = shutil.which("sidecar")
    return "sidecar" if found and Path(found).samefile(started) else _from_here(started)


def _from_here(path: Path) -> str:
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))

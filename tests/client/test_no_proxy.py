"""The client sends to the sidecar itself, whatever proxy the agent's variables name."""

import json
from urllib.request import getproxies_environment

import pytest
from trace_sidecar_client import Sender, Spans

from tests.support.client import DEADLINE_S, scripted
from tests.support.proxy import unwanted_proxy


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_for_the_sidecar(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Spans arrive at the sidecar, and nothing at the proxy, although NO_PROXY is not set."""
    with unwanted_proxy() as variables, scripted() as sidecar:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for name, url in variables.items():
            monkeypatch.setenv(name, url)
        assert getproxies_environment()["http"] == variables["http_proxy"], "for other clients"
        monkeypatch.setenv("TRACE_SIDECAR_URL", f"http://{host}:{sidecar.port}")
        sender = Sender()
        sender.send(json.dumps({"event_type": "start", "span": {"name": "raw"}}).encode())
        assert sender.flush(DEADLINE_S)
        with Spans(sender=sender).span("span"):
            pass
        assert sender.flush(DEADLINE_S)
        assert sidecar.names == ["raw", "span", "span"]

"""The client installed by pip beside the Agentex SDK and a notebook widget called `sidecar`.

The widget owns the import name `sidecar` on the package index. The daemon has the same one, so an
agent's environment must never get it from us.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trace_sidecar_client import __version__

from tests.e2e import parts
from tests.e2e.sdk_support import ROOT, lost, pod, sdk_python

AGENT = ROOT / "tests/e2e/agents/installed_agent.py"
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")
INSPECT = """
import base64, hashlib, importlib.metadata, importlib.util, json
import agentex, ipywidgets, sidecar, trace_sidecar_client

def damaged(name):
    for file in importlib.metadata.files(name):
        if file.hash:
            digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                yield str(file)

def top_level(name):
    return sorted({file.parts[0] for file in importlib.metadata.files(name)})

print(json.dumps({
    "widget": issubclass(sidecar.Sidecar, ipywidgets.Output),
    "owners": importlib.metadata.packages_distributions()["sidecar"],
    "damaged": [*damaged("sidecar"), *damaged("trace-sidecar-client")],
    "daemon": importlib.util.find_spec("sidecar.app") is not None,
    "client": top_level("trace-sidecar-client"),
    "paths": [sidecar.__file__, trace_sidecar_client.__file__],
}))
"""


def site_packages(python: Path) -> Path:
    """Where pip installs packages for an interpreter."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(parts.run(python, "-c", code).strip())


def client_wheel(folder: Path) -> Path:
    """The client's wheel, built from a copy so that nothing is left in the checkout."""
    ignored = shutil.ignore_patterns("build", "*.egg-info")
    source = shutil.copytree(ROOT / "client", folder / "client", ignore=ignored)
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    subprocess.run([sys.executable, *PIP, "wheel", *options, source], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the SDK, the widget and the client."""
    folder = tmp_path_factory.mktemp("agent")
    sdk, installed = sdk_python(), folder / "venv/bin/python"
    parts.run(sdk, "-m", "venv", folder / "venv")
    # A reference to the cached SDKs, which are too large to install anew for each run.
    (site_packages(installed) / "sdk.pth").write_text(f"{site_packages(sdk)}\n")
    parts.run(installed, *PIP, "install", "sidecar")
    # Without an index, so that a dependency of the client fails the installation.
    wheel = client_wheel(folder)
    subprocess.run([installed, *PIP, "install", "--no-index", wheel], check=True)
    return installed


def inspect(python: Path) -> dict[str, Any]:
    """What an interpreter reports about the packages in its environment."""
    done = subprocess.run([python, "-I", "-c", INSPECT], check=True, stdout=subprocess.PIPE)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_the_widget_keeps_its_import_name(python: Path) -> None:
    """`import sidecar` is the widget, undamaged; the client adds its own name and nothing else."""
    client, site = f"trace_sidecar_client-{__version__}.dist-info", site_packages(python)
    assert inspect(python) == {
        "widget": True,
        "owners": ["sidecar"],
        "damaged": [],
        "daemon": False,
        "client": ["trace_sidecar_client", client],
        "paths": [f"{site}/{name}/__init__.py" for name in ("sidecar", "trace_sidecar_client")],
    }


async def test_spans_of_the_sdk_arrive(python: Path, tmp_path: Path) -> None:
    """`register()` sends the SDK's spans to a real sidecar while the agent uses the widget."""
    async with pod(tmp_path / "pod", sidecar=True) as here:
        async with here.process(python, "-I", AGENT) as agent:
            made = await agent.ended()
        await here.delivered()
        arrived = here.arrived()
    assert [span["name"] for span in made] == ["tool", "turn"]
    assert lost(made, arrived.agentex) == lost(made, arrived.sgp) == 0
    turn = arrived.agentex[made[1]["id"]]
    assert turn["input"] == {"question": "Where is my parcel?"}
    assert turn["output"] == {"answer": "It was delivered."}

"""Runs helm and kustomize for the end-to-end tests of the charts, and validates their output.

The real programs are built from their Go modules. `tests/e2e/helm_judge.py` evaluates YAML,
Kubernetes schemas and CEL in its own virtual environment.
"""

import json
import shutil
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

from tests.e2e import parts

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/trace-sidecar"
LIBRARY = ROOT / "helm/trace-sidecar-lib"

HELM = ("helm.sh/helm/v4/cmd/helm", "v4.3.1")
KUSTOMIZE = ("sigs.k8s.io/kustomize/kustomize/v5", "v5.8.0")
JUDGE = ROOT / "tests/e2e/helm_judge.py"
JUDGES = ("PyYAML>=6", "kubernetes-validate>=1.37", "cel-python>=0.4", "jsonpatch>=1.33")

OPTED_IN = {"trace-sidecar/injection": "enabled"}
# Values with which agents' SGP clients are redirected: the sidecar has SGP as an upstream.
RELAYED = {"config": {"sgp": {"relay": True}}}
# The label of a pod that gets the sidecar whether or not it names an upstream.
ASKS = {"trace-sidecar/inject": "true"}
NODE = "node-1"

Json = Any
Done = subprocess.CompletedProcess[str]


def helm(*arguments: str | Path, values: Json = None) -> Done:
    """Run helm; the result has any exit code. `values` go to standard input, for `--values -`."""
    command: list[str | Path] = [parts.go_tool(*HELM), *arguments]
    text = json.dumps(values or {}, ensure_ascii=False)
    return subprocess.run(command, input=text, capture_output=True, encoding="utf-8", check=False)


def kustomize(folder: Path) -> list[Json]:
    """The objects that a kustomization renders."""
    program = parts.go_tool(*KUSTOMIZE)
    # A test's folder refers to folders of the repository outside it.
    command: list[str | Path] = [program, "build", "--load-restrictor=LoadRestrictionsNone", folder]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert not done.returncode, done.stderr
    return documents(done.stdout)


def judge(do: str, **request: Json) -> Json:
    """Run one command of helm_judge.py and return its result."""
    python = parts.venv("helm", *JUDGES)
    command = json.dumps({"do": do, **request})
    done = subprocess.run(
        [python, JUDGE], input=command, capture_output=True, encoding="utf-8", check=False
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def documents(text: str) -> list[Json]:
    """The documents in a YAML text."""
    found: list[Json] = judge("parse", text=text)
    return found


def template(
    *options: str | Path, values: Json = None, chart: Path = CHART, name: str = "ts"
) -> Done:
    """`helm template` of a chart with `values`."""
    base = ("template", name, chart, "--namespace", "obs", "--values", "-")
    return helm(*base, *options, values=values)


def render(*options: str | Path, values: Json = None, chart: Path = CHART) -> list[Json]:
    """The objects that a chart renders."""
    done = template(*options, values=values, chart=chart)
    assert not done.returncode, done.stderr
    return documents(done.stdout)


def refusal(values: Json, chart: Path = CHART) -> str:
    """The error with which helm refuses `values`."""
    done = template(values=values, chart=chart)
    assert done.returncode, "these values are accepted"
    return done.stderr


def only(found: list[Json], kind: str) -> Json:
    """The only object of a kind."""
    (item,) = (item for item in found if item["kind"] == kind)
    return item


def admit(found: list[Json], *pods: Json, namespace: Json = None) -> list[Json]:
    """Each pod after the chart's policies: `{"pod": ..., "warnings": [...]}`."""
    labels = OPTED_IN if namespace is None else namespace
    cases = [{"pod": pod, "namespace": labels} for pod in pods]
    results: list[Json] = judge("admit", documents=found, pods=cases)
    return results


def admit_one(values: Json, pod: Json, namespace: Json = None) -> Json:
    """The result of `admit` for one pod, with the chart rendered from `values`."""
    (result,) = admit(render(values=values), pod, namespace=namespace)
    return result


def agent_pod(labels: Json = None, **spec: Json) -> Json:
    """A pod as an agent's Deployment creates it; without `labels`, it asks for the sidecar."""
    container = {"name": "agent", "image": "agent:1"}
    labels = ASKS if labels is None else labels
    metadata = {"name": "agent-0", "namespace": "agents", "labels": labels}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 30, **spec},
    }


def sidecar_of(pod: Json) -> Json:
    """The sidecar's container in a pod, also among the init containers."""
    spec = pod["spec"]
    everything = spec["containers"] + spec.get("initContainers", [])
    (container,) = (item for item in everything if item["name"] == "trace-sidecar")
    return container


def as_the_kubelet_fills_in(pod: Json) -> Json:
    """The pod with the value in place of each reference to a field of its own; it runs on NODE."""
    fields = {f"metadata.{key}": pod["metadata"].get(key) for key in ("name", "namespace")}
    fields["spec.nodeName"] = NODE
    filled: Json = deepcopy(pod)
    for container in filled["spec"]["containers"] + filled["spec"].get("initContainers", []):
        for entry in container.get("env", []):
            if "fieldRef" in entry.get("valueFrom", {}):
                entry["value"] = fields[entry.pop("valueFrom")["fieldRef"]["fieldPath"]]
    return filled


def nested(path: str, value: Json) -> Json:
    """`value` at a dotted path."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def consumer(folder: Path, files: dict[str, str], alias: str = "sidecar") -> Path:
    """Create a chart in `folder` with these templates, and the library as a dependency."""
    (folder / "charts").mkdir(parents=True)
    (folder / "charts/trace-sidecar-lib").symlink_to(LIBRARY)
    (folder / "templates").mkdir()
    (folder / "Chart.yaml").write_text(
        "apiVersion: v2\nname: agent\nversion: 1.0.0\ndependencies:\n"
        f'  - {{name: trace-sidecar-lib, alias: {alias}, version: ">=0.0.0-0", repository: ""}}\n',
        encoding="utf-8",
    )
    for name, text in files.items():
        (folder / "templates" / name).write_text(text, encoding="utf-8")
    return folder


RULES = """\
groups:
  - name: first
    rules:
      - {record: "a:b", expr: "vector(1)"}
      - alert: Late
        expr: vector(1) > 0
        labels: {severity: warning}
        annotations: {summary: "{{ $value }} is late.", runbook_url: docs/runbooks.md#late}
  - name: second
    rules:
      - {alert: Lost, expr: "vector(1)", annotations: {runbook_url: docs/runbooks.md#lost}}
"""
DASHBOARD = '{"title": "{{pod}}", "panels": [{"legendFormat": "{{ .Values.nothing }}"}]}'


def chart_with_files(folder: Path) -> Path:
    """Copy the chart, with the rules and the dashboard replaced by those of a test."""
    chart = folder / "trace-sidecar"
    shutil.copytree(CHART, chart, ignore=shutil.ignore_patterns("files", "dashboards", "charts"))
    # A relative link would point elsewhere from here.
    (chart / "charts").mkdir()
    (chart / "charts/trace-sidecar-lib").symlink_to(LIBRARY)
    for name, text in (("files/rules.yaml", RULES), ("dashboards/one.json", DASHBOARD)):
        (chart / name).parent.mkdir()
        (chart / name).write_text(text, encoding="utf-8")
    return chart

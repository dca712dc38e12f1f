"""Generates the kustomize patches from the library chart, so that one definition serves both.

    python tools/kustomize_files.py HELM [FOLDER]

HELM is the helm program, FOLDER the output folder (default: `deploy/kustomize` of the repository).
The exit code is helm's.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "helm/trace-sidecar-lib"

CHART = """\
apiVersion: v2
name: kustomize
version: 0.0.0
dependencies:
  - {name: trace-sidecar-lib, alias: sidecar, version: ">=0.0.0-0", repository: ""}
"""
# The Secret is optional in the pod: without it, a pod still starts.
VALUES = "sidecar: {credentials: {secretName: trace-sidecar}}\n"

HEADER = "# Generated from helm/trace-sidecar-lib by tools/kustomize_files.py.\n"
WORKLOAD = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: any
spec:
  template:
    spec:
      initContainers:
        {{- include "trace-sidecar.initContainers" .Subcharts.sidecar | nindent 8 }}
"""
# Flux applies these patches to the manifests that a Helm release renders.
RELEASE = """\
apiVersion: helm.toolkit.fluxcd.io/v2
kind: HelmRelease
metadata:
  name: any
spec:
  postRenderers:
    - kustomize:
        patches:
          - target:
              kind: Deployment
              labelSelector: trace-sidecar/inject!=false
            patch: |
              {{- include "workload" . | nindent 14 }}
"""
FILES = {"component/workload.yaml": WORKLOAD, "flux/release.yaml": RELEASE}


def render(helm: str, template: str) -> str:
    """Render `template` with helm, in a chart that includes the library."""
    with tempfile.TemporaryDirectory() as folder:
        chart = Path(folder)
        (chart / "charts").mkdir()
        (chart / "charts/trace-sidecar-lib").symlink_to(LIBRARY)
        (chart / "templates").mkdir()
        (chart / "Chart.yaml").write_text(CHART, encoding="utf-8")
        (chart / "values.yaml").write_text(VALUES, encoding="utf-8")
        workload = '{{- define "workload" -}}\n' + WORKLOAD + "{{- end }}\n"
        (chart / "templates/_workload.tpl").write_text(workload, encoding="utf-8")
        (chart / "templates/file.yaml").write_text(template, encoding="utf-8")
        command = [helm, "template", "any", str(chart)]
        # The caller names the program.
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")  # noqa: S603
    text = done.stdout
    kept = [line for line in text.splitlines() if line not in {"---", ""}]
    return HEADER + "\n".join(line for line in kept if not line.startswith("# Source:")) + "\n"


def main(arguments: list[str]) -> int:
    """Write the files."""
    helm, *rest = arguments
    folder = Path(rest[0]) if rest else ROOT / "deploy/kustomize"
    for name, template in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_text(render(helm, template), encoding="utf-8")
        except subprocess.CalledProcessError as error:
            return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

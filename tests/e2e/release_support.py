"""The chart, installed by helm on a real API server, and agents' pods for its policies."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import count
from pathlib import Path

from tests.e2e.kube_support import Answer, Cluster, Json, cluster, custom_resources, poll
from tests.support.helm import ASKS, CHART, OPTED_IN, consumer, helm

SIDECAR = "trace-sidecar"
# An agent's chart that includes the sidecar by the library's templates, without the policies.
LIBRARY_POD = """
apiVersion: v1
kind: Pod
metadata:
  name: library
spec:
  automountServiceAccountToken: false
  {{- with include "trace-sidecar.initContainers" .Subcharts.sidecar }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: agent
      image: agent:1
    {{- with include "trace-sidecar.containers" .Subcharts.sidecar }}
    {{- . | nindent 4 }}
    {{- end }}
  {{- with include "trace-sidecar.volumes" .Subcharts.sidecar }}
  volumes:
    {{- . | nindent 4 }}
  {{- end }}
"""
CONTAINER: Json = {"name": "agent", "image": "agent:1"}
_PER_OBJECT = ("uid", "creationTimestamp", "resourceVersion", "managedFields")


def agent(*, labels: Json | None = None, **spec: object) -> Json:
    """Return an agent's pod; `spec` is merged over the default.

    Without `labels`, it asks for the sidecar.
    """
    # Without a token, because its volume would have a random name.
    fields = {"automountServiceAccountToken": False, "containers": [CONTAINER], **spec}
    labels = ASKS if labels is None else labels
    return {"metadata": {"name": "agent", "labels": labels}, "spec": fields}


def sidecars(pod: Json) -> list[Json]:
    """Return the pod's sidecars among containers and init containers."""
    spec = pod["spec"]
    containers = spec.get("initContainers", []) + spec["containers"]
    return [container for container in containers if container["name"] == SIDECAR]


def stripped(pod: Json) -> Json:
    """Return the pod without the fields that the server generates per object."""
    metadata = {key: value for key, value in pod["metadata"].items() if key not in _PER_OBJECT}
    return pod | {"metadata": metadata}


@contextmanager
def agents_cluster(folder: Path) -> Iterator[Cluster]:
    """Run a cluster with the Prometheus operator's resources and with namespaces.

    `agents` and `restricted` are opted in; the latter enforces the restricted security standard.
    """
    with cluster(folder) as server:
        for definition in custom_resources():
            path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            assert server.create(path, definition).status == 201
        restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
        server.add_namespace("tracing")
        server.add_namespace("agents", OPTED_IN)
        server.add_namespace("restricted", OPTED_IN | restricted)
        server.add_namespace("elsewhere")
        yield server


class Release:
    """The chart as the release `ts` in `tracing`; each change gets its own image tag."""

    # Never reused, so that an old policy is not mistaken for the new one.
    _tags = count()

    def __init__(self, server: Cluster, folder: Path) -> None:
        self.server = server
        self._folder = folder
        self._values: Json = {}

    def helm(self, *arguments: str | Path, values: Json | None = None) -> str:
        """Run helm on the cluster, with `values` for `--values -`, and return its output."""
        done = helm(*arguments, "--kubeconfig", self.server.kubeconfig, values=values)
        assert not done.returncode, done.stderr
        return done.stdout

    def install(self, values: Json) -> None:
        """Install or upgrade the chart, and wait until its policy is in effect."""
        tag = f"v{next(self._tags)}"
        self._values = deepcopy(values)
        self._values.setdefault("sidecar", {})["image"] = {"tag": tag}
        options = ("--install", "--reset-values", "--namespace", "tracing", "--values", "-")
        self.helm("upgrade", *options, "ts", CHART, values=self._values)

        def acts() -> bool | None:
            return (sidecars(self.pod(agent())) and self.tag() == tag) or None

        # The API server loads policies asynchronously, through a watch.
        poll("new pods get this release's sidecar", acts)

    def tag(self) -> str:
        """Return the image tag that new pods get."""
        (container,) = sidecars(self.pod(agent()))
        return str(container["image"].partition(":")[2])

    def uninstall(self) -> None:
        """Remove the release, and wait until pods no longer get a sidecar."""
        self.helm("uninstall", "ts", "--namespace", "tracing")
        poll("the policy is gone", lambda: not sidecars(self.pod(agent())) or None)

    def library_pod(self) -> Json:
        """Return a stored pod of a chart that includes the library with this release's values."""
        chart = self._folder / f"library-{next(self._tags)}"
        consumer(chart, {"pod.yaml": LIBRARY_POD})
        values = {"sidecar": self._values["sidecar"]}
        options = ("--namespace", "elsewhere", "--values", "-")
        self.helm("install", "library", chart, *options, values=values)
        pod = self.server.get("/api/v1/namespaces/elsewhere/pods/library")
        self.helm("uninstall", "library", "--namespace", "elsewhere")
        return pod

    def admit(self, pod: Json, namespace: str = "agents") -> Answer:
        """Create a pod in `namespace` as a dry run, and return the response."""
        return self.server.create(f"/api/v1/namespaces/{namespace}/pods", pod, dryRun="All")

    def pod(self, pod: Json, namespace: str = "agents") -> Json:
        """Return the pod as the server would store it."""
        answer = self.admit(pod, namespace)
        assert answer.status == 201, answer
        return answer.body

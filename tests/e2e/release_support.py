"""The chart installed in a real cluster by helm, and the pods of agents that meet its policies."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import count
from pathlib import Path

from tests.e2e.kube_support import Answer, Cluster, Json, cluster, custom_resources, poll
from tests.support.helm import CHART, OPTED_IN, consumer, helm

SIDECAR = "trace-sidecar"
# A chart of an agent that has the sidecar by the library's templates, without the policies.
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
    """A pod of an agent; `spec` is put over its own."""
    # Without a token, whose volume would have a random name.
    fields = {"automountServiceAccountToken": False, "containers": [CONTAINER], **spec}
    return {"metadata": {"name": "agent", "labels": labels or {}}, "spec": fields}


def sidecars(pod: Json) -> list[Json]:
    """Every container of the pod that is a sidecar, wherever it is."""
    spec = pod["spec"]
    containers = spec.get("initContainers", []) + spec["containers"]
    return [container for container in containers if container["name"] == SIDECAR]


def stripped(pod: Json) -> Json:
    """The pod without what the server gives to each object anew."""
    metadata = {key: value for key, value in pod["metadata"].items() if key not in _PER_OBJECT}
    return pod | {"metadata": metadata}


@contextmanager
def agents_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster with the Prometheus operator's resources and with namespaces.

    `agents` and `restricted` are opted in; the latter enforces the restricted Pod Security.
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
    """The chart as the release `ts` in `tracing`; each change gets an image tag of its own."""

    # Never the same again: an old policy must not be taken for the new one.
    _tags = count()

    def __init__(self, server: Cluster, folder: Path) -> None:
        self.server = server
        self._folder = folder
        self._values: Json = {}

    def helm(self, *arguments: str | Path, values: Json | None = None) -> str:
        """Run helm against the cluster, with `values` for `--values -`; what it printed."""
        done = helm(*arguments, "--kubeconfig", self.server.kubeconfig, values=values)
        assert not done.returncode, done.stderr
        return done.stdout

    def install(self, values: Json) -> None:
        """Install the chart, or upgrade it, and wait until its policy acts."""
        tag = f"v{next(self._tags)}"
        self._values = deepcopy(values)
        self._values.setdefault("sidecar", {})["image"] = {"tag": tag}
        options = ("--install", "--reset-values", "--namespace", "tracing", "--values", "-")
        self.helm("upgrade", *options, "ts", CHART, values=self._values)

        def acts() -> bool | None:
            return (sidecars(self.pod(agent())) and self.tag() == tag) or None

        # The API server learns of its policies by a watch of its own.
        poll("new pods get this release's sidecar", acts)

    def tag(self) -> str:
        """The tag of the image that new pods get."""
        (container,) = sidecars(self.pod(agent()))
        return str(container["image"].partition(":")[2])

    def uninstall(self) -> None:
        """Remove the release, and wait until pods get no sidecar any more."""
        self.helm("uninstall", "ts", "--namespace", "tracing")
        poll("the policy is gone", lambda: not sidecars(self.pod(agent())) or None)

    def library_pod(self) -> Json:
        """A stored pod of a chart that includes the library with the values of this release."""
        chart = self._folder / f"library-{next(self._tags)}"
        consumer(chart, {"pod.yaml": LIBRARY_POD})
        values = {"sidecar": self._values["sidecar"]}
        options = ("--namespace", "elsewhere", "--values", "-")
        self.helm("install", "library", chart, *options, values=values)
        pod = self.server.get("/api/v1/namespaces/elsewhere/pods/library")
        self.helm("uninstall", "library", "--namespace", "elsewhere")
        return pod

    def admit(self, pod: Json, namespace: str = "agents") -> Answer:
        """What becomes of a pod that is created in `namespace`; it is not stored."""
        return self.server.create(f"/api/v1/namespaces/{namespace}/pods", pod, dryRun="All")

    def pod(self, pod: Json, namespace: str = "agents") -> Json:
        """The pod as the server would store it."""
        answer = self.admit(pod, namespace)
        assert answer.status == 201, answer
        return answer.body

"""A real Kubernetes API server with etcd, on loopback: admission and storage, no controllers.

Both are built from their Go modules. Nothing runs pods: objects are admitted and stored.
"""

import http.client
import json
import re
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

from tests.e2e import parts

Json = dict[str, Any]
T = TypeVar("T")

# The newest patch of the oldest release that serves MutatingAdmissionPolicy as v1.
KUBERNETES = "1.36.3"
# The module that defines PodMonitor and PrometheusRule.
PROMETHEUS_OPERATOR = "v0.85.0"
# A cold start on a busy machine takes most of a minute.
START_S = 180.0
STOP_S = 30.0
POLL_S = 0.05


def build(home: Path) -> None:
    """Build kube-apiserver and etcd into `home`, as one module: they share most packages.

    The Kubernetes module refers to its libraries as folders that the module does not contain. They
    are modules of their own, with the same minor and patch version.
    """
    source = parts.go_module("k8s.io/kubernetes", f"v{KUBERNETES}")
    mod = (source / "go.mod").read_text()
    go_line = re.search(r"^go \S+$", mod, re.MULTILINE)
    assert go_line
    library = KUBERNETES.replace("1.", "0.", 1)
    replaced = [
        f"replace {name} => {name} v{library}"
        for name in re.findall(r"^\t(\S+) => \./staging/", mod, re.MULTILINE)
    ]
    lines = ["module kube", go_line[0], f"require k8s.io/kubernetes v{KUBERNETES}", *replaced]
    (home / "go.mod").write_text("\n".join(lines) + "\n")
    (home / "go.sum").write_bytes((source / "go.sum").read_bytes())
    # The version reported to clients; helm compares it with the chart's kubeVersion.
    version = "-X k8s.io/component-base/version.git"
    _, minor, _ = KUBERNETES.split(".")
    flags = f"-s -w {version}Version=v{KUBERNETES} {version}Major=1 {version}Minor={minor}"
    packages = ("k8s.io/kubernetes/cmd/kube-apiserver", "go.etcd.io/etcd/server/v3")
    options = ("-mod=mod", "-trimpath", "-ldflags", flags, "-o", f"{home}/")
    parts.run(
        *("nice", "-n", "10", parts.go(), "build", *options, *packages),
        cwd=home,
        env={"CGO_ENABLED": "0", "GOMAXPROCS": "2"},
    )
    (home / "server").rename(home / "etcd")


def custom_resources() -> list[Json]:
    """Return the Prometheus operator's definitions of PodMonitor and PrometheusRule."""
    module = "github.com/prometheus-operator/prometheus-operator"
    folder = parts.go_module(module, PROMETHEUS_OPERATOR) / "jsonnet/prometheus-operator"
    names = ("podmonitors-crd.json", "prometheusrules-crd.json")
    return [json.loads((folder / name).read_bytes()) for name in names]


def poll(what: str, look: Callable[[], T | None], within_s: float = START_S) -> T:
    """Return the first value of `look` that is not None; AssertionError naming `what` otherwise."""
    deadline = time.monotonic() + within_s
    while (seen := look()) is None:
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(POLL_S)
    return seen


class Answer(NamedTuple):
    """A response of the server; `warnings` are texts that a client shows to its user."""

    status: int
    body: Json
    warnings: list[str]


@dataclass(frozen=True)
class Cluster:
    """A running API server, and the folder with its certificate."""

    folder: Path
    port: int
    token: str

    @property
    def kubeconfig(self) -> Path:
        """The file with which kubectl and helm reach this server."""
        return self.folder / "kubeconfig"

    def write_kubeconfig(self) -> None:
        """Write the file that `kubeconfig` names."""
        server = {
            "server": f"https://127.0.0.1:{self.port}",
            "certificate-authority": str(self.folder / "tls.crt"),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "e2e", "cluster": server}],
            "users": [{"name": "e2e", "user": {"token": self.token}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
            "current-context": "e2e",
        }
        self.kubeconfig.write_text(json.dumps(config))

    def request(self, method: str, path: str, body: Json | None = None, **query: str) -> Answer:
        """Send a request as the cluster's administrator. Raises OSError while nothing responds."""
        tls = ssl.create_default_context(cafile=self.folder / "tls.crt")
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=tls, timeout=60)
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        with closing(connection):
            target = f"{path}?{urlencode(query)}" if query else path
            connection.request(method, target, json.dumps(body) if body else None, headers)
            reply = connection.getresponse()
            text = reply.read()
            # Format: code, agent, then the text as a quoted string.
            values = reply.headers.get_all("Warning", [])
            warnings = [json.loads(value.split(maxsplit=2)[2]) for value in values]
        is_json = reply.headers.get_content_type() == "application/json"
        return Answer(reply.status, json.loads(text) if is_json else {}, warnings)

    def get(self, path: str) -> Json:
        """Return the server's object at `path`."""
        answer = self.request("GET", path)
        assert answer.status == 200, answer
        return answer.body

    def create(self, path: str, body: Json, **query: str) -> Answer:
        """Create an object; an unknown field is an error."""
        return self.request("POST", path, body, fieldValidation="Strict", **query)

    def create_any(self, item: Json, namespace: str, **query: str) -> Answer:
        """Create an object of any kind, in `namespace` if it is namespaced and names none."""
        version = item["apiVersion"]
        api = f"/apis/{version}" if "/" in version else f"/api/{version}"
        (kind,) = [
            resource
            for resource in self.get(api)["resources"]
            if resource["kind"] == item["kind"] and "/" not in resource["name"]
        ]
        inside = f"/namespaces/{item['metadata'].get('namespace', namespace)}"
        path = f"{api}{inside * kind['namespaced']}/{kind['name']}"
        return self.create(path, item, **query)

    def patch(self, path: str, body: Json) -> Answer:
        """Merge `body` into an object."""
        return self.request("PATCH", path, body)

    def add_namespace(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """Create a namespace with the service account that a controller would add."""
        metadata = {"name": name, "labels": dict(labels or {})}
        account = {"metadata": {"name": "default"}}
        for path, body in (
            ("/api/v1/namespaces", {"metadata": metadata}),
            (f"/api/v1/namespaces/{name}/serviceaccounts", account),
        ):
            answer = self.create(path, body)
            assert answer.status == 201, answer

    def ready(self) -> bool | None:
        """True once the server and its post-start hooks are ready, else None."""
        try:
            return self.request("GET", "/readyz").status == 200 or None
        except OSError:
            return None


def free_port() -> int:
    """Return an unused TCP port of the loopback address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def running(log: Path, *command: str | Path) -> Iterator[Callable[[], None]]:
    """Run a server process; yield a check that fails with the end of its log if it has ended."""
    # `timeout` ends it even if this process is killed.
    with (
        log.open("wb") as out,
        subprocess.Popen(
            ("timeout", "--kill-after=30", "3600", *command), stdout=out, stderr=out
        ) as process,
    ):

        def check() -> None:
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]

        try:
            yield check
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Run an API server with an empty store until it is ready; stop both processes at the end."""
    programs = parts.build_once(f"kube/{KUBERNETES}", build)
    parts.debian("openssl")
    key, certificate = folder / "tls.key", folder / "tls.crt"
    parts.run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", key, "-out", certificate),
    )
    token = secrets.token_hex()
    tokens = folder / "tokens.csv"
    tokens.write_text(f"{token},admin,admin,system:masters\n")
    store, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    server = Cluster(folder, free_port(), token)
    server.write_kubeconfig()
    with ExitStack() as stack:
        checks = [
            stack.enter_context(
                running(
                    folder / "etcd.log",
                    programs / "etcd",
                    *("--data-dir", folder / "etcd", "--unsafe-no-fsync"),
                    *("--listen-client-urls", store, "--advertise-client-urls", store),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", f"default={peer}"),
                )
            ),
            stack.enter_context(
                running(
                    folder / "kube-apiserver.log",
                    programs / "kube-apiserver",
                    *("--etcd-servers", store, "--bind-address", "127.0.0.1"),
                    *("--secure-port", str(server.port), "--token-auth-file", tokens),
                    *("--tls-cert-file", certificate, "--tls-private-key-file", key),
                    *("--service-account-issuer", "https://kubernetes.default.svc"),
                    *("--service-account-key-file", key),
                    *("--service-account-signing-key-file", key),
                    *("--service-cluster-ip-range", "10.0.0.0/24"),
                    *("--runtime-config", "admissionregistration.k8s.io/v1beta1=true"),
                    # Only this test connects, and the loopback address can't be advertised.
                    *("--authorization-mode", "AlwaysAllow", "--endpoint-reconciler-type", "none"),
                )
            ),
        ]

        def look() -> bool | None:
            for check in checks:
                check()
            return server.ready()

        poll("the API server is ready", look)
        yield server

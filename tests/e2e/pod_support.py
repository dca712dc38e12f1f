"""A pod with a sidecar, run by podman: an agent, the sidecar and stand-ins for both upstreams.

The chart adds the sidecar to the pod; what podman does not support is removed (see `_for_podman`).
The containers share a network that has only loopback, and start as the kubelet starts them. Needs
root.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import trustme

from tests.e2e import image_support as images
from tests.e2e import parts
from tests.e2e.image_support import Json, eventually
from tests.support.helm import admit_one, agent_pod, as_the_kubelet_fills_in, sidecar_of

TAG = "pod"
IMAGE = f"{images.IMAGE}:{TAG}"
LIMIT_MIB = 128
AGENTEX, SGP, ADMIN = 5003, 5004, 9318
SINKS = {"agentex": AGENTEX, "sgp": SGP}
AGENT, SIDECAR, STAND_INS = "agent", "trace-sidecar", "stand-ins"
# Longer than both need to end on a busy machine; the sidecar's own grace period is 25 s.
GRACE_S = 60
MIB = 2**20

TRACING = ("python3", "-m", "tests.e2e.pod_agent")
IDLE = ("python3", "-c", "import signal; signal.pause()")

_VALUES = {
    "injection": {"agentContainers": [AGENT]},
    "sidecar": {
        "mode": "container",
        "image": {"repository": images.IMAGE, "tag": TAG, "pullPolicy": "Never"},
        "spool": {"enabled": True},
        "certificates": {
            "agentex": {"ca": {"configMapName": "authorities"}, "client": {"secretName": "client"}}
        },
        "resources": {"limits": {"memory": f"{LIMIT_MIB}Mi"}},
    },
}
# The image has the daemon only, so the agent's code and the client are mounted.
_MOUNTED = {
    "tests": images.SOURCE / "tests",
    "client": images.SOURCE / "client" / "trace_sidecar_client",
}
# Variables of the agent's container, which the chart copies to the sidecar.
UPSTREAMS = {
    "AGENTEX_BASE_URL": f"http://127.0.0.1:{AGENTEX}",
    "SGP_CLIENT_BASE_URL": f"http://127.0.0.1:{SGP}",
    "SGP_API_KEY": "made-up",
    "SGP_ACCOUNT_ID": "made-up",
}
_NOT_FOR_PODMAN = ("restartPolicy", "ports", "startupProbe", "livenessProbe", "readinessProbe")
_GET = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=30).read().decode())"


def needs_podman(image: str) -> None:
    """Check that podman runs an image with a memory limit."""
    if os.geteuid():
        parts.missing("running pods needs root")
    limit = f"--memory={LIMIT_MIB}m"
    command = ("podman", "run", "--rm", "--no-healthcheck", "--network=none", limit)
    done = images.attempt(*command, "--entrypoint=python3", image, "-c", "pass")
    if done.returncode:
        parts.missing(f"podman runs no container here: {done.stderr[-2000:]}")


@cache
def _ready() -> None:
    """Build the image of the tests' own pods."""
    images.built(IMAGE, cached=True, arguments=images.VERSIONS)
    needs_podman(IMAGE)


def agent_spec(agent: Sequence[str], image: str, variables: Mapping[str, str] = UPSTREAMS) -> Json:
    """Return the spec of the pod of an agent with this command, without a sidecar."""
    environ = {"PYTHONPATH": "/agent", **variables}
    # As root, so that it can read the tests whatever their file mode.
    container = {
        "name": AGENT,
        "image": image,
        "imagePullPolicy": "Never",
        "command": list(agent),
        "env": [{"name": name, "value": value} for name, value in environ.items()],
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [
            {"name": name, "mountPath": f"/agent/{folder.name}", "readOnly": True}
            for name, folder in _MOUNTED.items()
        ],
    }
    volumes = [
        {"name": name, "hostPath": {"path": str(folder), "type": "Directory"}}
        for name, folder in _MOUNTED.items()
    ]
    return {"containers": [container], "volumes": volumes}


def _stand_ins(image: str, latency_ms: int) -> Json:
    """Return the container of both upstreams."""
    return {
        "name": STAND_INS,
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["python3", "-m", "sidecar.demo.serve", "--light"],
        "args": [f"--agentex-port={AGENTEX}", f"--sgp-port={SGP}", f"--latency-ms={latency_ms}"],
    }


def _rendered(agent: Sequence[str], variables: Mapping[str, str]) -> Json:
    """Return the pod of an agent with this command, as mutated by the chart's policy."""
    pod: Json = agent_pod(**agent_spec(agent, IMAGE, variables))
    answer = admit_one(_VALUES, pod)
    assert not answer["warnings"]
    admitted: Json = as_the_kubelet_fills_in(answer["pod"])
    return admitted


def _files() -> dict[str, dict[str, bytes]]:
    """Return the contents of the ConfigMap and of the Secret with certificates, by name."""
    authority = trustme.CA()
    client = authority.issue_cert("sidecar.internal")
    return {
        "authorities": {"ca.crt": authority.cert_pem.bytes()},
        "client": {
            "tls.crt": client.cert_chain_pems[0].bytes(),
            "tls.key": client.private_key_pem.bytes(),
        },
    }


def _write(projected: Json, folder: Path) -> None:
    """Write the files of a projected volume as the kubelet does: as root, behind a symlink."""
    sources, first = _files(), folder / "..first"
    for source in projected["sources"]:
        ((_, reference),) = source.items()
        for item in reference["items"]:
            path = first / item["path"]
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.write_bytes(sources[reference["name"]][item["key"]])
            path.chmod(projected["defaultMode"])
            if not (link := folder / path.parent.name).is_symlink():
                link.symlink_to(Path("..data") / path.parent.name)
    (folder / "..data").symlink_to(first.name)
    folder.chmod(0o755)


def _for_podman(admitted: Json, name: str, folder: Path) -> Json:
    """Return the pod without what needs a network or a kubelet, under names of its own.

    Podman would publish the ports, which needs a bridge; it names the emptyDir's volume globally,
    for all pods; and it runs probes with systemd timers. It knows neither native sidecars, which
    become ordinary containers here, nor tokens, nor other projected volumes, whose files are in
    `folder` instead, nor most fields that a variable can refer to.
    """
    spec = deepcopy(admitted["spec"])
    metadata = admitted["metadata"]
    inits = spec.pop("initContainers", [])
    native = [each for each in inits if each.get("restartPolicy") == "Always"]
    spec["initContainers"] = [each for each in inits if each not in native]
    spec["containers"] = native + spec["containers"]
    fields = {
        "metadata.name": name,
        "metadata.namespace": metadata["namespace"],
        "spec.nodeName": "node",
    }
    tokens = {volume["name"] for volume in spec["volumes"] if _has_token(volume)}
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] not in tokens]
    holders = list(spec["volumes"])
    for container in spec["initContainers"] + spec["containers"]:
        for field in _NOT_FOR_PODMAN:
            container.pop(field, None)
        mounts = container.get("volumeMounts", [])
        container["volumeMounts"] = [each for each in mounts if each["name"] not in tokens]
        holders += container["volumeMounts"]
        container["env"] = [_literal(entry, fields) for entry in container.get("env", [])]
    for holder in holders:
        if holder["name"] == SIDECAR:
            holder["name"] = name
        if "projected" in holder:
            _write(holder.pop("projected"), folder)
            holder["hostPath"] = {"path": str(folder), "type": "Directory"}
    made = {"name": name, "labels": metadata["labels"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": made, "spec": spec}


def _literal(entry: Json, fields: Json) -> Json:
    """Return a variable with the value that the kubelet would give it, if it refers to a field."""
    path = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
    return {"name": entry["name"], "value": fields[path]} if path in fields else entry


def _has_token(volume: Json) -> bool:
    """Whether the API server added the volume, with a token of the service account."""
    sources = volume.get("projected", {}).get("sources", [])
    return any("serviceAccountToken" in source for source in sources)


@dataclass(frozen=True)
class Pod:
    """A running pod."""

    name: str

    def container(self, name: str) -> str:
        """Return podman's name of a container of the pod."""
        return f"{self.name}-{name}"

    def inspected(self, name: str) -> Json:
        """Return podman's description of a container."""
        described: list[Json] = json.loads(images.run("podman", "inspect", self.container(name)))
        return described[0]

    def pid(self, name: str) -> int:
        """Return the process id of a container on this machine; 0 if it does not run."""
        found: int = self.inspected(name)["State"]["Pid"]
        return found

    def log(self, name: str) -> list[Json]:
        """Return the JSON lines that a container has written, over all its restarts."""
        lines = images.log(self.container(name)).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def said(self, name: str, event: str) -> list[Json]:
        """Return the log lines with this event."""
        return [line for line in self.log(name) if line.get("event") == event]

    def holder(self) -> int:
        """Return the process id of the container that holds the pod's network."""
        infra = images.run("podman", "pod", "inspect", self.name, "--format={{.InfraContainerID}}")
        return int(images.run("podman", "inspect", infra, "--format={{.State.Pid}}"))

    def _requested(self, port: int, path: str) -> Sequence[str]:
        """Return the command that prints a response from inside the pod's network."""
        within = ("nsenter", f"--target={self.holder()}", "--net")
        return (*within, sys.executable, "-c", _GET, f"http://127.0.0.1:{port}{path}")

    def get(self, port: int, path: str) -> Any:  # noqa: ANN401 (any JSON)
        """Return a response of a server in the pod, requested from inside its network."""
        return json.loads(images.run(*self._requested(port, path)))

    def probe(self, probe: Json) -> bool:
        """Whether a probe of the pod's would succeed."""
        request = probe["httpGet"]
        done = images.attempt(*self._requested(request["port"], request["path"]))
        return done.returncode == 0

    def start(self, *names: str) -> None:
        """Start containers of the pod."""
        images.run("podman", "start", *map(self.container, names))

    def depths(self) -> list[int]:
        """Return how many writes are waiting for each upstream."""
        sinks = self.get(ADMIN, "/status")["sinks"].values()
        return [sink["depth"] for sink in sinks]

    def completed(self) -> list[int]:
        """Return how many complete spans each upstream has."""
        return [self.get(port, "/__report?counts")["complete"] for port in SINKS.values()]

    @contextmanager
    def away(self) -> Iterator[None]:
        """Make both upstreams hang during the block."""
        container = self.container(STAND_INS)
        images.run("podman", "pause", container)
        yield
        images.run("podman", "unpause", container)

    def kill(self, name: str) -> None:
        """Send SIGKILL, as the kernel does when memory is short; the container is restarted."""
        pid = self.pid(name)
        assert pid > 0  # pid 0 would mean this test's process group
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: self.pid(name) not in {0, pid})

    @contextmanager
    def terminated(self, name: str) -> Iterator[None]:
        """Send SIGTERM as the kubelet does; at the end the container must exit with 0."""
        stop = ("podman", "stop", f"--time={GRACE_S}", self.container(name))
        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(images.run, *stop)
            yield
            stopping.result()
        assert self.inspected(name)["State"]["ExitCode"] == 0, self.log(name)[-3:]

    def terminate(self, name: str) -> None:
        """Send SIGTERM to a container and wait for its end."""
        with self.terminated(name):
            pass


def unique_name() -> str:
    """Return a name for a pod: podman's names are those of the whole machine."""
    return f"trace-sidecar-{uuid.uuid4().hex[:8]}"


@contextmanager
def running(
    agent: Sequence[str] = TRACING,
    *,
    latency_ms: int = 20,
    variables: Mapping[str, str] = UPSTREAMS,
) -> Iterator[Pod]:
    """Run a pod of the tests' own image with this agent; remove everything afterwards."""
    _ready()
    with played(_rendered(agent, variables), unique_name(), IMAGE, latency_ms=latency_ms) as pod:
        yield pod


@contextmanager
def played(admitted: Json, name: str, image: str, *, latency_ms: int = 20) -> Iterator[Pod]:
    """Run a pod as the API server admitted it, beside the upstreams, which `image` has.

    As under a kubelet with a native sidecar, the other containers start once the sidecar's startup
    probe succeeds.
    """
    pod = Pod(name)
    folder = Path(tempfile.mkdtemp())
    playable = _for_podman(admitted, name, folder)
    later = [each["name"] for each in playable["spec"]["containers"] if each["name"] != SIDECAR]
    playable["spec"]["containers"].append(_stand_ins(image, latency_ms))
    try:
        # A container that runs out of memory leaves a file in the working folder.
        play = ("podman", "play", "kube", "--network=none", "--start=false", "-")
        done = images.attempt(*play, input=json.dumps(playable), cwd=parts.CACHE)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        pod.start(STAND_INS, SIDECAR)
        # The stand-ins print their URLs once both listen.
        eventually(lambda: images.log(pod.container(STAND_INS)))
        probe = sidecar_of(admitted)["startupProbe"]
        eventually(lambda: pod.said(SIDECAR, "started") and pod.probe(probe))
        pod.start(*later)
        yield pod
    finally:
        # A paused container can't be removed.
        images.attempt("podman", "unpause", pod.container(STAND_INS))
        images.attempt("podman", "pod", "rm", "--force", "--time=0", name)
        images.attempt("podman", "volume", "rm", "--force", name)
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Memory:
    """A container's memory according to the kernel, in bytes."""

    limit: int
    peak: int
    peak_rss: int
    oom_kills: int

    def __str__(self) -> str:
        mib = (f"{value / MIB:.0f}" for value in (self.peak_rss, self.peak, self.limit))
        return "peak RSS {} MiB, peak with page cache {} MiB, limit {} MiB".format(*mib)


def memory(pid: int) -> Memory:
    """Return the memory of the container whose first process this is."""
    peak_rss = 0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            peak_rss = int(line.split()[1]) * 1024
    named = (line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    groups = {controllers: path.lstrip("/") for _, controllers, path in named}
    root = Path("/sys/fs/cgroup")
    if "memory" in groups:
        group, files = root / "memory" / groups["memory"], _V1
    else:
        group, files = root / groups[""], _V2
    limit, peak, events = ((group / name).read_text() for name in files)
    oom_kills = dict(line.split() for line in events.splitlines())["oom_kill"]
    return Memory(int(limit), int(peak), peak_rss, int(oom_kills))


_V1 = ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control")
_V2 = ("memory.max", "memory.peak", "memory.events")

"""The pod of `helm test`, rendered by the chart and run by podman against stand-ins."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e import image_support as images
from tests.e2e import parts
from tests.e2e.image_support import Json, eventually
from tests.e2e.pod_support import AGENTEX, IMAGE, SGP, SIDECAR, STAND_INS, TAG, Pod
from tests.support.helm import as_the_kubelet_fills_in, only, render

CHECK = "check"
KEY = {"name": "SGP_API_KEY", "value": "made-up"}
# Nothing listens here.
NOBODY = 5999
# For these, podman needs a network, systemd or a kubelet.
UNSUPPORTED = ("ports", "startupProbe", "livenessProbe", "restartPolicy")


def upstreams(agentex: int = AGENTEX, sgp: int = SGP) -> Json:
    """Return values that name upstreams at these ports, with a spool and dead letters."""
    return {
        "config": {
            "agentex": {"base_url": f"http://127.0.0.1:{agentex}"},
            "sgp": {"base_url": f"http://127.0.0.1:{sgp}", "account_id": "made-up"},
        },
        "env": [KEY],
        "spool": {"enabled": True},
        "deadLetters": {"enabled": True},
    }


def rendered(sidecar: Json, name: str, *, probe: bool) -> Json:
    """Return the pod as podman takes it, with the stand-ins beside it.

    Podman's own init containers end before the others start, so the sidecar is among the others.
    Its volumes are known by their names, for all pods.
    """
    image = {"repository": images.IMAGE, "tag": TAG, "pullPolicy": "Never"}
    values = {"sidecar": {"image": image, **sidecar}, "test": {"probe": probe}}
    pod: Json = as_the_kubelet_fills_in(only(render(values=values), "Pod"))
    spec = pod["spec"]
    (native,) = spec.pop("initContainers")
    assert native["restartPolicy"] == "Always"
    for field in UNSUPPORTED:
        native.pop(field, None)
    stand_ins = {
        "name": STAND_INS,
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python3", "-m", "sidecar.demo.serve", "--light"],
        "args": [f"--agentex-port={AGENTEX}", f"--sgp-port={SGP}"],
    }
    spec["containers"] += [native, stand_ins]
    pod["metadata"] = {"name": name, "labels": pod["metadata"]["labels"]}
    holders = [mount for each in spec["containers"] for mount in each.get("volumeMounts", [])]
    for holder in (*holders, *spec.get("volumes", [])):
        holder["name"] = name
    return pod


@contextmanager
def running(sidecar: Json, *, probe: bool = True) -> Iterator[Pod]:
    """Run the pod until sidecar and stand-ins have started and the check has ended once."""
    images.built(IMAGE, cached=True, arguments=images.VERSIONS)
    name = f"trace-sidecar-{uuid.uuid4().hex[:8]}"
    pod = Pod(name)
    try:
        text = json.dumps(rendered(sidecar, name, probe=probe))
        play = ("podman", "play", "kube", "--network=none", "-")
        done = images.attempt(*play, input=text, cwd=parts.CACHE)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        eventually(lambda: pod.said(SIDECAR, "started"))
        eventually(lambda: images.log(pod.container(STAND_INS)))
        images.run("podman", "wait", pod.container(CHECK))
        yield pod
    finally:
        images.attempt("podman", "pod", "rm", "--force", "--time=0", name)
        images.attempt("podman", "volume", "rm", "--force", name)


def check(pod: Pod) -> tuple[int, str]:
    """Start the check after the sidecar, as the kubelet does; return its exit code and output."""
    done = images.attempt("podman", "start", "--attach", pod.container(CHECK))
    return done.returncode, done.stdout + done.stderr


def test_it_succeeds_where_both_upstreams_are_reached() -> None:
    """The check finds the running sidecar, and both upstreams accept the credentials."""
    with running(upstreams()) as pod:
        code, said = check(pod)
        assert code == 0, said
        assert "verdict: ready" in said
        assert "a sidecar runs here already" in said
        assert "sgp: credential: accepted" in said


@pytest.mark.parametrize("wrong", ["agentex", "sgp"])
def test_it_fails_with_a_wrong_upstream(wrong: str) -> None:
    """With nothing at the address of one upstream it fails, and names that one."""
    with running(upstreams(**{wrong: NOBODY})) as pod:
        code, said = check(pod)
        assert code == 1, said
        refused = [line for line in said.splitlines() if line.endswith("refuses connections")]
        assert refused == [f"sidecar: {wrong}: 127.0.0.1:{NOBODY} refuses connections"]


def test_without_a_probe_the_sidecar_has_to_run() -> None:
    """With test.probe false, upstreams do not matter, and a sidecar that is gone is a failure."""
    with running(upstreams(NOBODY, NOBODY), probe=False) as pod:
        code, said = check(pod)
        assert code == 0, said
        pod.terminate(SIDECAR)
        code, said = check(pod)
        assert code == 3, said

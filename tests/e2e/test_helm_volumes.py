"""Volumes that the values add: every kind, in every way into a pod, and what is refused."""

from collections.abc import Iterator
from functools import partial

import pytest

from sidecar.config_load import load
from tests.e2e.kube_support import Cluster, poll
from tests.e2e.release_support import Release, agent, agents_cluster, sidecars
from tests.support.helm import (
    ROOT,
    Json,
    admit_one,
    agent_pod,
    documents,
    refusal,
    sidecar_of,
)

AWKWARD = "a \"b\" 'c' \\ $(d) {{ e }}\n\u2028"
KEYS = [{"key": "ca.crt", "path": "a/..b/ca.crt", "mode": 0o440}, {"key": ".k", "path": "k"}]
FILES = [
    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
    {"path": "team", "mode": 0, "fieldRef": {"fieldPath": "metadata.annotations['a.b/c-d_e']"}},
    {"path": "cpu", "resourceFieldRef": {"containerName": "agent", "resource": "requests.cpu"}},
]
# Every kind of volume, with every field that the chart takes.
SOURCES: dict[str, Json] = {
    "config-map": {"configMap": {"name": "1e3"}},
    "config-map-keys": {
        "configMap": {"name": "a.b", "items": KEYS, "defaultMode": 0o777, "optional": True}
    },
    "secret": {"secret": {"secretName": "s"}},
    "secret-keys": {
        "secret": {"secretName": "s", "items": KEYS, "defaultMode": 0, "optional": False}
    },
    "projected": {
        "projected": {
            "defaultMode": 0o444,
            "sources": [
                {"configMap": {"name": "c", "items": KEYS, "optional": True}},
                {"secret": {"name": "s"}},
                {"downwardAPI": {"items": FILES}},
                {"serviceAccountToken": {"path": "token"}},
                {
                    "serviceAccountToken": {
                        "path": "vault/token",
                        "audience": "https://vault",
                        "expirationSeconds": 2**32,
                    }
                },
            ],
        }
    },
    "downward": {"downwardAPI": {"items": FILES, "defaultMode": 0o400}},
    "empty": {"emptyDir": {}},
    "memory": {"emptyDir": {"medium": "Memory", "sizeLimit": "64M"}},
    "csi": {"csi": {"driver": "secrets-store.csi.k8s.io"}},
    "csi-more": {
        "csi": {
            "driver": "Driver-1.example",
            "readOnly": True,
            "fsType": "ext4",
            "volumeAttributes": {
                "secretProviderClass": "sgp",
                "a.b/c-d": AWKWARD,
                "in": "",
                "1": "1e3",
            },
            "nodePublishSecretRef": {"name": "s"},
        }
    },
    "claim": {"persistentVolumeClaim": {"claimName": "shared", "readOnly": True}},
    "host": {"hostPath": {"path": "/etc/ssl/certs", "type": "Directory"}},
    "host-plain": {"hostPath": {"path": "/run/a b"}},
}
VOLUMES = [{"name": name, **source} for name, source in SOURCES.items()]
MOUNTS = [{"name": name, "mountPath": f"/mnt/{name}", "readOnly": True} for name in SOURCES]
MOUNTS += [
    {"name": "secret", "mountPath": "/mnt/a b/key", "subPath": "a/key"},
    {"name": "secret", "mountPath": "/etc/trace-sidecar/key/"},
    # Beside ours, with the same beginning.
    {"name": "empty", "mountPath": "/var/lib/trace-sidecar-2"},
]
ADDED: Json = {"extraVolumes": VOLUMES, "extraVolumeMounts": MOUNTS}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with agents_cluster(tmp_path_factory.mktemp("kube")) as running:
        yield running


@pytest.fixture(scope="module")
def release(server: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return Release(server, tmp_path_factory.mktemp("release"))


def by_name(items: list[Json]) -> dict[str, Json]:
    return {item["name"]: item for item in items}


@pytest.mark.parametrize("mode", ["native", "container"])
@pytest.mark.parametrize("beside", [{}, {"spool": {"enabled": True}}], ids=["alone", "spool"])
def test_every_kind_in_every_way(release: Release, mode: str, beside: Json) -> None:
    """A real API server stores the same volumes for an injected pod as for the library's."""
    release.install({"sidecar": ADDED | beside | {"mode": mode}})
    library = release.library_pod()["spec"]
    pod = release.pod(agent())
    assert pod["spec"]["volumes"] == library["volumes"]
    (container,), (same,) = sidecars(pod), sidecars({"spec": library})
    assert container == same
    extra = [mount for mount in container["volumeMounts"] if mount["name"] in SOURCES]
    assert extra == MOUNTS
    stored = by_name(pod["spec"]["volumes"])
    own = by_name(release.pod(agent(volumes=VOLUMES), "elsewhere")["spec"]["volumes"])
    assert {name: stored[name] for name in SOURCES} == own
    assert len(stored) == len(SOURCES) + len(beside)


def warnings_of(release: Release, pod: Json) -> list[str] | None:
    return release.admit(pod).warnings or None


def test_a_pod_with_a_volume_of_the_same_name(release: Release) -> None:
    """It is admitted as it is, with a warning: with two, the API server would reject it."""
    release.install({"sidecar": {"extraVolumes": VOLUMES}})
    for name in ("config-map", "host-plain"):
        pod = agent(volumes=[{"name": name, "emptyDir": {}}])
        (warning,) = poll("the audit policy acts", partial(warnings_of, release, pod))
        assert "should have the container trace-sidecar" in warning
        assert release.pod(pod)["spec"] == release.pod(pod, "elsewhere")["spec"]
    other = release.pod(agent(volumes=[{"name": "config", "emptyDir": {}}]))
    assert len(sidecars(other)) == 1


def volume(**source: Json) -> Json:
    return {"extraVolumes": [{"name": "v", **source}]}


def key(**changed: Json) -> Json:
    return volume(secret={"secretName": "s", "items": [{"key": "k", "path": "p", **changed}]})


def sources(*each: Json) -> Json:
    return volume(projected={"sources": list(each)})


def mounted(*paths: str, **more: Json) -> Json:
    mounts = [{"name": "v", "mountPath": path, **more} for path in paths]
    return volume(emptyDir={}) | {"extraVolumeMounts": mounts}


TOKEN = {"serviceAccountToken": {"path": "p"}}
MAP = {"configMap": {"name": "c", "items": [{"key": "k", "path": "p"}]}}
# What the API server refuses, too: each with what helm says.
INVALID: list[tuple[Json, str]] = [
    (volume(emptyDir={}, hostPath={"path": "/a"}), "/extraVolumes/0"),
    ({"extraVolumes": [{"emptyDir": {}}]}, "'name'"),
    ({"extraVolumes": [{"name": "A", "emptyDir": {}}]}, "/extraVolumes/0/name"),
    ({"extraVolumes": [{"name": "a.b", "emptyDir": {}}]}, "/extraVolumes/0/name"),
    ({"extraVolumes": [{"name": 64 * "a", "emptyDir": {}}]}, "/extraVolumes/0/name"),
    ({"extraVolumes": 2 * [{"name": "v", "emptyDir": {}}]}, "two volumes are named v"),
    (volume(configMap={}), "'name'"),
    (volume(configMap={"name": ""}), "/configMap/name"),
    (volume(secret={"name": "s"}), "'name' not allowed"),
    (volume(secret={"secretName": "s", "defaultMode": 512}), "/defaultMode"),
    (volume(secret={"secretName": "s", "defaultMode": "0400"}), "/defaultMode"),
    (key(key=""), "/items/0/key"),
    (key(path=""), "/items/0/path"),
    (key(path="/p"), "/items/0/path"),
    (key(path="a/../p"), "/items/0/path"),
    (key(path="..p"), "/items/0/path"),
    (key(mode=-1), "/items/0/mode"),
    (sources({**TOKEN, **MAP}), "/sources/0"),
    (sources(MAP, MAP), "two files are named p"),
    (sources({"serviceAccountToken": {}}), "'path'"),
    (sources({"serviceAccountToken": {"path": "p", "expirationSeconds": 599}}), "/expirationSec"),
    (volume(downwardAPI={"items": [{"path": "p"}]}), "/items/0"),
    (
        volume(downwardAPI={"items": [{"path": "p", "fieldRef": {"fieldPath": "spec.nodeName"}}]}),
        "/fieldPath",
    ),
    (
        volume(
            downwardAPI={"items": [{"path": "p", "resourceFieldRef": {"resource": "limits.cpu"}}]}
        ),
        "'containerName'",
    ),
    (volume(emptyDir={"sizeLimit": "1 Gi"}), "/emptyDir/sizeLimit"),
    (volume(emptyDir={"size": "1Gi"}), "'size' not allowed"),
    (volume(csi={}), "'driver'"),
    (volume(csi={"driver": "-"}), "/csi/driver"),
    (volume(csi={"driver": "d", "volumeAttributes": {"a": 1}}), "/volumeAttributes/a"),
    (volume(csi={"driver": "d", "nodePublishSecretRef": {"name": ""}}), "/nodePublishSecretRef"),
    (volume(persistentVolumeClaim={"claimName": ""}), "/claimName"),
    (volume(hostPath={"path": ""}), "/hostPath/path"),
    (volume(hostPath={"path": "/a/../b"}), "/hostPath/path"),
    (volume(hostPath={"path": "/a", "type": "file"}), "/hostPath/type"),
    ({"extraVolumeMounts": [{"name": "v", "mountPath": "/a"}]}, "no volume in extraVolumes is"),
    (mounted(""), "/extraVolumeMounts/0/mountPath"),
    (mounted("/a", "/a"), "two mounts have the mountPath /a"),
    (mounted("/a", subPath="/b"), "/subPath"),
    (mounted("/a", subPath="b/../.."), "/subPath"),
    (mounted("/a", mode="ro"), "'mode' not allowed"),
]
OURS = ["/var/lib/trace-sidecar", "/etc/trace-sidecar/certificates"]
# What the API server admits, but would keep the sidecar from starting, take files from it, or is a
# mistake.
HARMFUL: list[tuple[Json, str]] = [
    (volume(), "/extraVolumes/0"),
    (sources({}), "/sources/0"),
    *((mounted(path), f"{path}, which is not free") for path in OURS),
    *((mounted(f"{path}/"), f"{path}, which is not free") for path in OURS),
    *((mounted(f"{path}/in/it"), f"{path}, which is not free") for path in OURS),
    (mounted("/var/lib"), "/var/lib/trace-sidecar, which is not free"),
    (mounted("/etc/trace-sidecar"), "/etc/trace-sidecar/certificates, which is not free"),
    (mounted("/proc/1"), "/proc, which is not free"),
    (mounted("/dev"), "/dev, which is not free"),
    (mounted("/"), "/extraVolumeMounts/0/mountPath"),
    (mounted("//var/lib"), "/extraVolumeMounts/0/mountPath"),
    (mounted("/a/../var/lib/trace-sidecar"), "/extraVolumeMounts/0/mountPath"),
    (mounted("etc/keys"), "/extraVolumeMounts/0/mountPath"),
    (mounted("./etc"), "/extraVolumeMounts/0/mountPath"),
    (mounted("/a:b"), "/extraVolumeMounts/0/mountPath"),
    (mounted("/a", "/a/"), "two mounts have the mountPath /a"),
    (
        {"extraVolumeMounts": [{"name": "trace-sidecar", "mountPath": "/a"}]}
        | {"spool": {"enabled": True}},
        "no volume in extraVolumes is named trace-sidecar",
    ),
    *(
        ({"extraVolumes": [{"name": name, "emptyDir": {}}]}, f"the name {name} is the chart's own")
        for name in ("trace-sidecar", "trace-sidecar-certificates", "trace-sidecar-headers")
    ),
    (sources(TOKEN, TOKEN), "two files are named p"),
]


@pytest.mark.parametrize(("sidecar", "says"), [*INVALID, *HARMFUL])
def test_what_is_refused(sidecar: Json, says: str) -> None:
    """The error names the wrong value."""
    assert says in refusal({"sidecar": sidecar})


def test_what_kubernetes_refuses(server: Cluster) -> None:
    """The API server rejects a pod with what the table says that it refuses, and no other."""

    def status(sidecar: Json) -> int:
        mounts = {"volumeMounts": sidecar.get("extraVolumeMounts", [])}
        own = {"name": "own", "image": "i", **mounts}
        pod = agent(initContainers=[own], volumes=sidecar.get("extraVolumes", []))
        return server.create("/api/v1/namespaces/elsewhere/pods", pod, dryRun="All").status

    wrong = [sidecar for sidecar, _ in INVALID if status(sidecar) == 201]
    assert wrong == []
    harmless = [
        sidecar for sidecar, _ in HARMFUL if "spool" not in sidecar and status(sidecar) != 201
    ]
    assert harmless == []


def test_files_in_them() -> None:
    """In the example of docs/deploy.md, the sidecar has every file that the settings name."""
    text = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
    block = text.split("\n## Volumes of your own\n")[1].split("```yaml\n")[1].split("```")[0]
    (values,) = documents(block)
    result = admit_one(values, agent_pod())
    assert result["warnings"] == []
    pod = result["pod"]
    environ = {e["name"]: e["value"] for e in sidecar_of(pod)["env"] if "value" in e}
    config = load(None, environ)
    volumes = by_name(pod["spec"]["volumes"])
    for path in (config.sgp.api_key_file, config.sgp.ca_file):
        (mount,) = [
            each
            for each in sidecar_of(pod)["volumeMounts"]
            if path.startswith(f"{each['mountPath']}/")
        ]
        assert "subPath" not in mount, "such a file is never updated"
        assert mount["name"] in volumes
    assert not config.sgp.missing, "the key's file enables SGP"

"""Certificates and headers: where the chart mounts them, and that the sidecar finds them."""

from pathlib import Path

import pytest

from sidecar.config_load import load
from tests.support.helm import CHART, Json, admit_one, agent_pod, helm, sidecar_of

MOUNTED = "/etc/trace-sidecar/certificates"
EACH: Json = {
    "agentex": {
        # Names that YAML could take for numbers.
        "ca": {"configMapName": "1e3", "key": "0x1"},
        "client": {"secretName": "agentex-client"},
    },
    # As cert-manager does: all in one Secret.
    "sgp": {
        "ca": {"secretName": "sgp-client"},
        "client": {
            "secretName": "sgp-client",
            "keys": {"certificate": "chain.pem", "privateKey": "key.pem"},
        },
    },
    "otlp": {"ca": {"secretName": "otlp-client"}, "client": {"secretName": "otlp-client"}},
}
SOURCES: dict[tuple[str, str], dict[str, str]] = {
    ("configMap", "1e3"): {"0x1": "agentex's CA", "other": ""},
    ("secret", "agentex-client"): {"tls.crt": "agentex's certificate", "tls.key": "agentex's key"},
    ("secret", "sgp-client"): {
        "ca.crt": "SGP's CA",
        "chain.pem": "SGP's certificate",
        "key.pem": "SGP's key",
    },
    ("secret", "otlp-client"): {
        "ca.crt": "OTLP's CA",
        "tls.crt": "OTLP's certificate",
        "tls.key": "OTLP's key",
    },
}


def injected(certificates: Json, **sidecar: Json) -> Json:
    """Return the spec of an agent's pod with the sidecar and these certificates."""
    values = {"sidecar": {"certificates": certificates, **sidecar}}
    result = admit_one(values, agent_pod())
    assert result["warnings"] == []
    return result["pod"]


def written(pod: Json, folder: Path) -> int:
    """Write the files of the projected volume below `folder`, as the kubelet does."""
    (volume,) = pod["spec"]["volumes"]
    (mount,) = sidecar_of(pod)["volumeMounts"]
    assert mount == {"name": volume["name"], "mountPath": MOUNTED, "readOnly": True}
    projected = volume["projected"]
    for source in projected["sources"]:
        ((kind, reference),) = source.items()
        assert set(reference) == {"name", "items"}, "nothing is optional"
        for item in reference["items"]:
            path = folder / item["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x") as file:
                file.write(SOURCES[kind, reference["name"]][item["key"]])
    mode: int = projected["defaultMode"]
    return mode


@pytest.mark.parametrize("mode", ["native", "container"])
def test_the_sidecar_finds_its_certificates(mode: str, tmp_path: Path) -> None:
    """Each file that the sidecar is told of has the content of the right key."""
    pod = injected(EACH, mode=mode)
    files_mode = written(pod, tmp_path)
    assert files_mode & 0o777 == 0o444, "readable for the user of the sidecar"
    environ = {entry["name"]: entry.get("value", "") for entry in sidecar_of(pod)["env"]}
    config = load(None, environ)
    sections = {"agentex": config.agentex, "SGP": config.sgp, "OTLP": config.otlp}
    for title, section in sections.items():
        found = {
            what: (tmp_path / Path(path).relative_to(MOUNTED)).read_text()
            for what, path in (
                ("CA", section.ca_file),
                ("certificate", section.client_cert_file),
                ("key", section.client_key_file),
            )
        }
        assert found == {what: f"{title}'s {what}" for what in found}


@pytest.mark.parametrize("upstream", EACH)
@pytest.mark.parametrize("part", ["ca", "client"])
def test_only_what_is_there_is_mounted(upstream: str, part: str, tmp_path: Path) -> None:
    """An upstream with one of the two gets no file of the other, nor do the other upstreams."""
    pod = injected({upstream: {part: EACH[upstream][part]}})
    written(pod, tmp_path)
    found = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    names = {"ca": ["ca.crt"], "client": ["tls.crt", "tls.key"]}[part]
    assert found == {Path(upstream) / name for name in names}
    settings = [
        entry for entry in sidecar_of(pod)["env"] if str(entry.get("value")).startswith(MOUNTED)
    ]
    assert len(settings) == len(found)
    assert {entry["name"].split("__")[0] for entry in settings} == {f"SIDECAR_{upstream.upper()}"}


def test_beside_a_spool() -> None:
    """The spool's volume and the certificates' are two volumes, mounted in two places."""
    pod = injected(EACH, spool={"enabled": True})
    names = ["trace-sidecar", "trace-sidecar-certificates"]
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == names
    mounts = sidecar_of(pod)["volumeMounts"]
    assert [mount["name"] for mount in mounts] == names
    # With a subPath, a container keeps the first content of a file.
    assert not any("subPath" in mount for mount in mounts)


def test_no_certificates_no_volume() -> None:
    """By default the sidecar has no volume."""
    pod = injected({})
    assert "volumes" not in pod["spec"]
    assert "volumeMounts" not in sidecar_of(pod)


def test_headers_that_an_agent_does_not_wait_for() -> None:
    """The sidecar is told of the file that holds the key; the pod starts without the Secret."""
    pod = injected({}, otlpHeaders={"secretName": "1e3", "key": "0x1"})
    (volume,) = pod["spec"]["volumes"]
    (mount,) = sidecar_of(pod)["volumeMounts"]
    assert mount == {"name": volume["name"], "mountPath": mount["mountPath"], "readOnly": True}
    secret = volume["secret"]
    assert (secret["secretName"], secret["optional"]) == ("1e3", True)
    (item,) = secret["items"]
    assert item["key"] == "0x1"
    assert secret["defaultMode"] & 0o777 == 0o444, "readable for the user of the sidecar"
    environ = {entry["name"]: entry.get("value", "") for entry in sidecar_of(pod)["env"]}
    assert load(None, environ).otlp.headers_file == f"{mount['mountPath']}/{item['path']}"


def test_the_notes_name_what_pods_wait_for() -> None:
    """The notes list the Secrets and ConfigMaps that every opted-in namespace needs."""

    def notes(values: Json) -> str:
        done = helm("install", "ts", CHART, "--dry-run=client", "--values", "-", values=values)
        assert not done.returncode, done.stderr
        return done.stdout.partition("NOTES:")[2]

    needed = "ConfigMap 1e3, Secret agentex-client, Secret otlp-client, Secret sgp-client."
    assert f"in their namespace: {needed}\n" in notes({"sidecar": {"certificates": EACH}})
    assert "in their namespace" not in notes({})

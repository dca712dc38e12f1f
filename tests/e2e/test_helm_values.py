"""Every value is documented, validated and used, and reaches the sidecar."""

import json
from pathlib import Path

import msgspec
import pytest

from sidecar.config import Config, PodConfig, redacted
from sidecar.config_load import load
from tests.support.helm import (
    CHART,
    LIBRARY,
    NODE,
    RELAYED,
    Json,
    admit,
    agent_pod,
    as_the_kubelet_fills_in,
    chart_with_files,
    nested,
    refusal,
    render,
    sidecar_of,
    template,
)
from tools import helm_readme

# Settings with chart values of their own, secrets, and settings that would be wrong in a pod.
NOT_IN_THE_CHART = {
    "listener.hosts": "loopback only: agents of the pod",
    "admin.host": "the kubelet asks the pod's address",
    "spool.path": "spool.enabled",
    "spool.max_bytes": "spool.maxBytes",
    "spool.sync": "spool.sync",
    "dead_letters.path": "deadLetters.enabled",
    "dead_letters.max_bytes": "deadLetters.maxBytes",
    "agentex.api_key": "credentials",
    "sgp.api_key": "credentials",
    "otlp.headers": "otlpHeaders",
    "pod.name": "podIdentity",
    "pod.namespace": "podIdentity",
    "pod.node": "podIdentity",
    "pod.wrong_variables": "the agent's variables must not keep it from starting",
}
# A non-default value for each of the sidecar's settings.
SETTINGS: dict[str, Json] = {
    "listener.allowed_hosts": ["spans.internal", "Agent-0"],
    "listener.port": 18318,
    "listener.max_body": "8MiB",
    "listener.body_timeout_s": 5.5,
    "listener.pass_through": True,
    "admin.port": 19318,
    "queue.max_bytes": "48MiB",
    "queue.start_hold_s": 0,
    "queue.open_span_ttl_s": 60,
    "agentex.base_url": "http://agentex.agentex.svc:5003/api",
    "agentex.api_key_file": "/etc/keys/agentex",
    "agentex.ca_file": "/etc/ssl/own ca.pem",
    "agentex.client_cert_file": "/c.pem",
    "agentex.client_key_file": "/k.pem",
    "agentex.max_concurrency": 1000000,
    "agentex.timeout_s": 12.5,
    "agentex.hide": ["data"],
    "sgp.base_url": "https://[fd00::1]:8443",
    "sgp.api_key_file": "/etc/keys/sgp",
    "sgp.ca_file": "/a.pem",
    "sgp.client_cert_file": "/é.pem",
    "sgp.client_key_file": "/k,2.pem",
    "sgp.account_id": "account 1",
    "sgp.max_batch": 1000,
    "sgp.max_batch_bytes": "512KiB",
    "sgp.linger_s": 0,
    "sgp.max_concurrency": 1,
    "sgp.timeout_s": 0.5,
    "sgp.open_writes": False,
    "sgp.relay": True,
    "sgp.hide": ["output", "input"],
    "otlp.endpoint": "https://collector.internal:4318/otlp",
    "otlp.headers_file": "/etc/keys/otlp headers",
    "otlp.compression": "gzip",
    "otlp.ca_file": "/a.pem",
    "otlp.client_cert_file": "/c.pem",
    "otlp.client_key_file": "/k.pem",
    "otlp.max_batch": 1,
    "otlp.max_batch_bytes": "2MiB",
    "otlp.linger_s": 0.5,
    "otlp.max_concurrency": 3,
    "otlp.timeout_s": 1,
    "otlp.hide": ["input", "output", "data"],
    "network.proxy": "http://[fd00::1]:3128/",
    "network.no_proxy": ".svc, 10.0.0.0/8,*.internal,[::1]",
    "network.max_connection_age_s": 0.5,
    "retry.initial_s": 0.001,
    "retry.max_s": 90000000,
    "retry.max_age_s": 3600,
    "admin.decisions": 1000000,
    "retry.max_attempts": 1,
    "shutdown.grace_s": 0,
    "shutdown.quiet_s": 0,
    "log.level": "debug",
    "log.format": "console",
}
SPOOL = {"sidecar": {"spool": {"enabled": True}}}
LETTERS = {"sidecar": {"deadLetters": {"enabled": True}}}
SECRET = {"sidecar": {"credentials": {"secretName": "s"}}}
VOLUMES = [{"name": "keys", "secret": {"secretName": "s"}}]
MOUNTABLE = {"sidecar": {"extraVolumes": VOLUMES}}
CERTIFIED = {"ca": {"secretName": "s"}, "client": {"secretName": "s"}}
UPSTREAMS = ("agentex", "sgp", "otlp")
CERTIFICATES = {"sidecar": {"certificates": dict.fromkeys(UPSTREAMS, CERTIFIED)}}
HEADERS = {"sidecar": {"otlpHeaders": {"secretName": "s"}}}
# What has an effect only beside another setting.
BESIDE = {
    f"{upstream}.client_key_file": {upstream: {"client_cert_file": "/c.pem"}}
    for upstream in UPSTREAMS
}
REDIRECTED = {"injection": {"setSgpClientBaseUrl": True}, "sidecar": RELAYED}
MONITOR = {"podMonitor": {"enabled": True}}
RULE = {"prometheusRule": {"enabled": True}}
WRITTEN = {"namespaces": ["a"], "podSelector": {"matchLabels": {"app": "agent"}}}
POLICY = {"networkPolicy": {"enabled": True, **WRITTEN}}
# Something to probe.
UPSTREAM = {"sidecar": {"config": {"agentex": {"base_url": "http://agentex"}}}}
BOARDS = {"dashboards": {"enabled": True}}
KEPT = {"secret": {"namespaces": ["a"]}, **SECRET}
# A non-default value for each of the chart's own, and what must be set for it to have an effect.
VALUES: dict[str, tuple[Json, Json]] = {
    "nameOverride": ("spans", {}),
    "fullnameOverride": ("spans", {}),
    "commonLabels": ({"team": "x"}, {}),
    "injection.enabled": (False, {}),
    "injection.apiVersion": ("admissionregistration.k8s.io/v1beta1", {}),
    "injection.failurePolicy": ("Fail", {}),
    "injection.namespaceLabel.name": ("spans", {}),
    "injection.namespaceLabel.value": ("on", {}),
    "injection.podLabel": ("spans", {}),
    "injection.podSelector": ({"matchLabels": {"app": "agent"}}, {}),
    "injection.agentContainers": (["agent"], {}),
    "injection.copyEnv": (["AGENT_NAME"], {}),
    "injection.setSgpClientBaseUrl": (True, {}),
    "injection.imagePullSecrets": (["registry"], {}),
    "injection.scrapeAnnotations": (True, {}),
    "injection.minGracePeriodSeconds": (60, {}),
    "injection.audit": (False, {}),
    "secret.namespaces": (["a"], SECRET),
    "secret.sgpApiKey": ("made-up", KEPT),
    "secret.sgpAccountId": ("made-up", KEPT),
    "secret.agentexApiKey": ("made-up", KEPT),
    "podMonitor.enabled": (True, {}),
    "podMonitor.labels": ({"release": "x"}, MONITOR),
    "podMonitor.interval": ("15s", MONITOR),
    "podMonitor.podSelector": ({"matchLabels": {"app": "agent"}}, MONITOR),
    "podMonitor.namespaces": (["a"], MONITOR),
    "networkPolicy.enabled": (True, {"networkPolicy": WRITTEN}),
    "networkPolicy.namespaces": (["b"], POLICY),
    "networkPolicy.podSelector": ({"matchLabels": {"app": "other"}}, POLICY),
    "networkPolicy.from": ([{"namespaceSelector": {"matchLabels": {"a": "b"}}}], POLICY),
    "networkPolicy.otherPortsOpen": (False, POLICY),
    "test.namespace": ("agents", {}),
    "test.probe": (False, UPSTREAM),
    "prometheusRule.enabled": (True, {}),
    "prometheusRule.labels": ({"release": "x"}, RULE),
    "prometheusRule.alertLabels": ({"team": "x"}, RULE),
    "prometheusRule.disabled": (["Late"], RULE),
    "prometheusRule.runbookUrl": ("https://wiki.example", RULE),
    "dashboards.enabled": (True, {}),
    "dashboards.namespace": ("monitoring", BOARDS),
    "dashboards.labels.grafana_dashboard": ("2", BOARDS),
    "dashboards.annotations": ({"folder": "x"}, BOARDS),
    "sidecar.mode": ("container", {}),
    "sidecar.image.repository": ("registry.example:5000/team/trace-sidecar", {}),
    "sidecar.image.tag": ("9", {}),
    "sidecar.image.digest": ("sha256:" + 64 * "0", {}),
    "sidecar.image.pullPolicy": ("Never", {}),
    "sidecar.podIdentity": (False, {}),
    "sidecar.spool.enabled": (True, {}),
    "sidecar.spool.maxBytes": ("1MiB", SPOOL),
    "sidecar.spool.sync": ("full", SPOOL),
    "sidecar.deadLetters.enabled": (True, {}),
    "sidecar.deadLetters.maxBytes": ("1MiB", LETTERS),
    "sidecar.volume.sizeLimit": ("2Gi", SPOOL),
    "sidecar.extraVolumes": (VOLUMES, {}),
    "sidecar.extraVolumeMounts": ([{"name": "keys", "mountPath": "/etc/keys"}], MOUNTABLE),
    "sidecar.credentials.secretName": ("s", {}),
    "sidecar.credentials.keys.sgpApiKey": ("k", SECRET),
    "sidecar.credentials.keys.sgpAccountId": ("k", SECRET),
    "sidecar.credentials.keys.agentexApiKey": ("k", SECRET),
    "sidecar.otlpHeaders.secretName": ("s", {}),
    "sidecar.otlpHeaders.key": ("k", HEADERS),
    **{
        f"sidecar.certificates.{upstream}.{path}": (f"other-{upstream}", needed)
        for upstream in UPSTREAMS
        for path, needed in (
            ("ca.configMapName", {}),
            ("ca.secretName", {}),
            ("ca.key", CERTIFICATES),
            ("client.secretName", {}),
            ("client.keys.certificate", CERTIFICATES),
            ("client.keys.privateKey", CERTIFICATES),
        )
    },
    "sidecar.agent.noProxy": (".svc,10.0.0.0/8", REDIRECTED),
    "sidecar.env": ([{"name": "X", "value": ""}], {}),
    "sidecar.resources.requests.cpu": ("1", {}),
    "sidecar.resources.requests.memory": ("128Mi", {}),
    "sidecar.resources.limits.memory": ("1Gi", {}),
    "sidecar.securityContext.runAsNonRoot": (False, {}),
    "sidecar.securityContext.runAsUser": (1000, {}),
    "sidecar.securityContext.runAsGroup": (1000, {}),
    "sidecar.securityContext.allowPrivilegeEscalation": (True, {}),
    "sidecar.securityContext.readOnlyRootFilesystem": (False, {}),
    "sidecar.securityContext.capabilities.drop": (["NET_RAW"], {}),
    "sidecar.securityContext.seccompProfile.type": ("Unconfined", {}),
    "sidecar.probes.startup.periodSeconds": (2, {}),
    "sidecar.probes.startup.failureThreshold": (2, {}),
    "sidecar.probes.liveness.periodSeconds": (2, {}),
    "sidecar.probes.liveness.timeoutSeconds": (2, {}),
    "sidecar.probes.liveness.failureThreshold": (2, {}),
    "sidecar.probes.readiness.enabled": (True, {}),
    "sidecar.probes.readiness.periodSeconds": (
        2,
        {"sidecar": {"probes": {"readiness": {"enabled": True}}}},
    ),
    **{
        f"sidecar.config.{path}": (value, {"sidecar": {"config": BESIDE.get(path, {})}})
        for path, value in SETTINGS.items()
    },
}


def merged(one: Json, other: Json) -> Json:
    """Merge two values; the second takes precedence."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return other
    return one | {key: merged(one.get(key), value) for key, value in other.items()}


def documented() -> dict[str, str]:
    """Return the path of every value with its comment, or else its section's."""
    found: dict[str, str] = {}
    sections: dict[str, str] = {}
    for file, prefix in ((CHART, ""), (LIBRARY, "sidecar.")):
        for row in helm_readme.values((file / "values.yaml").read_text()):
            path = prefix + row.path
            if row.default is None:
                sections[path] = row.text
            else:
                found[path] = row.text or sections.get(path.rpartition(".")[0], "")
    del found["sidecar"]
    return found | {f"sidecar.config.{row.path}": row.text for row in helm_readme.settings()}


def test_the_readmes_are_up_to_date() -> None:
    """The READMEs' tables are the output of `python tools/helm_readme.py`."""
    for readme in helm_readme.READMES:
        assert readme.read_text() == helm_readme.filled(readme), readme


def test_no_value_is_forgotten_here() -> None:
    """This test's table has exactly the documented values."""
    assert set(VALUES) == set(documented())


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the chart with two alerts and a dashboard of the test."""
    return chart_with_files(tmp_path_factory.mktemp("chart"))


def schema_of(path: str) -> tuple[Json, list[str]]:
    """Return the schema entry of a value, and the objects above it that take any key."""
    own, _, rest = path.partition("sidecar.")
    folder, keys = (CHART, own) if own else (LIBRARY, rest)
    schema = json.loads((folder / "values.schema.json").read_text())
    node, loose, above = schema, [], ""
    for key in keys.split("."):
        if node.get("additionalProperties") is not False:
            loose.append(above)
        others = node.get("additionalProperties") or None
        node = node["properties"][key] if key in node.get("properties", {}) else others
        assert node, f"{path} is not in the schema"
        if "$ref" in node:
            node = schema["definitions"][node["$ref"].rpartition("/")[2]]
        above = f"{above}.{key}".strip(".")
    return node, loose


# Maps whose keys are the user's own.
FREE = {"dashboards.labels"}


@pytest.mark.parametrize("path", VALUES)
def test_every_value(path: str, chart: Path) -> None:
    """It has a comment, a place in a closed schema, and an effect on what is rendered."""
    assert documented()[path]
    entry, loose = schema_of(path)
    assert entry.keys() & {"type", "enum", "anyOf"}
    assert set(loose) <= FREE
    value, needed = VALUES[path]
    before = template(values=needed, chart=chart)
    after = template(values=merged(needed, nested(path, value)), chart=chart)
    assert not after.returncode, after.stderr
    assert before.stdout != after.stdout


@pytest.mark.parametrize("path", sorted({path.rpartition(".")[0] for path in VALUES} - FREE))
def test_a_mistyped_value(path: str, chart: Path) -> None:
    """Beside every value, a key that does not exist is refused by name."""
    wrong = nested(f"{path}.enabld" if path else "enabld", True)
    assert "additional properties 'enabld' not allowed" in refusal(wrong, chart=chart)


def settings_of(values: Json) -> dict[str, str]:
    """Return the sidecar's environment for these values."""
    (answer,) = admit(render(values=values), agent_pod())
    filled = as_the_kubelet_fills_in(answer["pod"])
    return {entry["name"]: entry["value"] for entry in sidecar_of(filled)["env"]}


def test_the_sidecar_understands_its_settings() -> None:
    """Every setting reaches the sidecar's configuration with the value that was set."""
    values: Json = {}
    for path, value in SETTINGS.items():
        values = merged(values, nested(f"sidecar.config.{path}", value))
    config = redacted(load(None, settings_of(values)))
    for path, value in SETTINGS.items():
        section, _, key = path.partition(".")
        assert config[section][key] == value, path


def test_the_sidecar_understands_spool_and_dead_letters() -> None:
    """Spool and dead letters have paths on the volume, and the sizes that were set."""
    files = {"maxBytes": "96MiB", "enabled": True}
    values = {"sidecar": {"spool": {**files, "sync": "full"}, "deadLetters": files}}
    config = load(None, settings_of(values))
    assert config.spool.path.startswith("/var/lib/trace-sidecar/")
    assert config.dead_letters.path.startswith("/var/lib/trace-sidecar/")
    assert config.spool.max_bytes == config.dead_letters.max_bytes == 96 * 2**20
    assert config.spool.sync == "full"


@pytest.mark.parametrize("mode", ["native", "container"])
def test_the_sidecar_knows_its_pod(mode: str) -> None:
    """It is told the names of its pod, its namespace and its node, unless that is turned off."""
    values: Json = {"sidecar": {"mode": mode}}
    pod = load(None, settings_of(values)).pod
    assert (pod.name, pod.namespace, pod.node) == ("agent-0", "agents", NODE)
    values["sidecar"]["podIdentity"] = False
    assert load(None, settings_of(values)).pod == PodConfig(wrong_variables="ignore")


def test_every_setting_of_the_sidecar_is_known_to_the_chart() -> None:
    """Every key of the sidecar is in the schema, or excluded here with a reason."""
    keys = {
        f"{section.name}.{key.name}"
        for section in msgspec.structs.fields(Config)
        for key in msgspec.structs.fields(section.type)
    }
    assert set(SETTINGS) == keys - set(NOT_IN_THE_CHART)
    assert set(NOT_IN_THE_CHART) <= keys


@pytest.mark.parametrize("chart_folder", [CHART, LIBRARY], ids=lambda path: path.name)
def test_the_schema_is_closed(chart_folder: Path) -> None:
    """No object allows unknown keys, except maps whose values are validated."""
    loose = []

    def look(node: Json, path: str) -> None:
        if isinstance(node, dict):
            if node.get("type") == "object" and not (
                node.get("additionalProperties") is False
                or isinstance(node.get("additionalProperties"), dict)
            ):
                loose.append(path)
            for key, child in node.items():
                look(child, f"{path}/{key}")

    look(json.loads((chart_folder / "values.schema.json").read_text()), "")
    # Helm sets `global` itself; the library's schema validates `sidecar`.
    assert set(loose) <= {"/properties/global", "/properties/sidecar"}

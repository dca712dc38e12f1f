"""Values that can't work are refused at render time, by name."""

from pathlib import Path

import pytest

from sidecar.config import ConfigError
from sidecar.config_load import load, unknown_variables
from tests.support.helm import Json, chart_with_files, nested, refusal, template


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the chart with two alerts and a dashboard of the test."""
    return chart_with_files(tmp_path_factory.mktemp("chart"))


BAD_SETTINGS: list[tuple[str, Json]] = [
    ("listener.port", 70000),
    ("listener.port", "http"),
    ("listener.max_body", "8 megabytes"),
    ("listener.body_timeout_s", 0),
    ("queue.max_bytes", "8M"),
    ("queue.start_hold_s", -1),
    ("agentex.base_url", "agentex:5003"),
    ("agentex.base_url", "http://agent ex"),
    ("agentex.base_url", "https://agentex/?a=b"),
    ("sgp.base_url", "https://sgp/v5#spans"),
    ("agentex.max_concurrency", 0),
    ("sgp.base_url", "ftp://sgp"),
    ("sgp.account_id", "line\nbreak"),
    ("sgp.max_batch", 1001),
    ("sgp.open_writes", "sometimes"),
    ("sgp.relay", "yes please"),
    ("network.proxy", "https://proxy:3129"),
    ("network.proxy", "socks5://proxy:1080"),
    ("network.proxy", "http://proxy/?a"),
    ("network.max_connection_age_s", 0),
    ("network.proxies", "auto"),
    ("admin.decisions", 1000001),
    ("retry.max_attempts", 0.5),
    ("log.level", "loud"),
    ("log.colour", "blue"),
]


@pytest.mark.parametrize(("path", "value"), BAD_SETTINGS)
def test_what_the_sidecar_would_refuse_is_refused_before(path: str, value: Json) -> None:
    """The chart refuses what the sidecar would refuse, because it would keep the agent waiting."""
    section, _, key = path.partition(".")
    with pytest.raises(ConfigError):
        load(None, {f"SIDECAR_{section}__{key}".upper(): str(value)})
    assert "values don't meet the specifications" in refusal(
        nested(f"sidecar.config.{path}", value)
    )


def test_an_unknown_section_is_refused() -> None:
    """The chart refuses what the sidecar would only warn about."""
    assert unknown_variables({"SIDECAR_NONSENSE__KEY": "1"})
    assert "values don't meet the specifications" in refusal(
        nested("sidecar.config.nonsense.key", 1)
    )


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"listener": {"port": 9318}}, "must differ"),
        ({"queue": {"max_bytes": "0MiB"}}, "config.queue.max_bytes (0MiB) must be above 0"),
        ({"queue": {"start_hold_s": 4000}}, "start_hold_s (4000) must not be more than"),
        ({"queue": {"open_span_ttl_s": 1}}, "must not be more than open_span_ttl_s (1)"),
        ({"sgp": {"base_url": "http://localhost:8318"}}, "the sidecar's own address"),
        ({"agentex": {"base_url": "https://[::1]:8318/x"}}, "the sidecar's own address"),
        ({"otlp": {"endpoint": "http://127.0.0.1:8318"}}, "config.otlp.endpoint (http://127"),
        (
            {
                "agentex": {"base_url": "http://Spans.x:8318"},
                "listener": {"allowed_hosts": ["spans.x"]},
            },
            "the sidecar's own address",
        ),
        ({"retry": {"max_s": 0.25}}, "initial_s (0.5) must not be more than max_s (0.25)"),
        ({"sgp": {"client_key_file": "/k"}}, "config.sgp.client_key_file needs client_cert_file"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(config: Json, says: str) -> None:
    """The chart has the sidecar's checks across keys."""
    assert says in refusal({"sidecar": {"config": config}})


CA = {"ca": {"secretName": "s"}}
CLIENT = {"client": {"secretName": "s"}}
SECRET_PROXY = {
    "name": "SIDECAR_NETWORK__PROXY",
    "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}},
}


@pytest.mark.parametrize(
    ("sidecar", "says"),
    [
        (
            {"certificates": {"sgp": CA}, "config": {"sgp": {"ca_file": "/a"}}},
            "certificates.sgp.ca and config.sgp.ca_file (/a) exclude each other",
        ),
        (
            {
                "certificates": {"agentex": CLIENT},
                "config": {"agentex": {"client_cert_file": "/c"}},
            },
            "certificates.agentex.client and config.agentex.client_cert_file (/c)",
        ),
        (
            {"certificates": {"agentex": CLIENT}, "config": {"agentex": {"client_key_file": "/k"}}},
            "config.agentex.client_key_file needs client_cert_file",
        ),
        (
            {"otlpHeaders": {"secretName": "s"}, "config": {"otlp": {"headers_file": "/h"}}},
            "otlpHeaders.secretName and config.otlp.headers_file (/h) exclude each other",
        ),
        (
            {"env": [SECRET_PROXY], "config": {"network": {"proxy": "none"}}},
            "SIDECAR_NETWORK__PROXY in env and config.network.proxy",
        ),
        ({"config": {"pod": {"name": "mine"}}}, "additional properties 'pod' not allowed"),
        ({"env": [{"name": "SIDECAR_POD__NODE", "value": "mine"}]}, "/env/0/name"),
    ],
)
def test_the_same_setting_from_two_places_is_refused(sidecar: Json, says: str) -> None:
    """A file by hand excludes one that the chart mounts, as do two proxies; a pod has one name."""
    assert says in refusal({"sidecar": sidecar})


def test_settings_of_different_upstreams_are_accepted_together() -> None:
    """A file by hand for one upstream, and mounted ones for the other, exclude each other not."""
    sidecar = {
        "certificates": {"sgp": CA | CLIENT},
        "config": {"agentex": {"ca_file": "/a", "client_cert_file": "/c"}},
        "env": [SECRET_PROXY],
    }
    done = template(values={"sidecar": sidecar})
    assert not done.returncode, done.stderr


@pytest.mark.parametrize(
    ("spool", "letters", "limit"),
    [
        ("820MiB", None, "1Gi"),
        ("756MiB", "64MiB", "1Gi"),
        (None, "410MiB", "512Mi"),
        ("1GiB", None, "1Gi"),
    ],
)
def test_files_above_80_percent_of_the_volume_are_refused(
    spool: str | None, letters: str | None, limit: str
) -> None:
    """The error has both sizes; one MiB less is accepted."""

    def values(less: int) -> Json:
        sidecar: Json = {"volume": {"sizeLimit": limit}}
        for name, size in (("spool", spool), ("deadLetters", letters)):
            if size:
                mib = int(size[:-3]) * (1024 if size.endswith("GiB") else 1)
                cut = less if name == "spool" or not spool else 0
                sidecar[name] = {"enabled": True, "maxBytes": f"{mib - cut}MiB" if cut else size}
        return {"sidecar": sidecar}

    message = refusal(values(0))
    assert "80% of volume.sizeLimit" in message
    assert f"({limit})" in message
    assert f"({spool or letters})" in message
    just = 205 if spool == "1GiB" else 1
    done = template(values=values(just))
    assert not done.returncode, done.stderr


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"image": {}}, "additional properties 'image' not allowed"),
        ({"sidecar": {"image": {"name": "x"}}}, "additional properties 'name' not allowed"),
        ({"sidecar": {"image": {"digest": "sha256:1"}}}, "/image/digest"),
        ({"sidecar": {"mode": "init"}}, "/mode"),
        ({"sidecar": {"resources": {"requests": {"cpu": None}}}}, "missing property 'cpu'"),
        ({"sidecar": {"resources": {"limits": {"ephemeral-storage": "1Gi"}}}}, "ephemeral-storage"),
        ({"sidecar": {"resources": {"limits": {"memory": "64Mi"}}}}, "(64Mi)"),
        ({"sidecar": {"resources": {"requests": {"cpu": -1}}}}, "/resources/requests/cpu"),
        ({"sidecar": {"resources": {"requests": {"cpu": "0m"}}}}, "cpu (0m) must be above 0"),
        ({"sidecar": {"resources": {"limits": {"memory": "192m"}}}}, "(192m) must be at least 1Mi"),
        ({"sidecar": {"volume": {"sizeLimit": "8Ei"}}}, "volume.sizeLimit (8Ei) is more than"),
        ({"sidecar": {"spool": {"maxBytes": "512M"}}}, "/spool/maxBytes"),
        ({"sidecar": {"spool": {"maxBytes": 1048575}}}, "maxBytes (1048575) must be at least 1MiB"),
        ({"sidecar": {"securityContext": {"privileged": True}}}, "privileged"),
        ({"sidecar": {"securityContext": {"runAsUser": 0}}}, "/securityContext/runAsUser"),
        ({"sidecar": {"env": [{"name": "X", "value": 5}]}}, "/env/0/value"),
        ({"sidecar": {"env": [{"name": "X"}]}}, "/env/0"),
        ({"sidecar": {"env": [{"name": "SIDECAR_TYPO__X", "value": ""}]}}, "/env/0/name"),
        (
            {
                "sidecar": {
                    "env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]
                }
            },
            "/env/0/valueFrom/fieldRef/fieldPath",
        ),
        # With a credential in it, it belongs in a Secret, and without one in `config`.
        ({"sidecar": {"env": [{"name": SECRET_PROXY["name"], "value": "http://p"}]}}, "/env/0"),
        ({"sidecar": {"config": {"network": {"proxy": "http://u:p@h:1"}}}}, "/network/proxy"),
        ({"sidecar": {"config": {"agentex": {"ca_file": "ca.pem"}}}}, "/agentex/ca_file"),
        ({"sidecar": {"config": {"listener": {"hosts": ["0.0.0.0"]}}}}, "'hosts' not allowed"),
        ({"sidecar": {"config": {"listener": {"allowed_hosts": ["a,b"]}}}}, "/allowed_hosts/0"),
        (
            {
                "sidecar": {
                    "certificates": {"sgp": {"ca": {"secretName": "s", "configMapName": "c"}}}
                }
            },
            "/certificates/sgp/ca",
        ),
        ({"sidecar": {"certificates": {"sgp": {"ca": {"secretName": "S"}}}}}, "/ca/secretName"),
        ({"sidecar": {"certificates": {"agentex": {"ca": {"key": "..ca"}}}}}, "/agentex/ca/key"),
        ({"sidecar": {"certificates": {"agentex": {"ca": {"key": ""}}}}}, "/agentex/ca/key"),
        ({"sidecar": {"certificates": {"jaeger": CA}}}, "'jaeger' not allowed"),
        ({"sidecar": {"config": {"otlp": {"headers": {"a": "b"}}}}}, "'headers' not allowed"),
        ({"sidecar": {"config": {"otlp": {"hide": ["inputs"]}}}}, "/otlp/hide/0"),
        ({"sidecar": {"config": {"sgp": {"hide": ["data", "data"]}}}}, "/sgp/hide"),
        ({"sidecar": {"otlpHeaders": {"secretName": "S"}}}, "/otlpHeaders/secretName"),
        ({"sidecar": {"credentials": {"keys": {"sgpApiKey": ".."}}}}, "/keys/sgpApiKey"),
        ({"sidecar": {"agent": {"noProxy": "a,*"}}}, "/agent/noProxy"),
        ({"sidecar": {"agent": {"noProxy": "a b"}}}, "/agent/noProxy"),
        ({"injection": {"failurePolicy": "ignore"}}, "/injection/failurePolicy"),
        ({"injection": {"podSelector": {"app": "x"}}}, "/injection/podSelector"),
        ({"injection": {"minGracePeriodSeconds": 25}}, "sidecar.config.shutdown.grace_s (25)"),
        ({"secret": {"namespaces": ["a"]}}, "sidecar.credentials.secretName"),
        ({"podMonitor": {"interval": 30}}, "/podMonitor/interval"),
        ({"prometheusRule": {"enabled": True, "disabled": ["Nope"]}}, "no alert Nope"),
    ],
)
def test_wrong_values_are_refused(values: Json, says: str, chart: Path) -> None:
    """The error names the wrong value."""
    assert says in refusal(values, chart=chart)

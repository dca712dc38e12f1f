"""How the policy changes the environment of the sidecar and of the agent's containers."""

import re

import pytest

from sidecar.config import ConfigError
from sidecar.config_load import load
from tests.support.helm import RELAYED, Json, agent_pod, only, render, sidecar_of
from tests.support.helm import admit_one as one

URL = "http://127.0.0.1:8318"
SECRET = {"secretKeyRef": {"name": "sgp", "key": "key"}}


def agent(pod: Json) -> Json:
    """Return the agent's own container."""
    (container,) = (item for item in pod["spec"]["containers"] if item["name"] == "agent")
    return container


def with_env(*env: Json, **spec: Json) -> Json:
    """Return an agent's pod with these environment entries."""
    return agent_pod(containers=[{"name": "agent", "image": "agent:1", "env": list(env)}], **spec)


def test_the_agents_environment_is_taken_over() -> None:
    """The listed variables are copied in order, as literals and references; others are not."""
    wanted = [
        {"name": "AGENTEX_BASE_URL", "value": "http://agentex:5003"},
        {"name": "SGP_API_KEY", "valueFrom": SECRET},
        {"name": "WORKFLOW_NAME", "value": "w"},
    ]
    pod = with_env(wanted[0], {"name": "OTHER", "value": "x"}, *wanted[1:])
    injected = one({}, pod)["pod"]
    own = [item for item in sidecar_of(injected)["env"] if item["name"].startswith("SIDECAR_")]
    assert sidecar_of(injected)["env"] == own + wanted
    assert agent(injected) == pod["spec"]["containers"][0]


@pytest.mark.parametrize("mode", ["native", "container"])
def test_taking_over_counts_from_where_the_sidecar_is(mode: str) -> None:
    """The copy has the right index with init containers, several containers and a named one."""
    entry = {"name": "AGENT_NAME", "value": "mine"}
    pod = agent_pod(
        initContainers=[{"name": "init", "image": "i"}],
        containers=[
            {"name": "proxy", "image": "p", "env": [{"name": "AGENT_NAME", "value": "not mine"}]},
            {"name": "agent", "image": "a", "env": [{"name": "X", "value": ""}, entry]},
        ],
    )
    values = {"sidecar": {"mode": mode}, "injection": {"agentContainers": ["agent"]}}
    injected = one(values, pod)["pod"]
    assert sidecar_of(injected)["env"][-1] == entry
    assert injected["spec"]["initContainers"][0] == {"name": "init", "image": "i"}


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "http://localhost:8318/",
        "https://[::1]:8318",
        " HTTP://a@LocalHost:8318?x",
        "http://127.0.0.2:8318",
        "http://localhost.:8318",
        "http://0.0.0.0:8318",
        "http://[::]:8318",
    ],
)
def test_the_sidecar_is_never_its_own_upstream(url: str) -> None:
    """A URL of the sidecar itself is not copied to the sidecar."""
    with pytest.raises(ConfigError):
        load(None, {"SGP_CLIENT_BASE_URL": url})
    injected = one({}, with_env({"name": "SGP_CLIENT_BASE_URL", "value": url}))["pod"]
    assert "SGP_CLIENT_BASE_URL" not in [item["name"] for item in sidecar_of(injected)["env"]]


def test_a_name_of_the_sidecar_is_not_its_upstream() -> None:
    """A URL with a name by which agents may reach the sidecar is not copied, if it has its port."""
    values = {"sidecar": {"config": {"listener": {"allowed_hosts": ["spans.x"]}}}}
    for url, copied in (
        ("http://Spans.x:8318/v5", False),
        ("http://spansax:8318", True),
        ("http://spans.x:83", True),
    ):
        entry = {"name": "AGENTEX_BASE_URL", "value": url}
        assert (entry in sidecar_of(one(values, with_env(entry))["pod"])["env"]) == copied


@pytest.mark.parametrize("value", ["a\n\u2028b", "\u2028\n a", "- a\n# b\n\n", "1e3"])
def test_any_text_is_passed_on(value: str) -> None:
    """A variable from the values has the same text in the sidecar, whatever YAML makes of it."""
    entry = {"name": "X", "value": value}
    container = sidecar_of(one({"sidecar": {"env": [entry]}}, agent_pod())["pod"])
    assert container["env"][-1] == entry


@pytest.mark.parametrize("url", ["http://localhost:83180", "http://sgp.example:8318"])
def test_what_only_looks_like_the_sidecar_is_taken_over(url: str) -> None:
    """A URL with another port or host is copied."""
    entry = {"name": "SGP_CLIENT_BASE_URL", "value": url}
    assert entry in sidecar_of(one({}, with_env(entry))["pod"])["env"]


def test_a_value_made_of_other_variables_is_not_taken_over() -> None:
    """A value that can't be resolved in the sidecar is not copied: it would be a wrong address."""
    injected = one({}, with_env({"name": "AGENTEX_BASE_URL", "value": "http://$(HOST)"}))["pod"]
    assert "AGENTEX_BASE_URL" not in [item["name"] for item in sidecar_of(injected)["env"]]


def test_what_the_chart_sets_is_not_taken_over() -> None:
    """A credential from the chart's Secret is not duplicated by the agent's."""
    values = {"sidecar": {"credentials": {"secretName": "spans"}}}
    injected = one(values, with_env({"name": "SGP_API_KEY", "valueFrom": SECRET}))["pod"]
    names = [item["name"] for item in sidecar_of(injected)["env"]]
    assert names.count("SGP_API_KEY") == 1
    (entry,) = (item for item in sidecar_of(injected)["env"] if item["name"] == "SGP_API_KEY")
    assert entry["valueFrom"]["secretKeyRef"]["name"] == "spans"
    assert entry["valueFrom"]["secretKeyRef"]["optional"] is True


def test_the_agent_is_pointed_at_the_sidecar_where_asked() -> None:
    """Containers with this SGP get the sidecar's URL; the old one becomes the upstream."""
    real = {"name": "SGP_CLIENT_BASE_URL", "value": "https://sgp.example"}
    here = {"name": "SGP_CLIENT_BASE_URL", "value": URL}
    direct = {"name": "NO_PROXY", "value": "127.0.0.1,localhost,::1"}
    other = {"name": "X", "value": "1"}
    pod = agent_pod(
        containers=[
            {"name": "agent", "image": "a", "env": [other, real, other]},
            {"name": "worker", "image": "a", "env": [other, real]},
            {"name": "from", "image": "a", "env": [{**real, "valueFrom": SECRET}]},
        ]
    )
    values = {"injection": {"setSgpClientBaseUrl": True}, "sidecar": RELAYED}
    injected = one(values, pod)["pod"]
    environments = [container["env"] for container in injected["spec"]["containers"]]
    assert environments == [
        [other, here, other, direct],
        [other, here, direct],
        [{**real, "valueFrom": SECRET}],
    ]
    assert real in sidecar_of(injected)["env"]
    passed_on = {"name": "SIDECAR_LISTENER__PASS_THROUGH", "value": "true"}
    assert passed_on in sidecar_of(injected)["env"]
    assert one({}, pod)["pod"]["spec"]["containers"] == pod["spec"]["containers"]


def test_passing_other_calls_on_can_be_refused() -> None:
    """An explicit pass_through is not overridden."""
    values = {
        "injection": {"setSgpClientBaseUrl": True},
        "sidecar": {"config": {"listener": {"pass_through": False}, "sgp": {"relay": True}}},
    }
    environment = sidecar_of(one(values, agent_pod())["pod"])["env"]
    assert {"name": "SIDECAR_LISTENER__PASS_THROUGH", "value": "false"} in environment


def test_no_patch_adds_a_list_of_typed_objects() -> None:
    """No patch has a list of typed objects as value: kube-apiserver 1.36.3 panics on it."""
    more = {"spool": {"enabled": True}, "env": [{"name": "X", "value": ""}]}
    values = {"sidecar": more, "injection": {"setSgpClientBaseUrl": True}}
    policy = only(render(values=values), "MutatingAdmissionPolicy")
    expression = policy["spec"]["mutations"][0]["jsonPatch"]["expression"]
    assert "value: []" in expression
    assert not re.search(r"value:\s*\[\s*Object", expression)

"""Proxies in the agent's pod: its posts for the sidecar do not go there, the sidecar's own do."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from sidecar.config_load import load
from sidecar.network.proxies import find_proxy
from sidecar.process.addresses import parse_base_url
from tests.e2e import parts
from tests.e2e.agents import proxy_client
from tests.support.helm import RELAYED, Json, admit, admit_one, agent_pod, only, render, sidecar_of

REDIRECTED: Json = {"injection": {"setSgpClientBaseUrl": True}, "sidecar": RELAYED}
LISTENER = "127.0.0.1"
LOOPBACK = f"{LISTENER},localhost,::1"
UNSEEN = f"$(NO_PROXY),$(no_proxy),{LOOPBACK}"
DEADLINE_S = 90
# Addresses of this machine that stand for other hosts.
KEPT, OTHER = "127.0.0.2", "127.0.0.3"
SOURCES: dict[str, dict[str, str]] = {
    "kept": {"key": KEPT},
    "upper": {"NO_PROXY": KEPT, "TOKEN": "x"},
    "lower": {"no_proxy": KEPT},
    "both": {"NO_PROXY": KEPT, "no_proxy": KEPT},
    "others": {"TOKEN": "x"},
}


def literal(value: str, name: str = "NO_PROXY") -> Json:
    """Return a variable with a value."""
    return {"name": name, "value": value}


def reference(name: str = "NO_PROXY", source: str = "kept") -> Json:
    """Return a variable from a ConfigMap, which may be absent."""
    ref = {"name": source, "key": "key", "optional": True}
    return {"name": name, "valueFrom": {"configMapKeyRef": ref}}


def renamed(entry: Json) -> list[Json]:
    """Return what a reference becomes."""
    name = f"TRACE_SIDECAR_KEPT_{entry['name']}"
    return [{**entry, "name": name}, literal(f"$({name}),{LOOPBACK}", entry["name"])]


NEW = literal(LOOPBACK)
X = literal("x", "X")
# The agent's variables, the ConfigMap or Secret of its envFrom, and its variables afterwards.
CASES: dict[str, tuple[list[Json], str, list[Json]]] = {
    "nothing": ([], "", [NEW]),
    "one": ([literal(KEPT), X], "", [literal(f"{KEPT},{LOOPBACK}"), X]),
    "some of the names": (
        [literal(f"localhost ,{KEPT}")],
        "",
        [literal(f"localhost ,{KEPT},127.0.0.1,::1")],
    ),
    "all of the names": ([literal(f"::1, {LOOPBACK}")], "", [literal(f"::1, {LOOPBACK}")]),
    "what contains a name": (
        [literal("127.0.0.10,a.localhost")],
        "",
        [literal(f"127.0.0.10,a.localhost,{LOOPBACK}")],
    ),
    "everything": ([literal("*")], "", [literal("*")]),
    "a star with spaces": ([literal(" * ")], "", [literal(f" * ,{LOOPBACK}")]),
    "a star among others": ([literal("*,a")], "", [literal(f"*,a,{LOOPBACK}")]),
    "empty": ([literal("")], "", [NEW]),
    # The last one counts.
    "twice": ([literal("a"), literal(KEPT)], "", [literal("a"), literal(f"{KEPT},{LOOPBACK}")]),
    "a reference after a value": (
        [literal("a"), reference()],
        "",
        [literal("a"), *renamed(reference())],
    ),
    "in lower case": (
        [literal(KEPT, "no_proxy")],
        "",
        [literal(f"{KEPT},{LOOPBACK}", "no_proxy")],
    ),
    "in both": (
        [literal(OTHER), literal(KEPT, "no_proxy")],
        "",
        [literal(f"{OTHER},{LOOPBACK}"), literal(f"{KEPT},{LOOPBACK}", "no_proxy")],
    ),
    "of other variables": (
        [literal(KEPT, "X"), literal("$(X),a")],
        "",
        [literal(KEPT, "X"), literal(f"$(X),a,{LOOPBACK}")],
    ),
    "a reference": ([reference(), X], "", [*renamed(reference()), X]),
    "a reference that others use": (
        [reference(), literal("$(NO_PROXY)", "no_proxy")],
        "",
        [*renamed(reference()), literal(f"$(NO_PROXY),{LOOPBACK}", "no_proxy")],
    ),
    "references": (
        [reference("no_proxy"), X, reference()],
        "",
        [*renamed(reference("no_proxy")), X, *renamed(reference())],
    ),
    "a reference to nothing": (
        [reference(source="absent")],
        "",
        renamed(reference(source="absent")),
    ),
    "unseen, in capitals": ([X], "upper", [X, literal(UNSEEN), literal(UNSEEN, "no_proxy")]),
    "unseen, in lower case": ([], "lower", [literal(UNSEEN), literal(UNSEEN, "no_proxy")]),
    "unseen, both": ([], "both", [literal(UNSEEN), literal(UNSEEN, "no_proxy")]),
    "unseen, none": ([], "others", [literal(UNSEEN), literal(UNSEEN, "no_proxy")]),
    "seen and unseen": (
        [literal("x")],
        "lower",
        [literal(f"x,{LOOPBACK}"), literal(UNSEEN, "no_proxy")],
    ),
    "seen in lower case": (
        [literal(KEPT, "no_proxy")],
        "both",
        [literal(f"{KEPT},{LOOPBACK}", "no_proxy")],
    ),
    "everything, and unseen": ([literal("*")], "others", [literal("*")]),
}


def agent(env: list[Json], source: str = "") -> Json:
    """Return an agent's pod with these variables."""
    container: Json = {"name": "agent", "image": "agent:1", "env": env}
    if source:
        container["envFrom"] = [{"secretRef": {"name": source}}]
    return agent_pod(containers=[container])


@pytest.fixture(scope="module")
def injected() -> dict[str, Json]:
    """Return the agent's container of each case after injection."""
    pods = [agent(env, source) for env, source, _ in CASES.values()]
    answers = admit(render(values=REDIRECTED), *pods)
    containers = [answer["pod"]["spec"]["containers"][0] for answer in answers]
    return dict(zip(CASES, containers, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_what_the_agent_has_is_kept(injected: dict[str, Json], case: str) -> None:
    """The loopback names are added to what a container has; a variable is new only if none is."""
    expected = CASES[case][2]
    env = injected[case]["env"]
    assert [entry for entry in env if entry["name"] != "SGP_CLIENT_BASE_URL"] == expected
    assert len(env) == len(expected) + 1


def process_environment(container: Json) -> dict[str, str]:
    """Return the variables of the container's process, as the kubelet makes them."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= SOURCES[source["secretRef"]["name"]]

    def expanded(match: re.Match[str]) -> str:
        return "$" if match[1] is None else found.get(match[1], match[0])

    for entry in container["env"]:
        if "valueFrom" not in entry:
            # One pass: references in what a reference stands for stay as they are.
            found[entry["name"]] = re.sub(r"\$(?:\$|\(([^)]*)\))", expanded, entry["value"])
            continue
        ref = entry["valueFrom"].get("configMapKeyRef", {"name": ""})
        if ref["name"] in SOURCES:
            found[entry["name"]] = SOURCES[ref["name"]][ref["key"]]
    return found


class _Host(BaseHTTPRequestHandler):
    """Every host of the test, and the proxy: tells which one was asked."""

    def do_GET(self) -> None:
        """Answer; only proxies get whole URLs."""
        body = b"proxy" if self.path.startswith("http:") else b"host"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Log nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Return the port of the proxy and of all hosts."""
    with ExitStack() as stack:
        port = 0
        for host in (LISTENER, KEPT, OTHER):
            server = stack.enter_context(ThreadingHTTPServer((host, port), _Host))
            port = server.server_address[1]
            Thread(target=server.serve_forever).start()
            stack.callback(server.shutdown)
        yield port


def ways(client: str, environments: list[dict[str, str]], urls: list[str]) -> list[list[str]]:
    """Return who answers a client in each environment, for each URL."""
    if client == "curl":
        if shutil.which("curl") is None:
            parts.debian("curl")
        curl = ("curl", "--disable", "--silent", "--show-error")
        return [
            [
                subprocess.run(
                    [*curl, url],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=DEADLINE_S,
                ).stdout
                for url in urls
            ]
            for environment in environments
        ]
    # The same as in test_http_clients.py: the first to come makes it.
    python = parts.venv("http-clients", "requests", "httpx", "urllib3", "aiohttp")
    done = subprocess.run(
        [python, "-I", Path(proxy_client.__file__), client],
        input=json.dumps({"environments": environments, "urls": urls}),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answers: list[list[str]] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("client", [*proxy_client.LIBRARIES, "curl"])
def test_real_clients_of_the_agent(injected: dict[str, Json], port: int, client: str) -> None:
    """Posts for the sidecar go to no proxy, and all others take the way that they took before."""
    # Most programs read the variable in lower case only.
    proxy = {"http_proxy": f"http://127.0.0.1:{port}"}
    plain = {case: agent(env, source)["spec"]["containers"][0]
             for case, (env, source, _) in CASES.items()}  # fmt: skip
    hosts = (LISTENER, "localhost", KEPT, OTHER)
    urls = [f"http://{host}:{port}/" for host in hosts]
    before, after = (
        ways(client, [proxy | process_environment(one) for one in containers.values()], urls)
        for containers in (plain, injected)
    )
    for case, old, new in zip(CASES, before, after, strict=True):
        assert new == ["host", "host", *old[2:]], (case, old)
    assert ["proxy", "proxy", "host", "proxy"] in before, "the proxy is used"


def test_the_operators_own_exceptions() -> None:
    """`agent.noProxy` is for containers that have none, and for those whose own can't be seen."""
    values = {**REDIRECTED, "sidecar": {"agent": {"noProxy": ".svc,10.0.0.0/8"}, **RELAYED}}
    pods = [agent([]), agent([literal("x")]), agent([], "others")]
    found = admit(render(values=values), *pods)
    new = [answer["pod"]["spec"]["containers"][0]["env"][-1]["value"] for answer in found[::2]]
    assert new == [f".svc,10.0.0.0/8,{LOOPBACK}", UNSEEN]
    assert found[2]["pod"]["spec"]["containers"][0]["env"][1] == literal(
        f".svc,10.0.0.0/8,{UNSEEN}"
    )
    assert found[1]["pod"]["spec"]["containers"][0]["env"][0] == literal(f"x,{LOOPBACK}")


def test_only_the_agents_containers_change() -> None:
    """Containers that do not get the sidecar's URL, and the sidecar, keep their exceptions."""
    both = [literal(KEPT), literal("http://p:1", "HTTP_PROXY")]
    pod = agent(both)
    pod["spec"]["containers"].append({"name": "other", "image": "o", "env": both})
    for mode in ("native", "container"):
        values = {
            "injection": {**REDIRECTED["injection"], "agentContainers": ["agent"]},
            "sidecar": {"mode": mode, **RELAYED},
        }
        result = admit_one(values, pod)["pod"]
        assert result["spec"]["containers"][1]["env"] == both
        assert sidecar_of(result)["env"][-2:] == both
        everywhere = admit_one({**REDIRECTED, "sidecar": {"mode": mode, **RELAYED}}, pod)["pod"]
        assert sidecar_of(everywhere)["env"][-2:] == both
        assert literal(f"{KEPT},{LOOPBACK}") in everywhere["spec"]["containers"][1]["env"]
    assert admit_one({}, pod)["pod"]["spec"]["containers"] == pod["spec"]["containers"]


PROXIES = [
    literal("http://user:pw@proxy:3128", "https_proxy"),
    literal("proxy:3128", "HTTP_PROXY"),
    literal(f".svc,http://x,{KEPT}"),
    literal("", "ALL_PROXY"),
]


def taken(env: list[Json], values: Json = None) -> list[Json]:
    """Return the proxies' variables that the sidecar gets."""
    found = sidecar_of(admit_one(values or {}, agent(env))["pod"])["env"]
    return [entry for entry in found if entry["name"].lower().endswith("_proxy")]


def test_the_sidecar_takes_over_the_agents_proxies() -> None:
    """What the agent's clients reach through a proxy, the sidecar reaches through it, too."""
    assert taken(PROXIES) == PROXIES
    environ = {entry["name"]: entry["value"] for entry in taken(PROXIES)}
    network = load(None, environ).network
    for url, expected in (
        ("https://sgp.example", "http://proxy:3128"),
        ("http://sgp.example", "http://proxy:3128"),
        ("http://agentex.agentex.svc:5003", "None"),
    ):
        found = find_proxy(parse_base_url(url), network.proxy, network.no_proxy, environ)
        assert str(found) == expected, url
    assert taken([reference(), reference("HTTPS_PROXY")]) == [
        reference(),
        reference("HTTPS_PROXY"),
    ]


@pytest.mark.parametrize(
    "entry",
    [
        literal("$(HOST),.svc", "no_proxy"),
        literal("http://$(PROXY)", "all_proxy"),
        literal("socks5://proxy:1080", "ALL_PROXY"),
        literal(" HTTPS://proxy:3129", "http_proxy"),
    ],
    ids=lambda entry: str(entry["value"]),
)
def test_proxies_are_taken_over_together_or_not_at_all(entry: Json) -> None:
    """With one that refers to other variables, or that the sidecar refuses, none is copied."""
    name = {"name": "AGENT_NAME", "value": "a"}
    pod = agent([*PROXIES, entry, name])
    env = sidecar_of(admit_one({}, pod)["pod"])["env"]
    assert [item for item in env if not item["name"].startswith("SIDECAR_")] == [name]


@pytest.mark.parametrize(
    "sidecar",
    [
        {"config": {"network": {"proxy": "none"}}},
        {"env": [literal("http://own:3128", "HTTPS_PROXY")]},
        {"env": [literal("a", "X"), literal(".own", "no_proxy")]},
    ],
    ids=["setting", "proxy", "exceptions"],
)
def test_the_charts_own_proxy_comes_first(sidecar: Json) -> None:
    """With a proxy or exceptions of the chart, no variable of the agent can win over them."""
    own = [entry for entry in sidecar.get("env", []) if entry["name"] != "X"]
    assert taken(PROXIES, {"sidecar": sidecar})[-len(own) :] == own or not own
    names = [entry["name"] for entry in taken(PROXIES, {"sidecar": sidecar})]
    assert set(names) <= {"SIDECAR_NETWORK__PROXY", *(entry["name"] for entry in own)}


def test_only_the_listed_variables_are_taken_over() -> None:
    """`copyEnv` lists the proxies' variables as any other."""
    values = {"injection": {"copyEnv": ["HTTP_PROXY", "NO_PROXY"]}}
    assert taken(PROXIES, values) == PROXIES[1:3]
    # One that is not listed does not matter.
    assert taken([*PROXIES, literal("socks5://p", "all_proxy")], values) == PROXIES[1:3]
    assert taken(PROXIES, {"injection": {"copyEnv": []}}) == []


def test_the_policy_needs_no_proxies_where_nothing_is_redirected() -> None:
    """Without setSgpClientBaseUrl, the policy has no mutation for NO_PROXY."""
    policy = only(render(), "MutatingAdmissionPolicy")
    assert len(policy["spec"]["mutations"]) == 1

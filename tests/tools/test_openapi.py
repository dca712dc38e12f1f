"""docs/openapi.json agrees with the code's routes and with docs/api.md, and so do its examples.

tests/e2e/test_openapi.py makes requests from it.
"""

import json
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast

import pytest

from sidecar.listener.listener import _ALLOWED
from sidecar.listener.routes.agentex import PREFIX
from sidecar.operate.admin import AdminService
from tests.support.telemetry import ROOT
from tests.support.world import NOWHERE, Reply, Running, running_app
from tools import openapi

if TYPE_CHECKING:
    from types import MethodType

DOCUMENT = openapi.document()
PATHS: dict[str, dict[str, Any]] = DOCUMENT["paths"]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
AGENTS, ADMIN = (server["description"] for server in DOCUMENT["servers"])
PAGE = (ROOT / "docs/api.md").read_text()
# Tables of docs/api.md with statuses, and the operations that they are about.
TABLES = {
    "#### Responses": ["POST /v1/spans"],
    "### POST /v1/flush": ["POST /v1/flush"],
    "#### PUT and POST /v5/spans/batch": ["PUT /v5/spans/batch", "POST /v5/spans/batch"],
    "#### POST /spans and PATCH /spans/{id}": ["POST /spans", "PATCH /spans/{id}"],
}


@pytest.fixture
async def app() -> AsyncIterator[Running]:
    """An app with both upstreams, which are unreachable."""
    environ = {"AGENTEX_BASE_URL": NOWHERE, "SGP_CLIENT_BASE_URL": NOWHERE}
    environ |= {"SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}
    async with running_app(environ, shutdown__grace_s=0) as running:
        yield running


def operations(server: str) -> set[tuple[str, str]]:
    """Return the documented methods and paths of a port."""
    return {
        (method.upper(), path)
        for path, item in PATHS.items()
        if any(each["description"] == server for each in item["servers"])
        for method in item
        if method != "servers"
    }


def test_the_document_is_up_to_date() -> None:
    """docs/openapi.json is the output of `python -m tools.openapi`."""
    assert (ROOT / "docs/openapi.json").read_text() == openapi.text()


def test_every_reference_leads_somewhere() -> None:
    """Every `$ref` names a component, and every component is used, but the 405: it has no path."""
    used = set(re.findall(r'"#/components/([^"]+)"', openapi.text()))
    known = {f"{kind}/{name}" for kind, made in DOCUMENT["components"].items() for name in made}
    assert used - known == set()
    assert known - used == {"responses/MethodNotAllowed"}


async def test_every_route_is_documented(app: Running) -> None:
    """Each route in the code is in the document, and the other way round."""
    listener = app.app.listener
    routes = {*listener._routes, ("PATCH", PREFIX + "{id}"), ("POST", "/v1/flush")}
    routes |= {(method, path) for path in ("/readyz",) for method in ("GET", "HEAD")}
    assert operations(AGENTS) == routes
    assert {path for _, path in routes} == {*_ALLOWED, "/spans", PREFIX + "{id}"}
    service = cast("MethodType", app.app.operations.admin.service).__self__
    assert isinstance(service, AdminService)
    paths = [*service._cheap, *service._expensive]
    assert operations(ADMIN) == {(method, path) for path in paths for method in ("GET", "HEAD")}


async def test_every_other_method_is_refused(app: Running) -> None:
    """What is not in the document gets 404 or 405, and what is gets neither."""
    for server, url in ((AGENTS, app.url), (ADMIN, app.admin_url)):
        documented = operations(server)
        for path in {path for _, path in documented}:
            for method in METHODS:
                async with app.client.request(method, url + path.format(id="x")) as response:
                    refused = response.status in {404, 405}
                assert refused == ((method, path) not in documented), (method, path)


def statuses(operation: str) -> set[str]:
    """Return the documented statuses of an operation."""
    method, path = operation.split(" ")
    return set(PATHS[path][method.lower()]["responses"])


def in_table(heading: str) -> set[str]:
    """Return the statuses in the first column of the first table with them below a heading."""
    below = PAGE.partition(f"\n{heading}\n")[2].partition("\n### ")[0].partition("\n#### ")[0]
    table = below.partition("\n| status |")[2].partition("\n\n")[0]
    return set(re.findall(r"^\| (\d{3}) \|", table, re.MULTILINE))


@pytest.mark.parametrize(("heading", "described"), TABLES.items(), ids=list(TABLES))
def test_every_status_of_the_agents_port(heading: str, described: list[str]) -> None:
    """A route has the statuses of its table in docs/api.md, and what that refers to."""
    own = in_table(heading)
    assert own
    # "Statuses not listed below are as for /v1/spans"; 403 is the same on every path. Where an
    # upstream is not enabled, its route is a 404, and only SGP's has accounts.
    expected = own | {"403"}
    for operation in described:
        if "v1" not in operation:
            expected |= (in_table("#### Responses") | {"404"}) - {"202"}
        without = {"409"} if "/v" not in operation else set()
        assert statuses(operation) == expected - without


def test_every_status_of_the_admin_port() -> None:
    """The pages of the admin port have the statuses of its table."""
    below = PAGE.partition("\nMethods are GET and HEAD.\n")[2]
    table = set(re.findall(r"^\| ([\d, ]+) \|", below, re.MULTILINE))
    named = {status for cell in table for status in cell.split(", ")} | {"200"}
    found = {
        status
        for path, item in PATHS.items()
        if item["servers"][0]["description"] == ADMIN
        for operation in ("get", "head")
        for status in item[operation]["responses"]
    }
    assert found == named - {"404", "405"}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what a reference leads to, or the schema itself."""
    if "$ref" not in schema:
        return schema
    found: Any = DOCUMENT
    for name in schema["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return cast("dict[str, Any]", found)


def as_documented(reply: Reply, path: str) -> None:
    """Assert that a response to a POST has the headers, the media type and the keys it should."""
    response = resolved(PATHS[path]["post"]["responses"][str(reply.status)])
    assert response["headers"].keys() <= reply.headers.keys()
    schema = response["content"][reply.headers["Content-Type"]]["schema"]
    forms = [resolved(each) for each in schema.get("anyOf", [schema])]
    assert any(set(form["required"]) <= reply.body.keys() for form in forms)


@pytest.mark.parametrize("path", ["/v1/spans", "/v5/spans/batch", "/spans"])
async def test_every_refusal_is_as_documented(path: str) -> None:
    """So are those that no generated request gets: too large, no room, stopping."""
    environ = {"AGENTEX_BASE_URL": NOWHERE, "SGP_CLIENT_BASE_URL": NOWHERE}
    environ |= {"SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}
    limits = {"queue__max_bytes": "8KiB", "listener__max_body": "2KiB"}
    example = next(value for _, at, _, value in examples().values() if at == path)
    body = json.dumps(example).encode()
    plain = {"Content-Type": "application/json"}
    other = {"x-trace-sidecar-account": "b"}
    requests: list[tuple[int, bytes, dict[str, str]]] = [
        (403, body, plain | {"Origin": "http://localhost"}),
        (413, body + b" " * 3000, plain),
        (415, body, {}),
        (400 if path == "/v1/spans" else 422, b"", plain),
        *([(409, body, plain | other)] if path != "/spans" else []),
    ]
    async with running_app(environ, shutdown__grace_s=0, **limits) as app:
        for status, sent, headers in requests:
            reply = await app.request("POST", path, data=sent, headers=headers)
            assert reply.status == status
            as_documented(reply, path)
        for number in range(99):  # until there is no room
            sent = re.sub(rb"-(?=plan|find)", b"%d" % number, body)
            reply = await app.request("POST", path, data=sent, headers=plain)
            as_documented(reply, path)
            if reply.status == 429:
                break
        assert reply.status == 429
        app.app.listener.stop()
        reply = await app.request("POST", path, data=body, headers=plain)
        assert reply.status == 503
        as_documented(reply, path)


def examples() -> dict[str, tuple[str, str, str, Any]]:
    """Return the examples of request bodies by name: method, path, media type, body."""
    found = {}
    for path, item in PATHS.items():
        for method, operation in item.items():
            if "requestBody" in operation:
                for media, content in operation["requestBody"]["content"].items():
                    for name, example in content["examples"].items():
                        value = example["value"]
                        found[f"{method} {path} {name}"] = (method, path, media, value)
    return found


@pytest.mark.parametrize("name", examples())
async def test_every_example_is_accepted(app: Running, name: str) -> None:
    """Each example is a request that the sidecar accepts as it stands."""
    method, path, media, value = examples()[name]
    body = value if isinstance(value, str) else json.dumps(value)
    reply = await app.request(
        method.upper(), path.format(id="x"), data=body.encode(), headers={"Content-Type": media}
    )
    assert (reply.status, reply.body.get("rejected", [])) in [(202, []), (200, [])], reply.body

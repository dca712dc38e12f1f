"""Quantities and sizes: the chart takes what a real API server and the sidecar take."""

import json
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config_load import load
from sidecar.config_values import Size
from tests.e2e.kube_support import Cluster, cluster
from tests.e2e.release_support import agent
from tests.support.helm import Json, consumer, nested, template

# As JSON, because starting a YAML parser for each of many values takes longer than helm.
POD = """
{{- $container := include "trace-sidecar.container" .Subcharts.sidecar | fromYamlArray }}
{{- $volumes := include "trace-sidecar.volumes" .Subcharts.sidecar | fromYamlArray }}
{{ dict "initContainers" $container "volumes" $volumes | toJson }}
"""
PODS = "/api/v1/namespaces/agents/pods"
MIB = 2**20
# The API server counts in thousandths with 64 bits; above that, its warnings are wrong.
MAX = Fraction(2**63 - 1, 1000)
POWERS = dict(zip(["n", "u", "m", "", "k", "M", "G", "T", "P", "E"], range(-9, 19, 3), strict=True))
BINARY = dict(zip(["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"], range(10, 70, 10), strict=True))
UNITS = {name: Fraction(10) ** power for name, power in POWERS.items()} | {
    name: Fraction(2) ** power for name, power in BINARY.items()
}
_QUANTITY = re.compile(r"([+-]?[0-9.]+)([eE][+-]?[0-9]+|[a-zA-Z]*)")


def amount(quantity: Json) -> Fraction:
    """Return the number that a Kubernetes quantity stands for."""
    match = _QUANTITY.fullmatch(str(quantity))
    assert match, quantity
    if re.fullmatch("[eE][+-]?[0-9]+", match[2]):
        return Fraction(match[1].rstrip(".")) * Fraction(10) ** int(match[2][1:])
    return Fraction(match[1].rstrip(".")) * UNITS[match[2]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("kube")) as running:
        running.add_namespace("agents")
        yield running


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an agent's chart that includes the library."""
    return consumer(tmp_path_factory.mktemp("charts") / "agent", {"pod.yaml": POD})


def rendered(library: Path, sidecar: Json) -> dict[str, Json] | str:
    """Return the sidecar and its volumes as parts of a pod's spec, or why helm refuses them."""
    done = template(values={"sidecar": sidecar}, chart=library)
    if done.returncode:
        return done.stderr
    spec: dict[str, Json] = json.loads(done.stdout.strip().splitlines()[-1])
    return spec


def environment(spec: Json) -> dict[str, str]:
    """Return the sidecar's variables."""
    env = spec["initContainers"][0]["env"]
    return {entry["name"]: entry["value"] for entry in env if "value" in entry}


def limits(kind: str, value: Json) -> Json:
    return {"resources": {"requests": {kind: value}, "limits": {kind: value}}}


def values_with(place: str, value: Json) -> Json:
    """Return values of the library with a quantity at a place that asks for one."""
    if place in {"cpu", "memory"}:
        return limits(place, value)
    if place == "volume":
        letters = {"enabled": True, "maxBytes": 1}
        return {"volume": {"sizeLimit": value}, "deadLetters": letters}
    return {"extraVolumes": own_pod(place, value)["volumes"]}


def own_pod(place: str, value: Json) -> Json:
    """Return a pod's spec with the quantity as it is, without the chart."""
    if place in {"cpu", "memory"}:
        return {"initContainers": [{"name": "own", "image": "i", **limits(place, value)}]}
    return {"volumes": [{"name": "own", "emptyDir": {"sizeLimit": value}}]}


def stored(place: str, spec: Json) -> Fraction:
    """Return the quantity in a pod's spec."""
    if place in {"cpu", "memory"}:
        return amount(spec["initContainers"][0]["resources"]["limits"][place])
    return amount(spec["volumes"][0]["emptyDir"]["sizeLimit"])


PLACES = ["cpu", "memory", "volume", "extra volume"]


def meant(server: Cluster, place: str, value: Json) -> Fraction | None:
    """Return the amount that the API server takes `value` for; None if the chart must refuse it.

    That is: what the server refuses, nothing, what no kubelet can count, and less than 1Mi of
    bytes, which is a wrong unit.
    """
    answer = server.create(PODS, agent(**own_pod(place, value)), dryRun="All")
    if answer.status != 201:
        assert answer.status in {400, 422}, answer
        return None
    found = stored(place, answer.body["spec"])
    least = Fraction(1, 10**9) if place == "cpu" else MIB
    return found if least <= found <= MAX else None


def agree(server: Cluster, library: Path, place: str, value: Json) -> bool:
    """Check that the chart refuses `value`, or renders what the API server takes it for.

    Returns whether it is taken. A fraction of a byte is rounded up, as the kubelet does.
    """
    wanted = meant(server, place, value)
    spec = rendered(library, values_with(place, value))
    assert isinstance(spec, str) == (wanted is None), (value, wanted, spec)
    if isinstance(spec, str):
        return False
    answer = server.create(PODS, agent(**spec), dryRun="All")
    assert (answer.status, answer.warnings) == (201, []), value
    rendered_for = wanted if place == "cpu" else math.ceil(wanted or 0)
    assert stored(place, answer.body["spec"]) == rendered_for
    return True


CPUS: list[Json] = [1, 0.5, 2.0, 1e-3, 0.1, 250, "1", "0.5", "25m", "1500000u", "2000000000n"]
CPUS += [
    "1e3",
    "1E3",
    "1e-3",
    "1e+2",
    "1e08",
    "0.1",
    ".5",
    "5.",
    "+1",
    "0001",
    "1k",
    "1Ki",
    "1.5Ki",
]
CPUS += ["0.0000000001", "1e-12", 1e-7, "0.5m", "100.000m", 0.1 + 0.2]
BYTES: list[Json] = [192_000_000, 1.92e8, 2**40 + 1, 2**52 + 2, 1e15, 1.2345678901234567e15]
BYTES += ["192M", "1e8", "1E9", "1.5Gi", "1.1Gi", "192Mi", "1G", "1T", "1P", "9.2P", "1Ti", "8Pi"]
BYTES += ["0.007Ei", "1048576", "1024Ki", "1048.576k", "192000000000m", "1048576000001m", "2000k"]
BYTES += ["9223372036854775", "9007199254740993", "+1.5Gi", "0000001.50Gi", " 128.75Mi "]
REFUSED: list[Json] = [
    "",
    " ",
    "1 Gi",
    "1gi",
    "1GI",
    "1.5.Gi",
    "-1Gi",
    -1,
    "1GiB",
    "1KI",
    "1K",
    "Gi",
]
REFUSED += [
    "1Gi\n",
    "\t1Gi",
    "1,5Gi",
    "1e1.5",
    "1e",
    "1ee3",
    "0x10",
    "1_000",
    "1e3Ki",
    "inf",
    "NaN",
    "1mi",
]
REFUSED += ["٣", "1e3e3", "--1", "1Zi", "1g", "1i", True, "0", 0, 0.0, "0Gi", "0e5", "0.000", "8Ei"]
REFUSED += ["9223372036854775808", "9223372036854776", "9Pi", "1E", 1e19, "1e19"]
WRONG_UNIT: list[Json] = ["192m", "192", 192, "1048575", "0.5k", "1023Ki", 0.5]


@pytest.mark.parametrize("value", CPUS, ids=repr)
def test_every_spelling_of_cpus(server: Cluster, library: Path, value: Json) -> None:
    """CPUs in any spelling, and as numbers, mean what they mean to the API server."""
    assert agree(server, library, "cpu", value)


@pytest.mark.parametrize("value", BYTES, ids=repr)
@pytest.mark.parametrize("place", ["memory", "volume", "extra volume"])
def test_every_spelling_of_bytes(server: Cluster, library: Path, place: str, value: Json) -> None:
    """Bytes in any spelling, and as numbers, mean what they mean to the API server."""
    assert agree(server, library, place, value)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_quantity(library: Path, server: Cluster, place: str) -> None:
    """What the API server refuses, nothing, and more than it can count are refused by helm."""
    for value in REFUSED if place == "cpu" else REFUSED + WRONG_UNIT:
        assert isinstance(rendered(library, values_with(place, value)), str), value
        assert meant(server, place, value) is None, value


NUMBERS = st.one_of(
    st.integers(-1, 2**53),
    st.floats(1e-9, 1e17),
)
TEXTS = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "", "", "+", "-"]),
    st.from_regex(r"[0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12}", fullmatch=True),
    st.sampled_from(
        [*UNITS, *UNITS, "e3", "E3", "e-3", "e+06", "E-9", "e12", "e", "B", "gi", " Gi"]
    ),
)


@given(place=st.sampled_from(PLACES), value=NUMBERS | TEXTS)
def test_any_quantity(server: Cluster, library: Path, place: str, value: Json) -> None:
    """The chart and the API server agree about any text and any number."""
    agree(server, library, place, value)


def test_requests_and_limits_are_compared_exactly(library: Path) -> None:
    """A request that is above its limit by the least amount is refused, whatever the units."""
    for kind, request, limit in (
        ("cpu", "1000000001n", 1),
        ("cpu", 0.3, "299999999n"),
        ("cpu", "1.001", "1000m"),
        ("memory", "1073741825", "1Gi"),
        ("memory", "9223372036854775", "9223372036854774999m"),
        ("memory", "1001M", "1e9"),
        ("memory", "1.1Gi", "1181116006"),
    ):
        both = {"requests": {kind: request}, "limits": {kind: limit}}
        said = rendered(library, {"resources": both})
        assert isinstance(said, str)
        assert f"({request}) must not be above resources.limits.{kind} ({limit})" in said
        swapped = {"requests": {kind: limit}, "limits": {kind: request}}
        assert not isinstance(rendered(library, {"resources": swapped}), str)


@given(
    request=st.integers(2 * MIB, 10**7) | st.integers(2 * MIB, 10**13),
    more=st.integers(-2, 2),
    units=st.tuples(*(2 * [st.sampled_from(["", "k", "M", "Ki", "Mi"])])),
)
def test_any_request_and_limit(
    library: Path, request: int, more: int, units: tuple[str, str]
) -> None:
    """A request is refused if and only if it is above its limit."""
    first, second = (
        f"{(request + off) / float(UNITS[unit]):.6f}{unit}"
        for off, unit in zip((0, more), units, strict=True)
    )
    both = {"requests": {"memory": first}, "limits": {"memory": second}}
    fits = amount(first) <= amount(second)
    assert isinstance(rendered(library, {"resources": both}), dict) == fits


@given(
    spool=st.integers(MIB, 2**40),
    letters=st.none() | st.integers(1, 2**40),
    more=st.integers(-3, 3),
)
def test_any_sizes_and_volume(library: Path, spool: int, letters: int | None, more: int) -> None:
    """The files are refused if and only if they are above 80% of the volume, to the byte."""
    files = spool + (letters or 0)
    room = max(MIB, math.ceil(files * Fraction(5, 4)) + more)
    values: Json = {
        "spool": {"enabled": True, "maxBytes": f"{spool}B"},
        "volume": {"sizeLimit": str(room)},
    }
    if letters is not None:
        values["deadLetters"] = {"enabled": True, "maxBytes": letters}
    said = rendered(library, values)
    assert isinstance(said, dict) == (files * 5 <= room * 4), said


# The settings that are sizes, with the least that the sidecar takes.
SIZES = {
    "spool.maxBytes": ("spool.max_bytes", MIB),
    "deadLetters.maxBytes": ("dead_letters.max_bytes", 1),
    "config.listener.max_body": ("listener.max_body", 1),
    "config.queue.max_bytes": ("queue.max_bytes", 1),
    "config.sgp.max_batch_bytes": ("sgp.max_batch_bytes", 1),
    "config.otlp.max_batch_bytes": ("otlp.max_batch_bytes", 1),
}
SPELLINGS: list[Json] = [
    2**20,
    1.5e7,
    1e6 + 1e6,
    2**33,
    "64MiB",
    "64mib",
    "64 Mi",
    "64 mb",
    "1.5GiB",
]
SPELLINGS += [
    "2000000",
    "2e6",
    "2E+6",
    "2e6b",
    ".5gb",
    "5.MB",
    " 64 MiB ",
    "0.25TIB",
    "2048KI",
    "1tb",
]
NO_SPELLINGS: list[Json] = [
    "64M",
    "64 G",
    "1k",
    "64 MiBs",
    "-1MiB",
    -1,
    "MiB",
    "",
    "1,5MiB",
    "+1MiB",
]
NO_SPELLINGS += [
    "1 e6",
    "1.2.3MiB",
    "64m",
    "0x10",
    "1PiB",
    "inf",
    "nan",
    True,
    0,
    "0MiB",
    "0.4B",
    0.4,
]


@pytest.mark.parametrize("path", SIZES)
def test_sizes_of_the_sidecars_own(library: Path, path: str) -> None:
    """The chart takes every spelling that the sidecar takes, and passes the same number on."""
    setting, least = SIZES[path]
    section, key = setting.split(".")
    on = {"enabled": True}
    memory = {"limits": {"memory": "7Pi"}}
    base: Json = {"volume": {"sizeLimit": "8Pi"}, "spool": on, "deadLetters": on}
    base["resources"] = memory
    for value in [*SPELLINGS, *(["auto", " AUTO "] if "queue" in path else [])]:
        spec = rendered(library, with_value(base, path, value))
        assert not isinstance(spec, str), spec
        config = load(None, environment(spec))
        assert getattr(getattr(config, section), key) == Size.parse(value), value
    for value in [*NO_SPELLINGS, *([] if "queue" in path else ["auto"]), least - 1]:
        assert isinstance(rendered(library, with_value(base, path, value)), str), value


def with_value(base: Json, path: str, value: Json) -> Json:
    """Return `base` with a value at a dotted path."""
    result = {key: dict(section) for key, section in base.items()}
    first, _, rest = path.partition(".")
    result[first] = result.get(first, {}) | nested(rest, value)
    return result

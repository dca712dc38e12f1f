"""The table of upstreams: what else there is about one is built from its row."""

from sidecar.config import Config
from sidecar.config_load import load
from sidecar.lanes import UPSTREAMS, enabled_lanes, share_descriptors
from sidecar.sinks.hiding import HidingSink
from sidecar.sinks.sgp import SgpSink
from tests.support.world import running_app


def test_bits_in_the_spool_keep_their_meaning() -> None:
    """A row written by an older version must be for the same upstream."""
    assert {each.name: int(each.lane) for each in UPSTREAMS} == {"agentex": 1, "sgp": 2, "otlp": 4}


def test_every_upstream_has_a_configuration_section() -> None:
    """Its name is the section's, and the `sink` label of its metrics."""
    assert {each.name for each in UPSTREAMS} <= set(Config.__struct_fields__)


async def test_a_sink_from_which_nothing_is_hidden_has_no_wrapper() -> None:
    """Without `hide`, a lane sends through the sink itself; with it, through what hides."""
    environ = {"SIDECAR_SGP__RELAY": "true", "AGENTEX_BASE_URL": "http://127.0.0.1:9"}
    async with running_app(environ, shutdown__grace_s=0, agentex__hide="input") as app:
        kinds = {lane.name: type(lane.sink) for lane in app.app.lanes}
    assert kinds == {"agentex": HidingSink, "sgp": SgpSink}


def test_the_bits_are_those_of_the_enabled_upstreams() -> None:
    """A bit that is missing would drop the lane's writes from the spool's rows."""
    environ = {"AGENTEX_BASE_URL": "http://127.0.0.1:9"}
    assert enabled_lanes(load(None, environ)) == 1
    assert enabled_lanes(load(None, {"SGP_API_KEY": "key", "SGP_ACCOUNT_ID": "account"})) == 2
    assert enabled_lanes(load(None, {**environ, "SIDECAR_SGP__RELAY": "true"})) == 3
    assert enabled_lanes(load(None, {**environ, "SIDECAR_OTLP__ENDPOINT": "http://h"})) == 5


def test_descriptors_are_shared_among_three() -> None:
    """Each upstream gets its share of the concurrent requests; accounts are SGP's."""
    environ = {
        "AGENTEX_BASE_URL": "http://h",
        "SIDECAR_SGP__RELAY": "true",
        "SIDECAR_OTLP__ENDPOINT": "http://h",
    }
    shares, config = share_descriptors(load(None, environ))
    assert set(shares.requests) == {"agentex", "sgp", "otlp"}
    assert config.otlp.max_concurrency == shares.requests["otlp"] >= 1

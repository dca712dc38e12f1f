"""The table of upstreams: what else there is about one is built from its row."""

from sidecar.config import Config
from sidecar.config_load import load
from sidecar.lanes import UPSTREAMS, enabled_lanes


def test_bits_in_the_spool_keep_their_meaning() -> None:
    """A row written by an older version must be for the same upstream."""
    assert {each.name: int(each.lane) for each in UPSTREAMS} == {"agentex": 1, "sgp": 2}


def test_every_upstream_has_a_configuration_section() -> None:
    """Its name is the section's, and the `sink` label of its metrics."""
    assert {each.name for each in UPSTREAMS} <= set(Config.__struct_fields__)


def test_the_bits_are_those_of_the_enabled_upstreams() -> None:
    """A bit that is missing would drop the lane's writes from the spool's rows."""
    environ = {"AGENTEX_BASE_URL": "http://127.0.0.1:9"}
    assert enabled_lanes(load(None, environ)) == 1
    assert enabled_lanes(load(None, {"SGP_API_KEY": "key", "SGP_ACCOUNT_ID": "account"})) == 2
    assert enabled_lanes(load(None, {**environ, "SIDECAR_SGP__RELAY": "true"})) == 3

"""Fixtures of the tests of open spans."""

import pytest

from sidecar.spool.spool import Spool
from tests.support.open_spans import Bench, RecordingSpool


@pytest.fixture(params=[Spool, RecordingSpool])
def bench(request: pytest.FixtureRequest) -> Bench:
    """A bench, without and with a spool.

    A test module sets `DATA_FOLLOWS` to the bit of a lane that gets open writes without `data`.
    """
    return Bench(request.param(), data_follows=getattr(request.module, "DATA_FOLLOWS", 0))

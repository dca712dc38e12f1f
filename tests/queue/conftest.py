"""Fixtures of the tests of open spans."""

import pytest

from sidecar.spool.spool import Spool
from tests.support.open_spans import Bench, RecordingSpool


@pytest.fixture(params=[Spool, RecordingSpool])
def bench(request: pytest.FixtureRequest) -> Bench:
    """A bench, without and with a spool."""
    return Bench(request.param())

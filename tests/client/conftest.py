"""What the client's tests leave unsent is not flushed when pytest exits."""

from collections.abc import Iterator

import pytest
from trace_sidecar_client import sender


@pytest.fixture(scope="package", autouse=True)
def _forget_senders() -> Iterator[None]:
    yield
    sender._SENDERS.clear()

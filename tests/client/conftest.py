"""What the client's tests leave unsent is not flushed when pytest exits."""

from collections.abc import Iterator

import pytest
from trace_sidecar_client import Sender, exits


@pytest.fixture(scope="package", autouse=True)
def _forget_senders() -> Iterator[None]:
    yield
    for sender in exits._SENDERS:
        if isinstance(sender, Sender) and sender._thread is None:
            sender._transport.close()
    exits._SENDERS.clear()

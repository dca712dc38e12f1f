"""What the tests of the client in frameworks share."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e.sdk_support import Pod, pod


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_pod(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pod]:
    """One sidecar and its upstreams for all programs of a module; asserts that it lost nothing."""
    async with pod(tmp_path_factory.mktemp("pod"), sidecar=True) as here:
        yield here
        await here.delivered()
        late = here.agentex.late_opens, here.sgp.late_opens
        assert (*late, here.sgp.second_rows) == (0, 0, 0)

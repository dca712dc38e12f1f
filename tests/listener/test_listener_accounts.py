"""The account of a request is the one that its spans go out under (D25)."""

import asyncio

from sidecar.demo.sgp import SgpStandIn
from tests.support.spans import make_event
from tests.support.world import running_app


async def test_spans_of_two_accounts_go_out_under_their_own_keys() -> None:
    """No request to SGP has spans of two accounts, or the key of another one than theirs."""
    async with SgpStandIn() as sgp:
        environ = {"SGP_CLIENT_BASE_URL": sgp.url}
        async with running_app(environ, sgp__relay="true") as app:
            for account in ("a", "b", "a", "b"):
                event = make_event(f"of {account}", kind="end")
                headers = {"x_api_key": f"key-{account}", "x_selected_account_id": account}
                assert (await app.post(event, **headers)).status == 202
            assert await app.stop()
    assert sgp.requests
    for request in sgp.requests:
        account = request.headers["x-selected-account-id"]
        assert request.headers["x-api-key"] == f"key-{account}"
        other = {"a": "b", "b": "a"}[account]
        assert f"of {account}".encode() in request.body
        assert f"of {other}".encode() not in request.body


async def test_the_key_of_a_start_that_is_held() -> None:
    """The first request of an account brings its key, even if none of it is written yet."""
    async with SgpStandIn() as sgp:
        environ = {"SGP_CLIENT_BASE_URL": sgp.url}
        options = {"sgp__relay": "true", "queue__start_hold_s": "0.01"}
        async with running_app(environ, **options) as app:
            for account in ("a", "b"):
                headers = {"x_api_key": f"key-{account}", "x_selected_account_id": account}
                await app.post(make_event(account, kind="start"), **headers)
            async with asyncio.timeout(10):
                await sgp.arrived(2)
    keys = {request.headers["x-api-key"] for request in sgp.requests}
    assert keys == {"key-a", "key-b"}

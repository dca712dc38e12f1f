"""The upstreams of the example in docs/network.md: FOLDER FIRST_DAY LAST_DAY.

Agentex with a private authority at agentex.internal, and SGP behind a proxy that requires a
credential. Runs in a network of its own (test_docs.py). The certificate of Agentex is valid from
one day until the other, counted from today; that of the authority goes to FOLDER. Prints a line
when all is up, and ends with its standard input.
"""

import asyncio
import ssl
import sys
from pathlib import Path

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import StandIn
from tests.support.proxies import ForwardProxy
from tests.support.tls import Authority

ADDRESSES = {"agentex.internal": "10.0.0.7", "proxy.internal": "10.0.0.3"}
KEY, CREDENTIAL = "good", "me:secret"


async def serve_over_tls(stand_in: StandIn, host: str, tls: ssl.SSLContext) -> None:
    """Have a stand-in also listen on port 443 of an address."""
    connect = stand_in._web
    assert connect is not None
    await asyncio.get_running_loop().create_server(connect, host, 443, ssl=tls)


async def serve(folder: Path, days: tuple[float, float]) -> None:
    """Serve until the end of standard input."""
    authority = Authority(folder)
    proxy = ForwardProxy()
    proxy.user = CREDENTIAL
    async with AgentexStandIn(api_key=KEY) as agentex, SgpStandIn(api_key=KEY) as sgp:
        tls = authority.server("agentex.internal", days=days)
        await serve_over_tls(agentex, ADDRESSES["agentex.internal"], tls)
        # That is where this proxy finds every name.
        await serve_over_tls(sgp, "127.0.0.1", authority.server("sgp.internal"))
        await asyncio.start_server(proxy.accept, ADDRESSES["proxy.internal"], 3128)
        print("ready", flush=True)  # noqa: T201
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), (float(sys.argv[2]), float(sys.argv[3]))))

"""Which proxy httpx chooses: reads a JSON list of cases, prints a JSON list of choices.

A case is `[variables, URL]`. A choice is the proxy's host, port and `Proxy-Authorization`, or null
for a direct connection, or the name of the exception if a client can't be made.
"""

import json
import os
import ssl
import sys

import httpcore  # type: ignore[import-not-found,unused-ignore]
import httpx  # type: ignore[import-not-found,unused-ignore]

# Shared, because each client would read the system's certificates again.
CONTEXT = ssl.create_default_context()


def choose(url: str) -> object:
    """Return the choice for a URL with this process's variables."""
    try:
        client = httpx.Client(verify=CONTEXT)
    except (ValueError, httpx.InvalidURL) as error:
        return type(error).__name__
    pool = client._transport_for_url(httpx.URL(url))._pool
    if not isinstance(pool, httpcore.HTTPProxy):
        return None
    proxy, headers = pool._proxy_url, dict(pool._proxy_headers)
    credential = headers.get(b"Proxy-Authorization", b"")
    return [proxy.host.decode(), proxy.port or 80, credential.decode()]


def main() -> None:
    """Answer every case."""
    choices = []
    for variables, url in json.load(sys.stdin):
        os.environ.clear()
        os.environ.update(variables)
        choices.append(choose(url))
    json.dump(choices, sys.stdout)


if __name__ == "__main__":
    main()

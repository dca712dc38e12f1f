"""Gets URLs in several environments, to see which requests a Python HTTP library sends to a proxy.

The argument is the library. Reads `{"environments": [{NAME: value}, ...], "urls": [...]}` from
stdin, and prints a list of the bodies of the responses for each environment.
"""

import asyncio
import json
import os
import sys
import urllib.request

TIMEOUT_S = 30


def get_urllib(url: str) -> str:
    """Get a URL with the standard library."""
    # A new opener, because the one behind `urlopen` remembers the first environment.
    opener = urllib.request.build_opener()
    with opener.open(url, timeout=TIMEOUT_S) as response:
        return str(response.read().decode())


def get_requests(url: str) -> str:
    """Get a URL with requests."""
    import requests  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return str(requests.get(url, timeout=TIMEOUT_S).text)


def get_httpx(url: str) -> str:
    """Get a URL with httpx, which the SDKs use."""
    import httpx  # type: ignore[import-not-found,unused-ignore]

    return str(httpx.get(url, timeout=TIMEOUT_S).text)


def get_aiohttp(url: str) -> str:
    """Get a URL with aiohttp, told to honor the environment."""
    import aiohttp

    async def get() -> str:
        async with aiohttp.ClientSession(trust_env=True) as session, session.get(url) as response:
            return await response.text()

    return asyncio.run(get())


LIBRARIES = {
    "urllib": get_urllib,
    "requests": get_requests,
    "httpx": get_httpx,
    "aiohttp": get_aiohttp,
}


def main(library: str) -> None:
    """Print the responses."""
    asked = json.load(sys.stdin)
    answers = []
    for environment in asked["environments"]:
        os.environ.clear()
        os.environ.update(environment)
        answers.append([LIBRARIES[library](url) for url in asked["urls"]])
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])

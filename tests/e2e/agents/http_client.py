"""Posts files to a URL on one connection. Arguments: the HTTP library, the URL and the files.

Every second body is streamed, which the libraries send chunked. Prints the statuses, one a line.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

HEADERS = {"Content-Type": "application/json"}
PIECE = 100


def pieces(body: bytes) -> Iterator[bytes]:
    """Yield the body in pieces."""
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


async def slow_pieces(body: bytes) -> AsyncIterator[bytes]:
    """Yield the body in pieces, each in its own turn of the event loop."""
    for piece in pieces(body):
        await asyncio.sleep(0)
        yield piece


def use_requests(url: str, bodies: list[bytes]) -> Iterator[int]:
    """Post with a session of requests."""
    import requests  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with requests.Session() as session:
        for number, body in enumerate(bodies):
            data = pieces(body) if number % 2 else body
            yield session.post(url, data=data, headers=HEADERS).status_code


def use_httpx(url: str, bodies: list[bytes]) -> Iterator[int]:
    """Post with a client of httpx."""
    import httpx  # type: ignore[import-not-found,unused-ignore]

    with httpx.Client(timeout=None) as client:  # noqa: S113 (the caller has a deadline)
        for number, body in enumerate(bodies):
            content = pieces(body) if number % 2 else body
            yield client.post(url, content=content, headers=HEADERS).status_code


def use_urllib3(url: str, bodies: list[bytes]) -> Iterator[int]:
    """Post with a pool of urllib3."""
    import urllib3  # type: ignore[import-not-found,unused-ignore]

    pool = urllib3.PoolManager(retries=False)
    for number, body in enumerate(bodies):
        data = pieces(body) if number % 2 else body
        yield pool.request("POST", url, body=data, headers=HEADERS).status


def use_aiohttp(url: str, bodies: list[bytes]) -> Iterator[int]:
    """Post with a session of aiohttp; every fourth request waits for `100 Continue`."""
    import aiohttp

    async def statuses() -> list[int]:
        found = []
        async with aiohttp.ClientSession(headers=HEADERS) as session:
            for number, body in enumerate(bodies):
                data = slow_pieces(body) if number % 2 else body
                async with session.post(url, data=data, expect100=number % 4 == 3) as reply:
                    await reply.read()
                    found.append(reply.status)
        return found

    yield from asyncio.run(statuses())


USE = {
    "requests": use_requests,
    "httpx": use_httpx,
    "urllib3": use_urllib3,
    "aiohttp": use_aiohttp,
}

if __name__ == "__main__":
    library, address, *files = sys.argv[1:]
    for status in USE[library](address, [Path(file).read_bytes() for file in files]):
        sys.stdout.write(f"{status}\n")

"""`python -m tests.http.second_opinion COUNT [SEED]`: compares our server with h11.

Both get the same mutated requests. What our server gives to a service, h11 must have parsed as the
same method, target and body. Our server may refuse more, but not take anything that h11 refuses:
where two servers disagree about a request, one of them can be deceived. Two liberties that RFC 9112
gives to servers (2.2, 3) are taken by llhttp and not by h11, and are evened out here: empty lines
before a request, and several spaces in its first line.
"""

import asyncio
import random
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import h11

from tests.support.playbook import Port, sent

CORPUS = [
    sent(b"GET /a?b=c HTTP/1.1", b"Accept: */*"),
    sent(b"POST /b HTTP/1.1", b"Content-Type: application/json", body=b'{"a":1}'),
    sent(b"POST /b HTTP/1.1", b"Transfer-Encoding: chunked")
    + b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n",
    sent(b"POST /b HTTP/1.1", b"Transfer-Encoding: chunked") + b"2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n",
    sent(b"PUT /b HTTP/1.1", b"Content-Encoding: gzip", b"Expect: 100-continue", body=b"xyz"),
    sent(b"PATCH /b%2F HTTP/1.1", b"Connection: keep-alive", body=b"{}"),
    sent(b"HEAD /a HTTP/1.1", b"Connection: close"),
    b"POST /b HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
    b"GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n",
    sent(b"OPTIONS * HTTP/1.1"),
]
PIECES = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"0", b"1", b"2", b"a", b"/", b"?", b"#", b";",
    b"\xff", b"\x7f", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"Content-Length: 5\r\n",
    b"Content-Length: 1, 1\r\n", b"content-length:+2\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n", b"transfer-encoding:\tchunked \r\n", b"Host: b\r\n",
    b"Connection: close\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b" folded\r\n",
    b"Expect: 100-continue\r\n", b"5\r\nabcde\r\n", b"0\r\n\r\n", b"0x2", b"-1",
    b"FFFFFFFFFFFFFFFF",    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
]  # fmt: skip


_SPACES = re.compile(rb"([A-Z]+) +(\S+) +(HTTP/1\.[01]\r\n)")


class Parsed(NamedTuple):
    """A whole request, as a server understood it."""

    method: str
    target: str
    body: bytes


def mutated(chance: random.Random) -> bytes:
    """One to three requests with up to four changes."""
    data = b"".join(chance.choice(CORPUS) for _ in range(chance.choice((1, 1, 2, 3))))
    for _ in range(chance.randint(0, 4)):
        at = chance.randint(0, len(data))
        kind = chance.randint(0, 3)
        if kind == 0:
            data = data[:at] + chance.choice(PIECES) + data[at:]
        elif kind == 1:
            data = data[:at] + data[at + chance.randint(1, 4) :]
        elif kind == 2:
            data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        else:
            start = chance.randint(0, len(data))
            data = data[:at] + data[start : start + chance.randint(1, 40)] + data[at:]
    return data


def ours(port: Port, pieces: list[bytes]) -> list[Parsed]:
    """What our server gives to its service, in order."""
    before = len(port.heads)
    wire = port.play(pieces)
    assert port.bugs == [], port.bugs
    found = []
    for request, receiver in port.heads[before:]:
        if receiver.ended:
            found.append(Parsed(request.method, request.target, receiver.body))
    wire.abort()
    port.heads.clear()
    port.heard.clear()
    port.receivers.clear()
    return found


def h11s(data: bytes) -> Iterator[Parsed]:
    """What h11 parses, up to the first thing that it refuses."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    connection.receive_data(_SPACES.sub(rb"\1 \2 \3", data.lstrip(b"\r\n")))
    request: h11.Request | None = None
    body = b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            event = None
        if isinstance(event, h11.Request):
            request, body = event, b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            yield _parsed(request, body)
            old = request.http_version < b"1.1"
            request = None
            try:
                connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
                rest = connection.trailing_data[0]
                if rest[:1] in b"\r\n" and rest:
                    yield from h11s(rest)
                    return
            except h11.LocalProtocolError:
                if old:  # h11 does not know keep-alive in HTTP/1.0
                    yield from h11s(connection.trailing_data[0])
                return
        else:
            if event is h11.PAUSED:  # an offer to upgrade, which both ignore
                return
            return


def _parsed(request: h11.Request, body: bytes) -> Parsed:
    target = request.target.decode()
    if "://" in target.partition("?")[0] and not target.startswith("/"):
        target = "/" + target.partition("://")[2].partition("/")[2]
    return Parsed(request.method.decode(), target, body)


def disagreement(port: Port, data: bytes, chance: random.Random) -> str:
    """How the two differ about `data`, whole or in pieces; empty if they don't."""
    cut = chance.randint(0, len(data))
    theirs = list(h11s(data))
    for pieces in ([data], [data[:cut], data[cut:]]):
        taken = ours(port, [piece for piece in pieces if piece])
        for number, request in enumerate(taken):
            if number >= len(theirs) or request != theirs[number]:
                other = theirs[number] if number < len(theirs) else None
                return f"{data!r}, cut at {cut}: taken as {request}, by h11 as {other}"
    return ""


async def compare(count: int, seed: int) -> list[str]:
    """Compare `count` mutated requests; return up to ten disagreements."""
    chance = random.Random(seed)
    port, found = Port(), []
    for _ in range(count):
        if text := disagreement(port, mutated(chance), chance):
            found.append(text)
            if len(found) == 10:
                break
    return found


def main() -> int:
    """Run it and return the exit code."""
    count = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(2**32)
    found = asyncio.run(compare(count, seed))
    print(*found, f"{count} requests, seed {seed}: {len(found)} disagreements with h11", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

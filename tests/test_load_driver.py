"""The load driver of tests/load: what it makes of a server that closes connections."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from socket import socket

import pytest

from tests.load.driver import Driver
from tests.load.loads import Plan

DEADLINE_S = 30.0
Request = socket | tuple[bytes, socket]


class Server(ThreadingHTTPServer):
    """Accepts every event, but closes the second connection at once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.numbers = count(1)
        self.closed = threading.Event()

    def process_request(self, request: Request, client_address: object) -> None:
        if next(self.numbers) == 2:
            self.shutdown_request(request)
            self.closed.set()
        else:
            super().process_request(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection of a `Server`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"accepted":1}'
        self.send_response(202)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_an_idle_connection_that_is_closed(server: Server) -> None:
    """It is opened again, and the driver ends once everything is sent."""
    port = server.server_address[1]
    plan = Plan(kind="halves", spans=1, size=100, connections=2, port=port, idle_s=2.0)
    driver = Driver(plan)
    assert server.closed.wait(DEADLINE_S)
    result = driver.run()
    for connection in driver._connections:
        connection.socket.close()
    driver._epoll.close()
    assert (result.gave_up, result.accepted, result.reconnects) == ("", plan.events, 1)
    assert len(driver._idle) == len(set(driver._idle)) == plan.connections

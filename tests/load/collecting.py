"""A stand-in for the servers of all tracers: reads requests, answers what each expects.

`python -m tests.load.collecting`: prints its port, and runs until standard input ends.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_SPANS = {"object": "list", "items": []}


class Handler(BaseHTTPRequestHandler):
    """Takes any request."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read the body and answer."""
        body = self._body()
        if self.path.endswith("/v1/spans"):
            count = body.count(b'"event_type":')
            self._answer(202, json.dumps({"accepted": count, "rejected": []}).encode())
        elif "/v1/flush" in self.path:
            self._answer(200, b'{"left":{}}')
        elif self.path.endswith("/v1/traces"):
            self._answer(200, b"", "application/x-protobuf")
        elif self.path.startswith("/spans"):
            self._answer(200, body)
        elif self.path.endswith("/v5/spans/batch"):
            self._answer(200, json.dumps(_SPANS).encode())
        else:
            self._answer(202, b"{}")

    do_PUT = do_PATCH = do_GET = do_POST  # noqa: N815 - the names that the base looks for

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base
        """Stay quiet."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()

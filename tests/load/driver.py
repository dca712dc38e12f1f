"""The load driver: sends a plan's flows over keep-alive connections, and measures responses.

A process of its own, cheap on purpose: one thread, blocking sends, epoll for responses. It prints
one line once connected; after a line on standard input it runs the load and prints one line of
results. Times are `time.monotonic()`, which all processes of a machine share.
"""

import heapq
import re
import select
import socket
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from itertools import count

import msgspec

from .loads import Flow, Plan, flows

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)
_RECEIVE = 256 * 1024


class Result(msgspec.Struct, kw_only=True):
    """What the driver measured."""

    started: float = 0.0
    last_202: float = 0.0
    requests: int = 0
    statuses: dict[str, int] = {}
    accepted: int = 0
    rejected: int = 0
    reconnects: int = 0
    gave_up: str = ""
    latency_ms: dict[str, float] = {}
    cpu_s: float = 0.0


class _Answer(msgspec.Struct):
    accepted: int = 0
    rejected: list[msgspec.Raw] = []


_ANSWER = msgspec.json.Decoder(_Answer)


class Connection:
    """One connection and its current flow. `due`: when its next request should be sent."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.flow: Flow = iter(())
        self.due = 0.0
        self.asleep = False
        self.in_flight: deque[tuple[bytes, float]] = deque()
        self.again: deque[bytes] = deque()
        self._connect()

    def _connect(self) -> None:
        self._received = b""
        self.socket = socket.create_connection(("127.0.0.1", self._port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def reconnect(self) -> None:
        """Reconnect, and send requests without a response again (which is harmless)."""
        self.again.extendleft(request for request, _ in reversed(self.in_flight))
        self.in_flight.clear()
        self.socket.close()
        self._connect()

    def fill(self, depth: int) -> bool:
        """Send until `depth` requests are in flight; False when there is nothing left to do."""
        while len(self.in_flight) < depth:
            request = self.again.popleft() if self.again else next(self.flow, None)
            if request is None:
                break
            now = time.monotonic()
            # Measured from when it was due, so that a sidecar that falls behind can't hide it.
            self.in_flight.append((request, self.due or now))
            self.due = 0.0
            try:
                self.socket.sendall(request)
            except OSError:
                break  # reading will report it
        return bool(self.in_flight)

    def answers(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield head and body of each complete response; ConnectionError at EOF."""
        chunk = self.socket.recv(_RECEIVE)
        if not chunk:
            raise ConnectionResetError
        received = self._received + chunk
        while (end := received.find(b"\r\n\r\n")) >= 0:
            head = received[:end]
            length = _LENGTH.search(head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(received) < whole:
                break
            yield head, received[end + 4 : whole]
            received = received[whole:]
        self._received = received


class Driver:
    """Runs one plan; `taken` counts a response."""

    def __init__(self, plan: Plan, requests: Iterator[Flow] | None = None) -> None:
        self._plan = plan
        self._connections = [Connection(plan.port) for _ in range(plan.connections)]
        self._epoll = select.epoll()
        self._by_fd: dict[int, Connection] = {}
        for connection in self._connections:
            self._register(connection)
        self._idle = deque(self._connections)
        self._asleep: list[tuple[float, int, Connection]] = []
        self._order = count()
        self._flows = flows(plan) if requests is None else requests
        self._number = 0
        self._more = True
        self._latencies = array("d")
        self._statuses: Counter[str] = Counter()
        self.result = Result()

    def _register(self, connection: Connection) -> None:
        self._by_fd[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket, select.EPOLLIN)

    def run(self) -> Result:
        """Send everything; stop early when no response arrives for `idle_s`."""
        self.result.started = last_response_at = time.monotonic()
        while True:
            now = time.monotonic()
            wait = self._begin(now)
            if not self._more and len(self._idle) == len(self._connections):
                break
            events = self._epoll.poll(
                max(0.0, min(wait, last_response_at + self._plan.idle_s - now))
            )
            for descriptor, _ in events:
                self._hear(self._by_fd[descriptor])
            now = time.monotonic()
            if events or self._asleep:
                last_response_at = now
            elif now - last_response_at >= self._plan.idle_s:
                self.result.gave_up = f"no answer for {self._plan.idle_s:g} s"
                break
        return self._finished()

    def _begin(self, now: float) -> float:
        """Give idle connections the flows that are due; return seconds until the next one."""
        while self._asleep and self._asleep[0][0] <= now:
            _, _, connection = heapq.heappop(self._asleep)
            connection.asleep = False
            connection.fill(self._plan.depth)
        rate = self._plan.rate
        wait = self._asleep[0][0] - now if self._asleep else float("inf")
        while self._idle and self._more:
            due = self.result.started + self._number / rate if rate else 0.0
            if due > now:
                return min(wait, due - now)
            flow = next(self._flows, None)
            if flow is None:
                self._more = False
                break
            self._number += 1
            connection = self._idle.popleft()
            connection.flow, connection.due = flow, due
            connection.fill(self._plan.depth)
        return wait

    def _hear(self, connection: Connection) -> None:
        try:
            for head, body in connection.answers():
                request, sent = connection.in_flight.popleft()
                pause = self._answered(head, body, sent)
                if pause is not None:
                    connection.again.append(request)
                    self._sleep(connection, pause)
        except ConnectionError:
            self._reconnect(connection)
            if connection in self._idle:  # the sidecar closed it because it was not used
                return
        if not (connection.asleep or connection.fill(self._plan.depth)):
            self._idle.append(connection)

    def _sleep(self, connection: Connection, seconds: float) -> None:
        if not connection.asleep:
            connection.asleep = True
            until = time.monotonic() + seconds
            heapq.heappush(self._asleep, (until, next(self._order), connection))

    def _reconnect(self, connection: Connection) -> None:
        del self._by_fd[connection.socket.fileno()]
        self._epoll.unregister(connection.socket)
        connection.reconnect()
        self._register(connection)
        self.result.reconnects += 1

    def _answered(self, head: bytes, body: bytes, sent: float) -> float | None:
        """Count a response; return the seconds to wait if the request must be sent again."""
        now = time.monotonic()
        status = head[9:12].decode()
        self._statuses[status] += 1
        if status in {"429", "503"}:
            retry_after = _RETRY_AFTER.search(head)
            return float(retry_after[1]) if retry_after else 1.0
        self._latencies.append(now - sent)
        self.taken(status, body, now)
        return None

    def taken(self, status: str, body: bytes, now: float) -> None:
        """Count the events that the sidecar accepted."""
        answer = _ANSWER.decode(body)
        self.result.accepted += answer.accepted
        self.result.rejected += len(answer.rejected)
        if status == "202":
            self.result.last_202 = now

    def _finished(self) -> Result:
        result = self.result
        result.statuses = dict(self._statuses)
        result.requests = self._statuses.total()
        result.cpu_s = time.process_time()
        ordered = sorted(self._latencies) or [0.0]
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            at = min(len(ordered) - 1, int(share * len(ordered)))
            result.latency_ms[name] = round(ordered[at] * 1000, 3)
        return result


def main() -> None:
    """Run the plan in the first argument."""
    driver = Driver(msgspec.json.decode(sys.argv[1], type=Plan))
    print("connected", flush=True)
    if sys.stdin.readline():
        print(msgspec.json.encode(driver.run()).decode(), flush=True)


if __name__ == "__main__":
    main()

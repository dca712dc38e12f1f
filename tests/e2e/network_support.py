"""The network of a pod for test_network_*.py, from real parts.

Names in an /etc of a process's own (`Etc`), upstreams at other addresses or behind TLS (`Relay`),
proxies (`tinyproxy`, `squid`, and `FakeProxy` for what no real one does), a network of its own
(`namespace`), and the sidecar among them (`Pod`).
"""

import asyncio
import ctypes
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import aiohttp
import pytest

from sidecar.demo.stand_in import Answer, Recorded, StandIn
from sidecar.network.certificates import CertificateFiles
from tests.e2e import parts
from tests.support.kill import POLL_S, Json, Rig, SidecarRun
from tests.support.lives import ANSWER_S, ARRIVE_S, arrived, post_ends, shows, stops, within
from tests.support.run_process import free_ports, serves
from tests.support.tls import Authority

T = TypeVar("T")

AGENTEX, SGP = "agentex.internal", "sgp.internal"
NAMES = {"localhost": "127.0.0.1", AGENTEX: "127.0.0.1", SGP: "127.0.0.1"}
USER, PASSWORD = "pod", "pa55-of-the-proxy"
CHUNK = 2**16
# Every step on the way to an upstream may take its whole time.
COMMAND_S = 60.0
LIBRARIES = "usr/lib/x86_64-linux-gnu"
# What no text for operators should have in it: names of exceptions, and OpenSSL's own brackets.
JARGON = re.compile(r"\w+Error\b|gaierror|\[Errno|\[SSL|_ssl\.c|ssl\.SSL|errno", re.IGNORECASE)
_CLONE_NEWNET = 0x40000000
_REQUEST = re.compile(r"Request \(file descriptor \d+\): (\S+) (\S+) HTTP/")


def names_of(cases: Iterable[str], rare: Collection[str]) -> list[Any]:
    """Parameters of a test: the names of its cases, of which the rare ones run nightly only."""
    nightly = [pytest.mark.nightly]
    return [pytest.param(name, marks=nightly if name in rare else []) for name in cases]


class Etc:
    """Files in /etc that only the processes below `wrapper` have: their names are `hosts`."""

    def __init__(self, folder: Path, hosts: Mapping[str, str], *, resolver: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._hosts = dict(hosts)
        files = {
            "nsswitch.conf": f"hosts: files {'dns' if resolver else ''}\n",
            "resolv.conf": f"nameserver {resolver}\noptions timeout:5 attempts:5\n",
            "hosts": "",
        }
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        self.move()
        mounts = [f"mount --bind {folder / name} /etc/{name}" for name in files]
        script = " && ".join([*mounts, 'exec "$@"'])
        self.wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"]
        parts.run(*self.wrapper, "true")

    def move(self, **addresses: str) -> None:
        """Give names other addresses, in one write to the file that is mounted."""
        self._hosts |= {name.replace("_", "."): address for name, address in addresses.items()}
        text = "".join(f"{address} {name}\n" for name, address in self._hosts.items())
        with (self._folder / "hosts").open("r+b") as file:
            file.write(text.encode())
            file.truncate()


def client_files(folder: Path, authority: Authority, name: str, **dates: Any) -> CertificateFiles:
    """Write a client's certificate and its key as files."""
    issued = authority.issue(f"{name}.internal", **dates)
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    return CertificateFiles("", str(cert), str(key))


def hashed(authority: Authority, folder: Path) -> Path:
    """Make a folder as SSL_CERT_DIR needs it."""
    folder.mkdir(parents=True, exist_ok=True)
    name = parts.run("openssl", "x509", "-hash", "-noout", "-in", authority.path).strip()
    (folder / f"{name}.0").write_bytes(authority.path.read_bytes())
    return folder


def replace(target: str | Path, source: str | Path) -> None:
    """Replace a file by a copy of another one, in one step, as a Secret's volume does."""
    new = Path(f"{target}.new")
    new.write_bytes(Path(source).read_bytes())
    new.replace(target)


class Stream:
    """One side of a connection."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def receive(self) -> bytes:
        """The next bytes; b"" at the end."""
        return await self._reader.read(CHUNK)

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        self._writer.write(data)
        await self._writer.drain()

    async def end(self) -> None:
        """Close the connection, once everything is sent."""
        self._writer.close()
        await self._writer.wait_closed()

    def abort(self) -> None:
        """Close it now."""
        self._writer.transport.abort()


class TlsStream(Stream):
    """The server's side of TLS: asyncio's own does not tell a client why it refuses it."""

    def __init__(self, reader: StreamReader, writer: StreamWriter, tls: ssl.SSLContext) -> None:
        super().__init__(reader, writer)
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.wrap_bio(self._received, self._to_send, server_side=True)

    async def handshake(self) -> None:
        """Raises `OSError`; the client has been told why."""
        try:
            await self._once_there_is_enough(self._tls.do_handshake)
        except ssl.SSLError:
            await self.end()
            raise

    async def receive(self) -> bytes:
        with suppress(ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return await self._once_there_is_enough(lambda: self._tls.read(CHUNK))
        return b""

    async def send(self, data: bytes) -> None:
        self._tls.write(data)
        await self._flush()

    async def end(self) -> None:
        with suppress(ssl.SSLError):
            self._tls.unwrap()  # it wants the client's answer, which is not waited for
        await self._flush()
        await super().end()

    async def _once_there_is_enough(self, call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                await self._flush()
                if data := await super().receive():
                    self._received.write(data)
                else:
                    self._received.write_eof()
            finally:
                await self._flush()

    async def _flush(self) -> None:
        if data := self._to_send.read():
            await super().send(data)


async def pump(source: Stream, target: Stream) -> None:
    """Copy until the end; then end the other side, too."""
    with suppress(OSError):
        while data := await source.receive():
            await target.send(data)
    with suppress(OSError):
        await target.end()


Dial = Callable[[], Awaitable[tuple[StreamReader, StreamWriter]]]


class Relay:
    """Listens at an address of its own, with TLS if there is a context, in front of `target`.

    `target` is a port of 127.0.0.1, or how to connect. `accepted` counts the connections, over TLS
    those whose handshake succeeded. `tls` can be changed, for the next connections.
    """

    def __init__(
        self, target: int | Dial, *, tls: ssl.SSLContext | None = None, **where: Any
    ) -> None:
        self.accepted = 0
        self.port = 0
        self.tls = tls
        self._target = target
        self._where = where if "sock" in where else {"host": "127.0.0.1", "port": 0, **where}
        self._server: asyncio.Server | None = None
        self._streams: set[Stream] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, **self._where)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is None:
            return
        self._server.close()
        self.drop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def drop(self) -> None:
        """End all connections."""
        for stream in self._streams:
            stream.abort()

    def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._passed_on(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _passed_on(self, reader: StreamReader, writer: StreamWriter) -> None:
        with suppress(OSError), ExitStack() as stack:
            here = Stream(reader, writer)
            self._open(here, stack)
            if self.tls is not None:
                here = TlsStream(reader, writer, self.tls)
                await here.handshake()
            self.accepted += 1
            there = Stream(*await self._dial())
            self._open(there, stack)
            await asyncio.gather(pump(here, there), pump(there, here))

    async def _dial(self) -> tuple[StreamReader, StreamWriter]:
        if callable(self._target):
            return await self._target()
        return await asyncio.open_connection("127.0.0.1", self._target)

    def _open(self, stream: Stream, stack: ExitStack) -> None:
        self._streams.add(stream)
        stack.callback(self._streams.discard, stream)
        stack.callback(stream.abort)


@dataclass
class Proxy:
    """A running proxy of Debian's, and its own log of requests."""

    port: int
    log: Path
    credential: str = ""
    requests_of: Callable[[str], list[tuple[str, str]]] = field(repr=False, default=lambda _: [])

    @property
    def url(self) -> str:
        """What a variable such as HTTP_PROXY says."""
        return f"http://{self.credential}{'@' if self.credential else ''}127.0.0.1:{self.port}"

    @property
    def shown(self) -> str:
        """What may be shown of it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Each request's method and target, as the proxy's own log has them."""
        return self.requests_of(self.log.read_text(encoding="utf-8"))

    def tunnels(self, port: int) -> int:
        """How many tunnels to a port were asked for."""
        return sum(m == "CONNECT" and t.endswith(f":{port}") for m, t in self.requests)

    def forwards(self, port: int) -> int:
        """How many requests to a port it was given as a whole."""
        return sum(m != "CONNECT" and f":{port}/" in t for m, t in self.requests)


def tinyproxy(
    folder: Path,
    *,
    credential: str = "",
    allows: bool = True,
    etc: Etc | None = None,
    port: int = 0,
) -> AbstractAsyncContextManager[Proxy]:
    """Run tinyproxy; unless it `allows` it, everything gets 403."""
    program = parts.unpacked("tinyproxy-bin") / "usr/bin/tinyproxy"
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_ports()[0]
    log, config, nothing = folder / "proxy.log", folder / "proxy.conf", folder / "filter"
    nothing.touch()
    lines = [f"Port {port}", "Listen 127.0.0.1", f'LogFile "{log}"', "LogLevel Connect"]
    lines += ["Timeout 600", "MaxClients 200"]
    if credential:
        lines.append("BasicAuth " + credential.replace(":", " "))
    if not allows:
        lines += [f'Filter "{nothing}"', "FilterDefaultDeny Yes"]
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = Proxy(port, log, credential, _REQUEST.findall)
    return _running(found, *(etc.wrapper if etc else ()), program, "-d", "-c", config)


def _squid_root() -> Path:
    """Unpack Squid and what it needs that a machine may not have."""
    root = parts.unpacked("squid")
    packages = ("squid-common", "squid-langpack", "libecap3", "libltdl7")

    def gather(home: Path) -> None:
        shutil.copytree(root, home / "root", symlinks=True)
        for package in packages:
            shutil.copytree(
                parts.unpacked(package), home / "root", symlinks=True, dirs_exist_ok=True
            )

    return parts.build_once("debian/squid-whole", gather) / "root"


def squid(
    folder: Path, *, credential: str = "", etc: Etc | None = None
) -> AbstractAsyncContextManager[Proxy]:
    """Run Squid, which keeps connections open on both sides."""
    root = _squid_root()
    folder.mkdir(parents=True, exist_ok=True)
    port = free_ports()[0]
    log, config, keys = folder / "proxy.log", folder / "proxy.conf", folder / "users"
    lines = [
        f"http_port 127.0.0.1:{port}",
        "pid_filename none",
        "cache deny all",
        f"access_log stdio:{log}",
        f"cache_log {folder / 'cache.log'}",
        f"coredump_dir {folder}",
        f"mime_table {root}/usr/share/squid/mime.conf",
        f"icon_directory {root}/usr/share/squid/icons",
        f"error_directory {root}/usr/share/squid-langpack/templates",
        f"unlinkd_program {root}/usr/lib/squid/unlinkd",
        f"logfile_daemon {root}/usr/lib/squid/log_file_daemon",
        "pinger_enable off",
        "netdb_filename none",
        "shutdown_lifetime 0 seconds",
    ]
    if credential:
        user, _, password = credential.partition(":")
        hashed = parts.run("openssl", "passwd", "-apr1", password).strip()
        keys.write_text(f"{user}:{hashed}\n", encoding="utf-8")
        lines += [
            f"auth_param basic program {root}/usr/lib/squid/basic_ncsa_auth {keys}",
            "acl known proxy_auth REQUIRED",
            "http_access allow known",
            "http_access deny all",
        ]
    else:
        lines.append("http_access allow all")
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    log.touch()

    def requests_of(text: str) -> list[tuple[str, str]]:
        # A connection without a request is a line, too.
        lines = map(str.split, text.splitlines())
        return [(line[5], line[6]) for line in lines if line[5] != "-"]

    found = Proxy(port, log, credential, requests_of)
    # It refuses to run as root, and could not read its files as anyone else.
    user_ = ("unshare", "--user", "--map-user=13", "--map-group=13")
    command = (*(etc.wrapper if etc else ()), *user_, root / "usr/sbin/squid", "-N", "-f", config)
    return _running(found, *command, LD_LIBRARY_PATH=str(root / LIBRARIES))


@asynccontextmanager
async def _running(proxy: Proxy, *command: str | Path, **environ: str) -> AsyncIterator[Proxy]:
    """Run a proxy until the block ends; wait until it listens."""
    errors = proxy.log.with_suffix(".stderr")
    with errors.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **environ}, stdout=stderr, stderr=stderr
        )
    try:
        async with asyncio.timeout(ARRIVE_S):
            while not await serves(proxy.port):
                if process.returncode is not None:
                    parts.missing(f"the proxy ended: {errors.read_text()[-2000:]}")
                await asyncio.sleep(POLL_S)
        yield proxy
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


Act = Callable[["FakeProxy", StreamReader, StreamWriter], Awaitable[None]]


class FakeProxy:
    """A proxy for what no real one does: `act` is what it does after a request's head.

    `heads` are the heads that it got.
    """

    def __init__(self, act: Act) -> None:
        self.act = act
        self.heads: list[bytes] = []
        self.port = 0
        self._writers: set[StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Its URL, with a credential."""
        return f"http://{USER}:{PASSWORD}@127.0.0.1:{self.port}"

    @property
    def shown(self) -> str:
        """What may be shown of it."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._one(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                await self.act(self, reader, writer)
        finally:
            writer.transport.abort()
            self._writers.discard(writer)


async def _says(writer: StreamWriter, answer: bytes) -> None:
    writer.write(answer)
    await writer.drain()
    writer.close()
    await writer.wait_closed()


def saying(answer: bytes) -> Act:
    """Send `answer`, then close the connection."""

    async def act(_: FakeProxy, __: StreamReader, writer: StreamWriter) -> None:
        await _says(writer, answer)

    return act


async def silent(_: FakeProxy, reader: StreamReader, __: StreamWriter) -> None:
    """Say nothing until the other side ends."""
    while await reader.read(CHUNK):
        pass


def echoing(status_code: int = 502, content_type: str = "text/html") -> Act:
    """Repeat what was asked, with its credential, in every part of an answer."""

    async def act(proxy: FakeProxy, reader: StreamReader, writer: StreamWriter) -> None:
        body = proxy.heads[-1]
        if length := re.search(rb"content-length: (\d+)", body.lower()):
            body += await reader.readexactly(int(length[1]))
        flat = b" ".join(body.split())[:4000]
        head = b"HTTP/1.1 %d %b\r\nX-Echo: %b\r\n" % (status_code, flat, flat)
        head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        await _says(writer, head + body)

    return act


def tunnelling(*answers: bytes) -> Act:
    """Send pieces of an answer to CONNECT, one packet each, then be the tunnel to its port."""

    async def act(proxy: FakeProxy, reader: StreamReader, writer: StreamWriter) -> None:
        port = int(proxy.heads[-1].split()[1].rpartition(b":")[2])
        here, there = (
            Stream(reader, writer),
            Stream(*await asyncio.open_connection("127.0.0.1", port)),
        )
        try:
            for answer in answers:
                await here.send(answer)
                await asyncio.sleep(0)
            await asyncio.gather(pump(here, there), pump(there, here))
        finally:
            there.abort()

    return act


class Namespace:
    """A network of its own with `lo`, which is entered on one thread."""

    def __init__(self, thread: ThreadPoolExecutor, file: int) -> None:
        self._thread = thread
        self.wrapper = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{file}"]

    def listen(self, host: str, port: int = 0) -> socket.socket:
        """Return a socket that listens in there."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = self._thread.submit(socket.create_server, (host, port), family=family)
        return made.result()

    def dial(self, port: int) -> Dial:
        """Return how to connect to a port in there."""

        async def connected() -> tuple[StreamReader, StreamWriter]:
            loop = asyncio.get_running_loop()
            address = "127.0.0.1", port
            sock = await loop.run_in_executor(self._thread, socket.create_connection, address)
            sock.setblocking(False)
            return await asyncio.open_connection(sock=sock)

        return connected


@contextmanager
def namespace(*addresses: str) -> Iterator[Namespace]:
    """A network in which `lo` is up and has more `addresses`, such as `fd00::2/128`."""
    with ThreadPoolExecutor(1) as thread:
        file = thread.submit(_unshare).result()
        if file < 0:
            parts.missing("no network namespace: " + os.strerror(-file))
        try:
            here = Namespace(thread, file)
            parts.run(*here.wrapper, "ip", "link", "set", "lo", "up")
            for address in addresses:
                parts.run(*here.wrapper, "ip", "address", "add", address, "dev", "lo")
            yield here
        finally:
            os.close(file)


def _unshare() -> int:
    """Move this thread to a network of its own; return it as a file, or minus the error."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_CLONE_NEWNET):
        return -ctypes.get_errno()
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@dataclass
class Pod(Rig):
    """Both upstreams, and sidecars that are told about them and their network by `settings`."""

    sent: set[str] = field(default_factory=set)

    def lead_to(self, agentex: int, sgp: int, *, scheme: str = "http") -> None:
        """Have the sidecar reach the upstreams at these ports, by name."""
        self.settings |= {
            "AGENTEX_BASE_URL": f"{scheme}://{AGENTEX}:{agentex}",
            "SGP_CLIENT_BASE_URL": f"{scheme}://{SGP}:{sgp}",
        }

    @property
    def upstreams(self) -> dict[str, StandIn]:
        """Both upstreams by the names of their sinks."""
        return {"agentex": self.agentex, "sgp": self.sgp}

    async def post(self, life: SidecarRun, count: int = 5) -> None:
        """Post finished spans; each must be accepted."""
        ids = [f"s-{self.numbers + number}" for number in range(count)]
        self.numbers += count
        await post_ends(life.url, ids)
        self.sent |= set(ids)

    async def delivers(self, *sinks: str) -> None:
        """Check that all that was posted arrives, at `sinks` only if any are named."""
        for name, upstream in self.upstreams.items():
            if not sinks or name in sinks:
                assert await arrived(upstream, self.sent), (name, self.sent - upstream.complete)

    async def settles(self, life: SidecarRun) -> None:
        """Check that all that was posted arrives, and that the sidecar is told so."""
        await self.delivers()
        settled = await shows(
            life, lambda now: not any(sink["depth"] for sink in now["sinks"].values())
        )
        assert settled

    async def ends(self, life: SidecarRun) -> None:
        """Check that SIGTERM ends a sidecar in time, and that it loses nothing."""
        assert await stops(life.process) == 0
        await life.ended()
        last = life.log[-1]
        assert (last["event"], last["lost"]) == ("stopped", 0), last
        for sink in last["writes"].values():
            assert (sink["lost"], sink["dead_lettered"]) == (0, 0), last

    async def holds(
        self, life: SidecarRun, sink: str, text: str, state: str = "down", held: int | None = None
    ) -> Json:
        """Check that a sink holds what it could not deliver, and says `text`.

        `held`: how many spans. Returns what `/status` shows of the sink.
        """
        seen: Json = {}
        if held is None:
            held = len(self.sent - self.upstreams[sink].complete)
        end = asyncio.get_running_loop().time() + ARRIVE_S
        while asyncio.get_running_loop().time() < end:
            seen = (await status(life))["sinks"][sink]
            error = (seen["last_error"] or {}).get("text", "")
            if text in error and seen["state"] == state and seen["depth"] == held:
                break
            await asyncio.sleep(POLL_S)
        else:
            shown = {key: seen[key] for key in ("state", "depth", "last_error")}
            raise AssertionError((text, held, shown))
        assert not JARGON.search(error), error
        assert (seen["lost"], seen["dead_lettered"], seen["imbalance"]) == (0, 0, 0)

        def logged() -> list[str]:
            mine = [line for line in life.log if line.get("sink") == sink]
            return [line["error"] for line in mine if "error" in line]

        # The log comes on another way than the status.
        assert await within(ARRIVE_S, lambda: any(text in each for each in logged())), logged()
        return dict(seen)

    async def says(self, *arguments: str, wrapper: Iterable[str] = ()) -> tuple[int, str, str]:
        """Run `sidecar ARGUMENTS`; return its exit code, and what it prints and complains."""
        process = await asyncio.create_subprocess_exec(
            *wrapper,
            sys.executable,
            "-m",
            "sidecar",
            *arguments,
            env=self._environ({}),
            stdin=subprocess.DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )
        self.processes.append(process)
        async with asyncio.timeout(COMMAND_S):
            out, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), errors.decode()

    async def refuses_to_start(self, *wrapper: str) -> str:
        """Check that `sidecar run` ends at once, with exit code 2; return why."""
        code, _, errors = await self.says("run", wrapper=wrapper)
        assert code == 2, errors
        assert "Traceback" not in errors
        return errors


@asynccontextmanager
async def pod(folder: Path, **settings: str) -> AsyncIterator[Pod]:
    """Run both upstreams; sidecars are started by the test."""
    quick = {
        "SIDECAR_RETRY__INITIAL_S": "0.1",
        "SIDECAR_RETRY__MAX_S": "0.3",
        "SIDECAR_SHUTDOWN__GRACE_S": "0.5",
    }
    here = Pod(folder, seed=1, settings={**quick, **settings})
    here.agentex.latency_s = here.sgp.latency_s = 0.01
    async with here.agentex, here.sgp:
        try:
            yield here
        finally:
            await here.kill_all()


class Both(NamedTuple):
    """A relay in front of each upstream."""

    agentex: Relay
    sgp: Relay

    @property
    def accepted(self) -> int:
        """The connections of both."""
        return self.agentex.accepted + self.sgp.accepted


@asynccontextmanager
async def over_tls(here: Pod, tls: ssl.SSLContext) -> AsyncIterator[Both]:
    """Have the sidecar reach both upstreams over TLS."""
    async with Relay(here.agentex.port, tls=tls) as one, Relay(here.sgp.port, tls=tls) as other:
        here.lead_to(one.port, other.port, scheme="https")
        yield Both(one, other)


async def status(life: SidecarRun) -> Json:
    """What `/status` says."""
    shown: Json = json.loads(await get(life, "/status"))
    return shown


async def get(life: SidecarRun, path: str) -> str:
    """What a page of the admin port says."""
    timeout = aiohttp.ClientTimeout(ANSWER_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(life.admin_url + path) as reply,
    ):
        assert reply.status == 200
        return await reply.text()


async def logs(life: SidecarRun, event: str, **fields: str) -> Json:
    """Wait for a line in the log with these fields; return it."""

    def found() -> list[Json]:
        return [
            line for line in life.log if line["event"] == event and fields.items() <= line.items()
        ]

    assert await within(ARRIVE_S, lambda: bool(found())), (event, fields, life.log)
    return found()[0]


def passes_through(sgp: StandIn) -> None:
    """Have SGP answer other requests than spans, with their path and body."""

    def rule(request: Recorded) -> Answer | None:
        if request.path.endswith("/v5/spans/batch"):
            return None
        return Answer(200, json.dumps({"path": request.path, "size": len(request.body)}).encode())

    sgp.rule = rule

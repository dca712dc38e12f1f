"""Makes system calls of a process hang: the test's side of tests/e2e/stall.c, which says how.

slots = Slots.create(build(folder), folder, {"spool": "/a/folder", "sgp": "sgp.test:8080"})
...start a process with slots.environ...
slots.hang("fdatasync", "spool")
slots.release()
"""

import mmap
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

SOURCE = Path(__file__).parents[1] / "e2e" / "stall.c"
# The place of standard output and error, which the shim always has.
LOG = "log"

# struct slot in stall.c, and where its fields begin.
_SLOT = struct.Struct("=16s16sIIIiI12x")
_NUMBER = struct.Struct("=I")
_COUNT, _WAITING, _MODE, _SKIP, _ARGUMENT = 32, 36, 40, 44, 48
_NORMAL, _HANG, _FAIL, _SLOW = range(4)

Call = tuple[str, str]  # the name of a system call, and the place


def build(folder: Path) -> Path:
    """Compile the shim into `folder`; raises `OSError` or `CalledProcessError`."""
    library = folder / "stall.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-U_FORTIFY_SOURCE"]
    command = ["cc", *flags, "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


class Slots:
    """What the calls of processes under the shim do, and how often each was made.

    It is a file, so that it holds for every process that is started with `environ`, one at a time.
    """

    def __init__(self, file: Path, environ: Mapping[str, str]) -> None:
        self.environ = dict(environ)
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), 0)
        self._at: dict[Call, int] = {}
        for at in range(0, len(self._memory), _SLOT.size):
            call, place = self._memory[at : at + 16], self._memory[at + 16 : at + 32]
            self._at[call.rstrip(b"\0").decode(), place.rstrip(b"\0").decode()] = at

    @classmethod
    def create(cls, library: Path, folder: Path, places: Mapping[str, str]) -> Self:
        """Watch `places`: a folder, or `HOST:PORT`, by name."""
        file = folder / "stalls"
        file.touch()
        environ = {
            "LD_PRELOAD": str(library),
            "STALL_CONTROL": str(file),
            "STALL_PLACES": "\n".join(f"{name}={pattern}" for name, pattern in places.items()),
        }
        # Any process under the shim lays out the slots.
        subprocess.run(["/bin/true"], env=environ, check=True)
        return cls(file, environ)

    def _get(self, call: Call, field: int) -> int:
        number: int = _NUMBER.unpack_from(self._memory, self._at[call] + field)[0]
        return number

    def _set(self, call: Call, field: int, number: int) -> None:
        _NUMBER.pack_into(self._memory, self._at[call] + field, number)

    def counts(self) -> dict[Call, int]:
        """How often each call was made, without those that were not."""
        counts = {call: self._get(call, _COUNT) for call in self._at}
        return {call: count for call, count in counts.items() if count}

    @property
    def hanging(self) -> int:
        """How many calls hang now, or hung when their process ended."""
        return sum(self._get(call, _WAITING) for call in self._at)

    def hang(self, call: str, place: str, *, skip: int = 0, deaf_port: int = 0) -> None:
        """Have a call hang, or every call with "*", once `skip` more of it have passed.

        `deaf_port`: where a `connect` goes instead, because it does not wait.
        """
        self._let(call, place, _HANG, skip, deaf_port)

    def fail(self, call: str, place: str, errno: int) -> None:
        """Have a call fail."""
        self._let(call, place, _FAIL, 0, errno)

    def slow(self, call: str, place: str, milliseconds: int) -> None:
        """Have a call take longer."""
        self._let(call, place, _SLOW, 0, milliseconds)

    def _let(self, call: str, place: str, mode: int, skip: int, argument: int) -> None:
        for each in self._chosen(call, place):
            self._set(each, _SKIP, skip)
            self._set(each, _ARGUMENT, argument)
            self._set(each, _MODE, mode)

    def _chosen(self, call: str, place: str) -> list[Call]:
        chosen = [each for each in self._at if call in {"*", each[0]} and place in {"*", each[1]}]
        assert chosen, (call, place)
        return chosen

    def release(self, call: str = "*", place: str = "*") -> None:
        """Let what hangs go on, and later calls pass."""
        for each in self._chosen(call, place):
            self._set(each, _MODE, _NORMAL)

    def forget(self) -> None:
        """Forget what the calls of an ended process did."""
        self.release()
        for call in self._at:
            self._set(call, _COUNT, 0)
            self._set(call, _WAITING, 0)


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port where no connection is ever made, or refused: its queue is full."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]

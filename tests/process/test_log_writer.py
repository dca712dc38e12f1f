"""The log writer over real pipes: `write` neither waits nor fails, whoever reads, or not."""

import fcntl
import os
import re
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO, cast

import pytest

from sidecar.process.log_writer import STALL_S, TAIL_BYTES, LogWriter

# A hang is a failure, not a hung test.
DEADLINE_S = 30.0
PAGE = 4096


def report(count: int) -> str:
    """The line about dropped lines."""
    return f"dropped {count}\n"


def new_writer(descriptor: int, max_bytes: int = 2**20) -> LogWriter:
    """A writer that reports as above."""
    return LogWriter(descriptor, report=report, max_bytes=max_bytes)


@dataclass
class Pipe:
    """A pipe of one page."""

    reader: int = field(init=False)
    writer: int = field(init=False)

    def __post_init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PAGE)

    def fill(self) -> int:
        """Fill it, so that the next write waits; returns the number of bytes in it."""
        os.set_blocking(self.writer, False)
        filled = 0
        with suppress(BlockingIOError):
            while True:
                filled += os.write(self.writer, b"." * PAGE)
        os.set_blocking(self.writer, True)
        return filled

    def read(self, writer: LogWriter, threads: Sequence[threading.Thread] = ()) -> bytes:
        """Return all that arrives until `threads` have ended and `writer` is drained."""
        drained: list[bool] = []

        def drain() -> None:
            for each in threads:
                each.join()
            drained.append(writer.drain(DEADLINE_S))
            os.close(self.writer)

        thread = threading.Thread(target=drain)
        thread.start()
        found = b""
        while data := os.read(self.reader, 2**16):
            found += data
        thread.join()
        os.close(self.reader)
        assert drained == [True]
        return found


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


def test_whole_lines_in_order(pipe: Pipe) -> None:
    """Lines arrive whole and in order, whatever pieces were written; the rest at `drain`."""
    writer = new_writer(pipe.writer)
    print("a", 1, file=writer)
    writer.write("b")
    writer.write("")
    writer.writelines(["c\nd\n", "e"])
    writer.flush()
    assert pipe.read(writer) == b"a 1\nbc\nd\ne\n"
    assert (writer.dropped, writer.stalls) == (0, 0)


def test_any_text(pipe: Pipe) -> None:
    """Everything that a string can hold is written, whatever the locale."""
    writer = new_writer(pipe.writer)
    assert writer.write("é \udcff\ud800 \0\n") == 7
    assert pipe.read(writer) == b"\xc3\xa9 \\udcff\\ud800 \0\n"


def test_it_looks_like_a_text_file(pipe: Pipe) -> None:
    """It has what Python and libraries ask a standard stream for."""
    writer = new_writer(pipe.writer)
    assert (writer.fileno(), writer.isatty(), writer.writable()) == (pipe.writer, False, True)
    assert (writer.encoding, writer.errors, writer.closed) == ("utf-8", "backslashreplace", False)
    assert pipe.read(writer) == b""
    assert not writer.isatty()  # of a descriptor that is closed


def test_a_pipe_that_is_read_late(pipe: Pipe) -> None:
    """While nobody reads, lines wait, up to the bound. Then a line says how many were dropped."""
    pipe.fill()
    writer = new_writer(pipe.writer, max_bytes=10_000)
    for number in range(1000):
        writer.write(f"line {number:04}\n")
    assert not writer.drain(0)
    dropped = writer.dropped
    assert 800 < dropped < 1000
    lines = pipe.read(writer).lstrip(b".").splitlines()
    said = [line for line in lines if line.startswith(b"dropped")]
    assert said == [b"dropped %d" % dropped]
    kept = [line for line in lines if line not in said]
    assert kept == [b"line %04d" % number for number in range(1000 - dropped)]


def test_many_empty_lines_are_bounded_too(pipe: Pipe) -> None:
    """A waiting line counts with what it takes in memory."""
    pipe.fill()
    writer = new_writer(pipe.writer, max_bytes=10_000)
    for _ in range(1000):
        writer.write("\n")
    assert writer.dropped > 800
    pipe.read(writer)


def test_a_line_that_is_larger_than_the_buffer(pipe: Pipe) -> None:
    """It is dropped and counted once; the lines around it are not."""
    writer = new_writer(pipe.writer, max_bytes=10_000)
    writer.write("a\n")
    writer.write("x" * 10_000 + "\n")
    writer.write("b\n")
    found = pipe.read(writer).splitlines()
    assert sorted(found) == [b"a", b"b", b"dropped 1"]
    assert writer.dropped == 1


def test_a_line_without_an_end_is_bounded(pipe: Pipe) -> None:
    """What is written without a line end becomes a line when it is long."""
    writer = new_writer(pipe.writer)
    for _ in range(70):
        writer.write("x" * 1000)
    assert {len(line) for line in pipe.read(writer).splitlines()} == {66_000, 4000}


def refusing(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Descriptors that refuse every write, by what is wrong with them."""
    pipe = Pipe()
    os.close(pipe.reader)
    yield "the reader is gone", pipe.writer
    yield "the disk is full", os.open("/dev/full", os.O_WRONLY)
    closed = fcntl.fcntl(pipe.writer, fcntl.F_DUPFD, 700)
    os.close(closed)
    yield "it is closed", closed
    (tmp_path / "file").touch()
    yield "it is for reading", os.open(tmp_path / "file", os.O_RDONLY)


def test_a_descriptor_that_refuses(tmp_path: Path) -> None:
    """Each line is tried once, dropped and counted."""
    for what, descriptor in refusing(tmp_path):
        writer = new_writer(descriptor)
        for _ in range(3):
            print("one\ntwo", file=writer)
        assert writer.drain(DEADLINE_S), what
        assert writer.dropped == 6, what


def test_a_reader_that_comes_back(tmp_path: Path) -> None:
    """The next line is written, after the end of one that was cut off; then what was dropped."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    first = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    descriptor = os.open(fifo, os.O_WRONLY)
    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PAGE)
    writer = new_writer(descriptor)
    writer.write("x" * PAGE + "yz\n")
    assert not writer.drain(0.01)  # the pipe is full, with part of the line
    os.close(first)
    assert writer.drain(DEADLINE_S)
    assert writer.dropped == 1
    writer.write("lost\n")
    assert writer.drain(DEADLINE_S)
    assert writer.dropped == 2
    second = os.open(fifo, os.O_RDONLY)
    writer.write("back\n")
    found = b""
    while not found.endswith(b"dropped 2\n"):
        found += os.read(second, PAGE)
    assert found.lstrip(b"x") == b"\nback\ndropped 2\n"
    os.close(second)
    os.close(descriptor)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_descriptor_keeps_its_mode(pipe: Pipe, *, blocking: bool) -> None:
    """Lines wait for a pipe that somebody else has made non-blocking, and none is lost."""
    os.set_blocking(pipe.writer, blocking)
    writer = new_writer(pipe.writer)
    lines = [f"{number:03} {'x' * 500}" for number in range(100)]
    for line in lines:
        writer.write(f"{line}\n")
    assert not writer.drain(0.01)
    assert os.get_blocking(pipe.writer) is blocking
    assert pipe.read(writer).decode().splitlines() == lines
    assert writer.dropped == 0


def test_a_non_blocking_pipe_whose_reader_goes(pipe: Pipe) -> None:
    """Waiting for such a pipe ends with its reader."""
    pipe.fill()
    os.set_blocking(pipe.writer, False)
    writer = new_writer(pipe.writer)
    writer.write("a\n")
    os.close(pipe.reader)
    assert writer.drain(DEADLINE_S)
    assert writer.dropped == 1


def test_threads_do_not_mix_their_lines(pipe: Pipe) -> None:
    """Tracebacks, which are written in pieces, and lines of several threads stay whole."""
    writer = new_writer(pipe.writer)
    numbers: dict[str, int] = {}

    def write(name: str) -> None:
        for number in range(50):
            try:
                numbers[f"{name} {number}"]
            except KeyError:
                traceback.print_exc(file=cast("TextIO", writer))
            for piece in (name, " ", str(number), "\n"):
                writer.write(piece)

    threads = [threading.Thread(target=write, args=(f"thread-{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    found = pipe.read(writer, threads).decode().splitlines()
    for name in (f"thread-{n}" for n in range(6)):
        own = [line for line in found if name in line]
        both = [(f"KeyError: '{name} {number}'", f"{name} {number}") for number in range(50)]
        assert own == [line for pair in both for line in pair]
    known = re.compile(
        r"(KeyError: ')?thread-\d \d+'?|Traceback .*|  File \"[^\"]+\", line .*|    .*"
    )
    assert [line for line in found if not known.fullmatch(line)] == []
    assert writer.dropped == 0


def test_a_line_belongs_to_its_thread(pipe: Pipe) -> None:
    """A line that one thread has begun does not get into another's."""
    writer = new_writer(pipe.writer)
    writer.write("a")
    thread = threading.Thread(target=writer.write, args=("b\n",))
    thread.start()
    thread.join()
    writer.write("c\n")
    assert pipe.read(writer) == b"b\nac\n"


def test_drops_that_go_on_are_reported_rarely(pipe: Pipe) -> None:
    """Not after each line that gets through, but once in `REPORT_S`, and at the end."""
    writer = LogWriter(pipe.writer, report=report, max_bytes=1000, clock=lambda: 0.0)
    found = b""
    for number in range(20):
        writer.write("x" * 1000 + "\n")
        writer.write(f"{number}\n")
        while f"{number}\n".encode() not in found:
            found += os.read(pipe.reader, PAGE)
    found += pipe.read(writer)
    said = [int(line.split()[1]) for line in found.splitlines() if line.startswith(b"dropped")]
    assert sum(said) == 20
    assert len(said) <= 2


def test_two_writers_of_one_pipe(pipe: Pipe) -> None:
    """Another writer of the same pipe, as of another process, gets no line of ours into its own."""
    filled = pipe.fill()
    ours, others = new_writer(pipe.writer), new_writer(pipe.writer)
    for number in range(200):
        ours.write(f"ours {number:095}\n")
        others.write(f"others {number:095}\n")
    reading = threading.Thread(target=others.drain, args=(DEADLINE_S,))
    reading.start()
    found = pipe.read(ours, [reading])[filled:].decode().splitlines()
    for name in ("ours", "others"):
        assert [line for line in found if line.startswith(f"{name} ")] == [
            f"{name} {number:095}" for number in range(200)
        ]


def test_a_write_that_interrupts_another(pipe: Pipe) -> None:
    """A signal handler or finalizer that logs in the middle of a write does not wait for it."""
    writer = new_writer(pipe.writer)

    def interrupted() -> None:
        with writer._lock:
            writer.write("inner\n")
            assert writer.stalls == 0

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert pipe.read(writer) == b"inner\n"


def test_a_write_that_hangs_is_a_stall(pipe: Pipe) -> None:
    """A stall counts once, from the moment when it is one, and still counts when it is over."""
    times = [0.0]
    pipe.fill()
    writer = LogWriter(pipe.writer, report=report, clock=lambda: times[0])
    writer.write("a\n")
    while writer._writing_since is None:
        os.sched_yield()
    times[0] = STALL_S / 2
    assert writer.stalls == 0
    for times[0] in (STALL_S, 100 * STALL_S):
        assert writer.stalls == 1
    pipe.read(writer)
    assert writer.stalls == 1


def test_nothing_to_drain_is_drained() -> None:
    """`drain` returns at once when there is nothing to wait for."""
    assert new_writer(1).drain(DEADLINE_S)


@pytest.mark.parametrize("size", [0, 9, 99, 999, 70_000])
def test_the_tail(size: int) -> None:
    """It is the end of what was logged, in whole lines, and is bounded, whether anybody reads."""
    pipe = Pipe()
    pipe.fill()
    writer = new_writer(pipe.writer, max_bytes=PAGE)
    text = "".join(f"{number:06}{'x' * size}\n" for number in range(3_000))
    for line in text.splitlines(keepends=True)[:: 1 if size < PAGE else 300]:
        writer.write(line)
        assert len(writer._latest) <= 3 * TAIL_BYTES
    tail = writer.tail()
    assert len(tail) <= TAIL_BYTES
    if size < PAGE:
        assert text.endswith(tail)
        assert len(tail) > TAIL_BYTES - size - 8 or tail == text
    assert tail[:6].isdigit() or not tail
    pipe.read(writer)

"""Raises an interrupt at each instruction of the client in turn."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest
import trace_sidecar_client
from trace_sidecar_client import Spans

PACKAGE = Path(trace_sidecar_client.__file__).parent
# Without what encodes values: to a span, an interrupt there is one in `events`.
FILES = {str(path) for path in PACKAGE.glob("*.py") if path.stem not in {"encoders", "values"}}
MAX_INSTRUCTIONS = 5000


Trace = Callable[[FrameType, str, object], Any]


class Interrupt:
    """Raises `error` at the given instruction of the client's code, counted as they run."""

    def __init__(self, at: int, error: BaseException) -> None:
        self._left = at
        self._error = error
        self.where = ""

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _on_call(self, frame: FrameType, event: str, arg: object) -> Trace | None:
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes = True
        self._count(frame)  # a function may be interrupted before its first instruction
        return self._on_opcode

    def _on_opcode(self, frame: FrameType, event: str, arg: object) -> Trace | None:
        if event == "opcode":
            self._count(frame)
        return self._on_opcode

    def _count(self, frame: FrameType) -> None:
        self._left -= 1
        if self._left == 0:
            self.where = f"{frame.f_code.co_qualname}:{frame.f_lineno}+{frame.f_lasti}"
            raise self._error


def interruptions(block: Callable[[Spans], None], spans: Spans) -> Iterator[str]:
    """Run `block` with an interrupt at its first instruction, its second, and so on to the last."""
    for at in range(1, MAX_INSTRUCTIONS):
        interrupt = Interrupt(at, KeyboardInterrupt())
        try:
            with interrupt:
                block(spans)
        except KeyboardInterrupt:
            # The traceback is still alive here, as it is in a notebook after an interrupted cell.
            yield interrupt.where
        else:
            assert not interrupt.where, f"hidden from the agent at {interrupt.where}"
            return
    pytest.fail("the block has more instructions than the test expects")

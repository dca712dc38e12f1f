"""Raises `KeyboardInterrupt` at each point of a call at which CPython may, one call for each."""

import dis
import itertools
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

# After these CPython looks whether a signal has come or another thread set an exception.
_CHECKED = ("CALL", "JUMP_BACKWARD", "RESUME")


def interrupted(make_call: Callable[[], Callable[[], object]], folder: str) -> Iterator[int]:
    """Run a new call again and again, interrupted one step later each time, until it ends itself.

    Steps are counted in Python code below `folder`. Yields after each interrupted call.
    """
    for number in itertools.count():
        call = make_call()
        tracer = _Tracer(number, folder)
        # CPython 3.12 looks at this when tracing begins, and not again.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(tracer.enter)
        try:
            call()
        except KeyboardInterrupt:
            sys.settrace(None)
            yield number
        finally:
            sys.settrace(None)
        if not tracer.raised:
            return


class _Tracer:
    def __init__(self, number: int, folder: str) -> None:
        self._left = number
        self._folder = folder
        self._before: dict[FrameType, int] = {}
        self.raised = False

    def enter(self, frame: FrameType, event: str, arg: object) -> Any:  # noqa: ANN401 - a trace function
        del event, arg
        if self.raised or not frame.f_code.co_filename.startswith(self._folder):
            return None
        frame.f_trace = self.step
        frame.f_trace_opcodes = True
        return self.step

    def step(self, frame: FrameType, event: str, arg: object) -> Any:  # noqa: ANN401 - a trace function
        del arg
        if self.raised or event != "opcode":
            return self.step
        before, now = self._before.get(frame), frame.f_lasti
        self._before[frame] = now
        if before is not None and _may_raise_between(frame.f_code, before, now):
            self._left -= 1
            if self._left < 0:
                self.raised = True
                raise KeyboardInterrupt
        return self.step


def _may_raise_between(code: CodeType, before: int, now: int) -> bool:
    """Whether CPython may raise after the instruction at `before`, as if at the one at `now`.

    A trace function can only raise at `now`, which is the same only if one handler covers both.
    """
    name = dis.opname[code.co_code[before]]
    return name.startswith(_CHECKED) and _handler(code, before) == _handler(code, now)


def _handler(code: CodeType, at: int) -> int | None:
    parse: Any = vars(dis)["_parse_exception_table"]
    for entry in parse(code):
        if entry.start <= at < entry.end:
            return int(entry.target)
    return None

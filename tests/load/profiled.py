"""Runs the sidecar under cProfile: `python -m tests.load.profiled FILE run`.

`run` ends with `os._exit`, so `python -m cProfile` would write nothing.
"""

import cProfile
import os
import sys
from typing import NoReturn

from sidecar.cli import main
from sidecar.process import signals

_exit = os._exit


def _profiled(file: str) -> None:
    profile = cProfile.Profile()

    def end(status: int) -> NoReturn:
        profile.disable()
        profile.dump_stats(file)
        _exit(status)

    os._exit = end
    signals.block()
    profile.enable()
    main()


if __name__ == "__main__":
    _, file, *sys.argv[1:] = sys.argv
    _profiled(file)
